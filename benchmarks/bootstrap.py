"""Confidence intervals of a paired comparison, resampled by patient.

Cases of one patient are not independent, so patients are drawn, never cases. The same draw is used
before and after, which keeps the pairing. Seeded: the same input gives the same interval.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raysegclean.errors import InputError

__all__ = ["Interval", "difference", "error_removed", "paired_bootstrap"]

Statistic = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
"""From the mean before and the mean after to the figure of interest, elementwise over draws."""

CHUNK_DRAWS = 256
"""Draws made at once: bounds the memory at 256 x patients counts."""


@dataclass(frozen=True)
class Interval:
    """A figure with its confidence interval."""

    value: float
    low: float
    high: float


def error_removed(before: ArrayLike, after: ArrayLike) -> NDArray[np.float64]:
    """Return E = 1 - (1 - after) / (1 - before), the share of the error removed, elementwise.

    `before` and `after` are Dice coefficients; negative where the cleaning made it worse; NaN where
    there was no error to remove. Over cases: of the mean Dice, not the mean of E.
    """
    missing_before = 1 - np.asarray(before, np.float64)
    missing_after = 1 - np.asarray(after, np.float64)
    left = np.full(np.broadcast_shapes(missing_before.shape, missing_after.shape), np.nan)
    np.divide(missing_after, missing_before, out=left, where=missing_before > 0)
    return np.asarray(1 - left)


def difference(before: NDArray[np.float64], after: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return after - before, the plainest statistic of a pair."""
    return after - before


def paired_bootstrap(
    before: ArrayLike,
    after: ArrayLike,
    patients: Sequence[str],
    *,
    statistic: Statistic = error_removed,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Return the statistic of the means over cases with its percentile interval (Efron 1979).

    `before` and `after` hold one value per case, `patients` the patient of each case. The value is
    that of the cases as they are; draws in which the statistic is NaN are left out.
    Raises InputError when the lengths differ or there is no case.
    """
    pairs = np.stack([np.asarray(before, np.float64), np.asarray(after, np.float64)])
    if pairs.shape[1] == 0 or pairs.shape[1] != len(patients):
        raise InputError(
            f"A paired bootstrap needs one patient per case and at least one case, got "
            f"{pairs.shape[1]} cases and {len(patients)} patients."
        )
    _, owner = np.unique(np.asarray(patients), return_inverse=True)
    groups = int(owner.max()) + 1
    sums = np.array([np.bincount(owner, row, groups) for row in pairs], np.float64)
    sizes = np.bincount(owner, minlength=groups).astype(np.float64)
    values = _resample(sums, sizes, statistic, draws, np.random.default_rng(seed))
    values = values[~np.isnan(values)]
    means = pairs.mean(axis=1)
    value = float(statistic(means[:1], means[1:])[0])
    if values.size == 0:
        return Interval(value, np.nan, np.nan)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def _resample(
    sums: NDArray[np.float64],
    sizes: NDArray[np.float64],
    statistic: Statistic,
    draws: int,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    groups = sizes.size
    values = []
    for start in range(0, draws, CHUNK_DRAWS):
        picks = rng.integers(groups, size=(min(CHUNK_DRAWS, draws - start), groups))
        cases = sizes[picks].sum(axis=1)
        before, after = (row[picks].sum(axis=1) / cases for row in sums)
        values.append(statistic(before, after))
    return np.concatenate(values) if values else np.zeros(0)
