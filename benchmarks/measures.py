"""The figures of a table, from rows of `raysegclean score` kept as plain values.

Definitions: docs/results.md. A row is one class of one case; figures over cases are means of the
cases' means over their classes, except E, which is averaged over classes last.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from bootstrap import Interval, error_removed, paired_bootstrap
from numpy.typing import ArrayLike

__all__ = [
    "CleanSummary",
    "Row",
    "clean_cases",
    "clean_summary",
    "dice",
    "error_removed_of",
    "harm",
    "per_case",
    "precision",
    "recovered_share",
    "share_worse",
    "told",
    "worst_error_removed",
]

Row = Mapping[str, Any]

MIN_GAP = 0.05
"""Below this distance to the ceiling a recovered share says nothing."""


@dataclass(frozen=True)
class CleanSummary:
    """How well cases that needed no cleaning were left alone: Dice of output to given label."""

    cases: int
    mean: float
    worst: float
    share_losing: float
    """Share of the cases that lost more than .01."""


def error_removed_of(rows: Sequence[Row]) -> Interval:
    """Return E averaged over classes, with the mean of the classes' interval ends (by patient).

    Classes that are right in every case have no error to remove, and do not count.
    """
    found = []
    for value in sorted({row["label_value"] for row in rows}):
        mine = [row for row in rows if row["label_value"] == value]
        found.append(
            paired_bootstrap(
                [row["change"]["dice_given"] for row in mine],
                [row["dice"] for row in mine],
                [row["patient"] or row["case"] for row in mine],
            )
        )
    ends = np.array([(one.value, one.low, one.high) for one in found])
    known = ends[~np.isnan(ends).any(axis=1)] if len(ends) else ends
    value, low, high = known.mean(axis=0) if len(known) else [float("nan")] * 3
    return Interval(float(value), float(low), float(high))


def worst_error_removed(rows: Sequence[Row]) -> float:
    """Return E of the case that fares worst, of its mean Dice; NaN where no case was wrong."""
    before, after = per_case(rows, _dice_given), per_case(rows, _dice)
    each = error_removed(list(before.values()), list(after.values()))
    return float(np.nanmin(each)) if np.isfinite(each).any() else float("nan")


def dice(rows: Sequence[Row], *, given: bool = False) -> float:
    """Return the mean Dice to the truth, of the output or of the given label."""
    return float(np.mean([(_dice_given if given else _dice)(row) for row in rows]))


def share_worse(rows: Sequence[Row]) -> float:
    """Return the share of the cases whose mean Dice fell."""
    change = per_case(rows, lambda row: row["dice"] - row["change"]["dice_given"])
    return float(np.mean([value < 0 for value in change.values()]))


def precision(rows: Iterable[Row]) -> float:
    """Return the share of the changed voxels that became right; NaN where none changed."""
    changes = [row["change"] for row in rows]
    fixed = sum(one["fixed"] for one in changes)
    changed = fixed + sum(one["harmed"] for one in changes)
    return fixed / changed if changed else float("nan")


def harm(rows: Iterable[Row]) -> tuple[float, float]:
    """Return harm per case and class: the mean and the worst; NaN for no row."""
    values = [row["change"]["harm"] for row in rows]
    known = [value for value in values if value is not None]
    return (float(np.mean(known)), max(known)) if known else (float("nan"), float("nan"))


def clean_cases(rows: Sequence[Row]) -> CleanSummary:
    """Return how much of their own given labels cases keep, as Dice."""
    return clean_summary(list(per_case(rows, lambda row: row["change"]["dice_to_given"]).values()))


def recovered_share(before: float, after: float, ceiling: float) -> float:
    """Return (after - before) / (ceiling - before); NaN unless the ceiling is .05 higher.

    `ceiling` is the Dice of out-of-fold predictions of the same network trained on true labels.
    """
    gap = ceiling - before
    return (after - before) / gap if gap > MIN_GAP else float("nan")


def clean_summary(dice_to_given: ArrayLike, loss: float = 0.01) -> CleanSummary:
    """Return mean, worst and the share that lost more than `loss`; NaN for no case at all."""
    values = np.asarray(dice_to_given, np.float64).ravel()
    if values.size == 0:
        return CleanSummary(0, float("nan"), float("nan"), float("nan"))
    losing = float((values < 1 - loss).mean())
    return CleanSummary(int(values.size), float(values.mean()), float(values.min()), losing)


def per_case(rows: Iterable[Row], figure: Any) -> dict[str, float]:
    """Return the mean of a row's figure over the classes of each case."""
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row["case"], []).append(float(figure(row)))
    return {case: float(np.mean(values)) for case, values in found.items()}


def told(value: float, form: str = ".3f") -> str:
    """Return a figure as text; a dash where there is none."""
    return "-" if value is None or np.isnan(value) else f"{value:{form}}"


def _dice(row: Row) -> float:
    return float(row["dice"])


def _dice_given(row: Row) -> float:
    return float(row["change"]["dice_given"])
