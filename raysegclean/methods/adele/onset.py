"""When early learning of a class is over: the onset of ADELE, from its training IoU curve.

A network first learns what most labels say and only later memorises their errors. While it learns,
the IoU of its predictions with the given labels climbs steeply, then bends; the bend of a class is
the time from which its confident predictions may correct labels.

Guaranteed: the answer depends on the counts alone, which are integers, so it is the same after a
resume. It is "not yet" with fewer than five points, and for a curve that neither rises nor reaches
one half, whatever the fit says. Not guaranteed: that the fit of a short curve is near the truth; it
need not be, because a class waits until the fitted onset has come.

Source: ADELE (Liu et al., CVPR 2022), section 4.1, with another trimming: the released code drops
leading points until one rises by 0.1 within an epoch, and never corrects a class that learns more
slowly than that.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import curve_fit

__all__ = ["Curve", "IouWatch", "fit_curve", "onset_epoch"]

LEAST_IOU = 0.05
"""Learning begins with the first two epochs in a row that reach this IoU; a single one is what the
first, random predictions of a large class may reach. Epochs before do not count."""
LEAST_POINTS = 5
LEAST_RISE = 0.1
LEARNT_IOU = 0.5
"""A flat curve at this level was learnt before its first point."""
_NOISES = 3.0
_ENDS = 3
_SMALLEST_C = 1e-9

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """f(t) = a (1 - exp(-t^b / c)), t in epochs from 1 on."""

    a: float
    b: float
    c: float

    def value(self, epoch: Values) -> Values:
        """Return f at each epoch."""
        return self.a * (1 - np.exp(-(epoch**self.b) / self.c))

    def slope(self, epoch: Values) -> Values:
        """Return f' at each epoch; it never grows, because b is at most 1."""
        rate = self.a * self.b / self.c
        return rate * epoch ** (self.b - 1) * np.exp(-(epoch**self.b) / self.c)


def fit_curve(epoch: Values, iou: Values) -> Curve | None:
    """Return the curve through the points, or None where the solver finds none.

    a and b lie in [0, 1], c above 0; later points weigh more, geometrically up to a hundredfold.
    """

    def model(t: Values, a: float, b: float, c: float) -> Values:
        return Curve(a, b, c).value(t)

    try:
        found, _ = curve_fit(
            model,
            epoch,
            iou,
            p0=(1.0, 1.0, 1.0),
            sigma=np.geomspace(1.0, 0.1, len(epoch)),
            method="trf",
            bounds=([0.0, 0.0, _SMALLEST_C], [1.0, 1.0, np.inf]),
        )
    except RuntimeError:  # no convergence: the next epoch brings another point
        return None
    a, b, c = (float(value) for value in found)
    return Curve(a, b, c)


def onset_epoch(iou: Values, epochs: int, ratio: float = 0.9) -> int | None:
    """Return the epoch, counted from 1, from which labels of a class may be corrected.

    It is the first epoch at which the fitted curve has lost more than `ratio` of its first slope.

    Args:
        iou: IoU with the given labels of each epoch so far; NaN where the class did not occur.
        epochs: how many epochs the whole training has.
        ratio: share of the slope, in (0, 1).

    Returns:
        None where nothing can be said yet, or where the curve keeps rising to the end.
    """
    known = np.flatnonzero(np.isfinite(iou))
    learning = iou[known] >= LEAST_IOU
    begins = np.flatnonzero(learning[:-1] & learning[1:])
    if not len(begins):
        return None
    known = known[int(begins[0]) :]
    before = int(known[0])
    points = iou[known]
    if len(points) < LEAST_POINTS or not _has_learnt(points):
        return None
    curve = fit_curve((known - before + 1).astype(np.float64), points)
    ahead = np.arange(1, epochs - before, dtype=np.float64)
    if curve is None or not len(ahead):
        return None
    slope = curve.slope(ahead)
    lost = slope < (1 - ratio) * slope[0]
    if slope[0] <= 0:  # it was learnt within the first epoch
        return before + 1
    return before + 1 + int(lost.argmax()) if lost.any() else None


def _has_learnt(iou: Values) -> bool:
    early, late = float(iou[:_ENDS].mean()), float(iou[-_ENDS:].mean())
    # The median step between neighbours measures the noise whatever the trend is.
    noise = float(np.median(np.abs(np.diff(iou))))
    return late >= LEARNT_IOU or late - early >= max(LEAST_RISE, _NOISES * noise)


class IouWatch:
    """Counts a training's hits per class and epoch, and switches classes on when they are learnt.

    A class that is on stays on.
    """

    def __init__(self, classes: int, *, epochs: int, epoch_steps: int, ratio: float) -> None:
        self.epochs = epochs
        self.epoch_steps = epoch_steps
        self.ratio = ratio
        self._done: list[NDArray[np.int64]] = []
        self._now = np.zeros((3, classes), np.int64)
        self._onset = np.zeros(classes, np.int64)

    @property
    def on(self) -> NDArray[np.bool_]:
        """(C,): the classes whose early learning is over; the background never is one."""
        return self._onset > 0

    @property
    def onset(self) -> dict[int, int]:
        """Class -> the epoch, from 1, at whose end it was switched on."""
        return {int(c): int(self._onset[c]) for c in np.flatnonzero(self._onset)}

    def see(self, step: int, confusion: NDArray[np.int64]) -> None:
        """Count one batch: (C, C) voxels with given label i and predicted label j.

        Steps come in order, not necessarily all of them.
        """
        while len(self._done) < step // self.epoch_steps:
            self._close_epoch()
        hits = np.diagonal(confusion)
        self._now += np.stack([hits, confusion.sum(axis=0), confusion.sum(axis=1)])

    def curve(self, channel: int) -> Values:
        """Return the IoU of each finished epoch; NaN where the class did not occur."""
        if not self._done:
            return np.zeros(0)
        hits, predicted, given = np.stack(self._done)[:, :, channel].T.astype(np.float64)
        union = predicted + given - hits
        return np.where(union > 0, hits / np.maximum(union, 1), np.nan)

    def _close_epoch(self) -> None:
        self._done.append(self._now)
        self._now = np.zeros_like(self._now)
        for channel in range(1, self._now.shape[1]):
            if self._onset[channel] == 0:
                found = onset_epoch(self.curve(channel), self.epochs, self.ratio)
                if found is not None and found <= len(self._done):
                    self._onset[channel] = len(self._done)

    def state(self) -> dict[str, Any]:
        """Return the counts and onsets as plain lists."""
        done = [counts.tolist() for counts in self._done]
        return {"done": done, "now": self._now.tolist(), "onset": self._onset.tolist()}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self._done = [np.array(counts, np.int64) for counts in state["done"]]
        self._now = np.array(state["now"], np.int64)
        self._onset = np.array(state["onset"], np.int64)
