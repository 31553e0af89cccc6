"""How well a label would agree with the networks if it were grossly wrong in one way or another.

A pure function of two labels of one whole case. Every way in which labels of real archives go wrong
as a whole is undone and held against the prediction: class ids exchanged (the best assignment of
the confusion matrix), the label flipped along an axis, displaced (the peak of the correlation,
climbed to whole voxels), cut off at a plane, or right but for one blob far off the outline. Nothing
is decided here (`policy.gross`).

Memory: a few bytes per voxel of the case. Displacements are searched on a grid of at most
`_SEARCH_VOX` voxels first.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil, prod

import cc3d
import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter
from scipy import fft
from scipy.optimize import linear_sum_assignment

from raysegclean.evidence.voxel_evidence import LEVELS
from raysegclean.policy.edits import Cut, Displace, Exchange, Mirror, Region
from raysegclean.voxels.boxes import bounding_box, united
from raysegclean.voxels.channels import CHANNELS, UNKNOWN
from raysegclean.voxels.geometry import Box, Index3, triple
from raysegclean.voxels.packing import mask_to_text
from raysegclean.voxels.signed_distance import Spacing, signed_distance

__all__ = ["Explanation", "GrossLook", "look_at"]

Label = NDArray[np.uint8]
Counts = NDArray[np.int64]
Dice = Mapping[int, float]

_AXES = range(3)
"""Geometry: z, y, x."""
_SEARCH_VOX = 1 << 18
"""Cost: correlations of larger grids take seconds per class."""
_SLAB_VOX = 1 << 22
"""Cost: so many voxels are counted at once."""
_CLIMB_VOX = 1 << 21
"""Cost: so many voxels tell a displacement to a voxel; the last word has the whole case."""
_MOST_MOVED = 0.5
"""Definition: a label that lies off by more of the case's edge than this is none of the case."""
_LEAST_SEEN = 0.6
"""Argued: a displaced label of which less of a class's voxels is left in the case proves nothing.
"""
_LEAST_MATCH = 0.3
"""Argued: classes that overlap less were not exchanged."""
_BEYOND = 0.05
"""Argued: of a class that was cut off, networks see at least this share beyond the plane."""
_FAR_VOX = 3.0
"""Argued: as `policy.max_shift_vox`, further off is no outline that was moved."""
_ROOT_VOX = 1.0
"""Geometry: how far beyond the outline's reach a blob's own voxels go."""


@dataclass(frozen=True)
class Explanation:
    """One way in which the label may be wrong, and what the classes would agree by without it."""

    edits: Mapping[int, Exchange | Mirror | Displace | Cut | Region]
    """What would repair the classes that it concerns, by channel."""
    dice: Dice
    """Dice with the prediction of all classes that were looked at, by channel."""
    confidence: float = 1.0
    """Mean confidence of the networks in what they see instead."""
    share: float = 1.0
    """Of a cut or a blob: its voxels as a share of the class's in label or prediction."""
    is_added: bool = False
    """Of a blob: whether the label has it and the networks do not."""


@dataclass(frozen=True)
class GrossLook:
    """What was seen of one case."""

    given: Dice
    """Dice of the given label by channel, of classes that label or prediction hold."""
    found: tuple[Explanation, ...] = ()

    def to_text(self) -> str:
        """Return the look as one line, for the ledger."""
        return _LOOK.dump_json(self).decode()

    @classmethod
    def from_text(cls, text: str) -> "GrossLook":
        """Read what `to_text` wrote."""
        return _LOOK.validate_json(text)


_LOOK = TypeAdapter(GrossLook)


def look_at(
    given_zyx: Label,
    predicted_zyx: Label,
    classes: Sequence[int],
    *,
    confidence_zyx: Label | None = None,
    spacing_mm: Spacing | None = None,
) -> GrossLook:
    """Return what the label of one case would agree with the networks by, error by error.

    Args:
        given_zyx: the given label of the whole case, as channels.
        predicted_zyx: what networks see that did not learn from the case.
        classes: the channels that the networks have learnt; others prove nothing.
        confidence_zyx: level (of 256) of the networks' confidence where they differ.
        spacing_mm: voxel edges, z y x.
    """
    case = _Case(given_zyx, predicted_zyx, tuple(classes))
    given = case.dice(*case.counts(given_zyx))
    found = [*_exchanged(case, given), *_mirrored(case), *_displaced(case), *_cut(case)]
    for channel in given:
        found += _regions(case, channel, given, confidence_zyx, spacing_mm)
    return GrossLook(given, tuple(found))


@dataclass(frozen=True)
class _Case:
    """Label and prediction of a case, and the classes that count."""

    given: Label
    predicted: Label
    classes: tuple[int, ...]

    def counts(self, label: Label, predicted: Label | None = None) -> tuple[Counts, Counts, Counts]:
        """Return voxels per channel of the label, of the prediction and of both.

        Where either is `UNKNOWN` neither counts.
        """
        other = self.predicted if predicted is None else predicted
        given = np.zeros(CHANNELS, np.int64)
        seen, both = np.zeros_like(given), np.zeros_like(given)
        for slab in _slabs(label.shape):
            mine, theirs = label[slab], other[slab]
            known = (mine != UNKNOWN) & (theirs != UNKNOWN)
            if not known.all():
                mine, theirs = mine[known], theirs[known]
            given += _voxels(mine)
            seen += _voxels(theirs)
            both += _voxels(mine[mine == theirs])
        return given, seen, both

    def dice(self, given: Counts, predicted: Counts, both: Counts) -> dict[int, float]:
        """Return the Dice of each class that counts and that is in either."""
        total = given + predicted
        return {c: float(2 * both[c] / total[c]) for c in self.classes if total[c]}


def _slabs(shape: tuple[int, ...]) -> Iterator[slice]:
    step = max(1, _SLAB_VOX // max(1, prod(shape[1:])))
    return (slice(at, at + step) for at in range(0, shape[0], step))


def _exchanged(case: _Case, before: Dice) -> Iterator[Explanation]:
    """Yield each cycle of classes that fit better in each other's place."""
    classes = [c for c in case.classes if c in before]
    if len(classes) < 2:
        return
    confusion = np.zeros((CHANNELS, CHANNELS), np.int64)
    for slab in _slabs(case.given.shape):
        pair = case.given[slab].astype(np.uint16) * CHANNELS + case.predicted[slab]
        confusion += np.bincount(pair.ravel(), minlength=CHANNELS**2).reshape(confusion.shape)
    given, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    total = given[classes, None] + predicted[None, classes]
    match = 2 * confusion[np.ix_(classes, classes)] / np.maximum(total, 1)
    rows, columns = linear_sum_assignment(-match)
    becomes = {classes[r]: classes[c] for r, c in zip(rows, columns, strict=True)}
    for cycle in _cycles(becomes):
        # One class of a cycle may be missing from the case, and says nothing then.
        held = [c for c in cycle if given[c]]
        matches = {
            becomes[c]: float(match[classes.index(c), classes.index(becomes[c])]) for c in held
        }
        if held and min(matches.values()) >= _LEAST_MATCH:
            edits = {c: Exchange(becomes=becomes[c]) for c in cycle}
            yield Explanation(edits, {**before, **matches})


def _cycles(becomes: Mapping[int, int]) -> list[list[int]]:
    """Return the cycles of a permutation that move something."""
    left, found = dict(becomes), []
    while left:
        first = at = next(iter(left))
        cycle = []
        while at in left:
            cycle.append(at)
            at = left.pop(at)
        if len(cycle) > 1:
            assert at == first
            found.append(cycle)
    return found


def _mirrored(case: _Case) -> Iterator[Explanation]:
    for axis in _AXES:
        if case.given.shape[axis] > 1:
            dice = case.dice(*case.counts(np.flip(case.given, axis)))
            yield Explanation({c: Mirror(axis=axis) for c in case.classes}, dice)


def _displaced(case: _Case) -> Iterator[Explanation]:
    every = max(1, ceil(np.cbrt(case.given.size / _CLIMB_VOX)))
    step = max(1, ceil(np.cbrt(case.given.size / _SEARCH_VOX)))
    whole = _Moves.of(case, 1)
    by_zyx = _climbed(_Moves.of(case, every), _correlated(case), step)
    if every > 1:
        by_zyx = _climbed(whole, by_zyx, 1)
    dice = whole.dice(by_zyx) if any(by_zyx) else {}
    if dice:
        yield Explanation({c: Displace(by_zyx=by_zyx) for c in case.classes}, dice)


def _correlated(case: _Case) -> Index3:
    """Return by how much the label must move to lie on the prediction, to a coarse voxel."""
    step = max(1, ceil(np.cbrt(case.given.size / _SEARCH_VOX)))
    given, predicted = (a[::step, ::step, ::step] for a in (case.given, case.predicted))
    shape = [fft.next_fast_len(n + ceil(n * _MOST_MOVED), real=True) for n in given.shape]
    spectrum: NDArray[np.complex64] | float = 0.0
    for c in case.classes:
        mine, theirs = (np.asarray(a == c, np.float32) for a in (given, predicted))
        size = float(mine.sum() + theirs.sum())
        if mine.any() and theirs.any():
            pair = [fft.rfftn(part, shape) for part in (theirs, mine)]
            spectrum = spectrum + pair[0] * np.conj(pair[1]) / np.float32(size)
    if isinstance(spectrum, float):
        return 0, 0, 0
    peaks = fft.irfftn(spectrum, shape)
    best = np.unravel_index(int(peaks.argmax()), peaks.shape)
    by = (
        int(b) if b < n else int(b) - size
        for b, n, size in zip(best, given.shape, shape, strict=True)
    )
    return triple(step * b for b in by)


def _climbed(moves: "_Moves", by_zyx: Index3, step: int) -> Index3:
    """Return the displacement near `by_zyx` that agrees best, in whole voxels; steps halve."""
    best, at = _mean(moves.dice(by_zyx)), by_zyx
    while step:
        nearer = [
            triple(a + step * d * (axis == k) for k, a in enumerate(at))
            for axis, d in product(_AXES, (-1, 1))
        ]
        scored = [(_mean(moves.dice(one)), one) for one in nearer]
        top = max(scored)
        if top[0] > best:
            best, at = top
        else:
            step //= 2
    return at


@dataclass(frozen=True)
class _Moves:
    """Displacements of a label, held against the prediction at every few voxels."""

    case: _Case
    every: int
    voxels: int
    """Voxels of label and prediction that count, where all of the label is in the case."""

    @classmethod
    def of(cls, case: _Case, every: int) -> "_Moves":
        parts = (a[::every, ::every, ::every] for a in (case.given, case.predicted))
        return cls(case, every, sum(int(_voxels(part)[list(case.classes)].sum()) for part in parts))

    def dice(self, by_zyx: Index3) -> dict[int, float]:
        """Return the Dice where the moved label has a say; empty where it would leave the case."""
        whole = Box.whole(triple(self.case.given.shape))
        target = whole.moved(by_zyx).clipped(whole)
        if not target.voxels:
            return {}
        source = target.moved(triple(-b for b in by_zyx))
        parts = (self.case.given[source.slices], self.case.predicted[target.slices])
        given, predicted = (part[:: self.every, :: self.every, :: self.every] for part in parts)
        counts = self.case.counts(given, predicted)
        left = int((counts[0] + counts[1])[list(self.case.classes)].sum())
        return self.case.dice(*counts) if left >= _LEAST_SEEN * self.voxels else {}


def _mean(dice: Dice) -> float:
    return sum(dice.values()) / len(dice) if dice else 0.0


def _cut(case: _Case) -> Iterator[Explanation]:
    """Yield, per axis and end, the plane behind the last labelled slice."""
    box = bounding_box((case.given > 0) & (case.given != UNKNOWN))
    if box is None:
        return
    for axis, upwards in product(_AXES, (False, True)):
        plane = box.stop_zyx[axis] if upwards else box.start_zyx[axis] - 1
        if not 0 <= plane < case.given.shape[axis]:
            continue
        near, beyond = [slice(None) for _ in _AXES], [slice(None) for _ in _AXES]
        near[axis] = slice(None, plane) if upwards else slice(plane + 1, None)
        beyond[axis] = slice(plane, None) if upwards else slice(None, plane + 1)
        lost = _voxels(case.predicted[tuple(beyond)])
        given, predicted, both = case.counts(case.given[tuple(near)], case.predicted[tuple(near)])
        cut = [c for c in case.classes if lost[c] > _BEYOND * (predicted[c] + lost[c])]
        # A class of which nothing is left is cut off where others are; alone it was forgotten.
        if any(given[c] for c in cut):
            whole = int(sum((predicted + lost)[cut]))
            yield Explanation(
                {c: Cut(axis=axis, plane_vox=plane, upwards=upwards) for c in cut},
                case.dice(given, predicted, both),
                share=float(sum(lost[cut]) / whole),
            )


def _voxels(label: Label) -> Counts:
    """Return voxels per channel, without a wide copy of the whole array."""
    sums = np.zeros(CHANNELS, np.int64)
    for slab in _slabs(label.shape):
        sums += np.bincount(label[slab].ravel(), minlength=CHANNELS)
    return sums


def _regions(
    case: _Case,
    channel: int,
    before: Dice,
    confidence_zyx: Label | None,
    spacing_mm: Spacing | None,
) -> Iterator[Explanation]:
    """Yield the largest blob that the label has too much, and the largest that it lacks."""
    given, predicted = case.given == channel, case.predicted == channel
    box = united(bounding_box(given), bounding_box(predicted))
    if box is None:
        return
    window = box.grown((1, 1, 1)).clipped(Box.whole(triple(case.given.shape)))
    given, predicted = given[window.slices], predicted[window.slices]
    background, unseen = (a[window.slices] == 0 for a in (case.given, case.predicted))
    size, both = int(given.sum()) + int(predicted.sum()), int((given & predicted).sum())
    for mine, other in ((given & unseen, predicted), (predicted & background, given)):
        blob = _far_blob(mine, other, spacing_mm)
        count = 0 if blob is None else int(blob.sum())
        if blob is None or count == size:
            continue
        is_added = other is predicted
        rest = 2 * both / (size - count) if is_added else 2 * (both + count) / (size + count)
        place = bounding_box(blob)
        assert place is not None
        levels = None if confidence_zyx is None else confidence_zyx[window.slices][blob]
        yield Explanation(
            {
                channel: Region(
                    box=place.moved(window.start_zyx), voxels=mask_to_text(blob[place.slices])
                )
            },
            {**before, channel: rest},
            confidence=1.0 if levels is None else float(levels.mean()) / LEVELS,
            share=2 * count / size,
            is_added=is_added,
        )


def _far_blob(
    mine: NDArray[np.bool_], other: NDArray[np.bool_], spacing_mm: Spacing | None
) -> NDArray[np.bool_] | None:
    """Return the largest blob of `mine` that reaches far off the outline of `other`, if any."""
    if not other.any():
        return None
    far = mine & (signed_distance(other, spacing_mm, limit_vox=_FAR_VOX + 1) < -_FAR_VOX)
    if not far.any():
        return None
    parts = cc3d.connected_components(np.ascontiguousarray(far))
    largest = int(np.bincount(parts.ravel())[1:].argmax()) + 1
    near = signed_distance(parts == largest, spacing_mm, limit_vox=_FAR_VOX + _ROOT_VOX + 1)
    return mine & (near > -(_FAR_VOX + _ROOT_VOX))
