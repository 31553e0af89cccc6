"""Measures of labels against the truth, and of what a cleaning did to them.

Every figure in the reports and in docs/results.md comes from here. All functions are pure and see
each class one against the rest: a voxel is right for class c when it belongs to c in the label
exactly where it does in the truth. Counts are integers and add up over the blocks of a case.

Empty classes: in neither label: Dice 1, NSD 1, HD95 0, harm 0. In one of them only: Dice 0, NSD 0,
HD95 infinite. So averages over cases must leave infinite distances out and say how many there were.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raysegclean.errors import ConfigError, InputError
from raysegclean.voxels.boxes import IntLabel, class_boxes, united
from raysegclean.voxels.geometry import Box
from raysegclean.voxels.surface import Spacing, surface_distances

__all__ = [
    "Changes",
    "CleanSummary",
    "Overlap",
    "changes",
    "class_masks",
    "clean_summary",
    "dice",
    "error_removed",
    "hd95_mm",
    "nsd",
    "overlaps",
    "recovered_share",
]

MIN_GAP = 0.05
"""Below this distance to the ceiling a recovered share says nothing."""


@dataclass(frozen=True)
class Overlap:
    """Voxels of one class in two labels, and in both; adds up over blocks."""

    a: int
    b: int
    both: int

    def __add__(self, other: "Overlap") -> "Overlap":
        """Return the counts of two disjoint blocks together."""
        return Overlap(self.a + other.a, self.b + other.b, self.both + other.both)

    @property
    def dice(self) -> float:
        """2 |A and B| / (|A| + |B|); 1 where both are empty."""
        return 2 * self.both / (self.a + self.b) if self.a + self.b else 1.0


@dataclass(frozen=True)
class Changes:
    """What a cleaning did to one class: voxels made right, made wrong, and the size of the class.

    Adds up over blocks. `extent` counts the voxels of the class in the given label or the truth.
    """

    fixed: int
    harmed: int
    extent: int

    def __add__(self, other: "Changes") -> "Changes":
        """Return the counts of two disjoint blocks together."""
        return Changes(
            self.fixed + other.fixed, self.harmed + other.harmed, self.extent + other.extent
        )

    @property
    def harm(self) -> float:
        """|given right and output wrong| / |given or truth|; infinite for an invented class."""
        if self.harmed == 0:
            return 0.0
        return self.harmed / self.extent if self.extent else math.inf

    @property
    def precision(self) -> float:
        """Share of the changed voxels that became right; NaN where nothing changed."""
        changed = self.fixed + self.harmed
        return self.fixed / changed if changed else math.nan


def overlaps(
    a_zyx: IntLabel, b_zyx: IntLabel, classes: Sequence[int] | None = None
) -> dict[int, Overlap]:
    """Return the overlap of two labels per class; by default for every class in either of them.

    Raises InputError when the shapes differ.
    """
    return {
        value: Overlap(_count(a), _count(b), _count(a & b))
        for value, a, b in class_masks(a_zyx, b_zyx, classes)
    }


def dice(
    a_zyx: IntLabel, b_zyx: IntLabel, classes: Sequence[int] | None = None
) -> dict[int, float]:
    """Return the Dice coefficient of two labels per class; 1 for a class that is in neither."""
    return {value: counts.dice for value, counts in overlaps(a_zyx, b_zyx, classes).items()}


def hd95_mm(
    a_zyx: IntLabel,
    b_zyx: IntLabel,
    spacing_mm: Spacing,
    *,
    classes: Sequence[int] | None = None,
) -> dict[int, float]:
    """Return the 95 % Hausdorff distance in mm per class (definition: `voxels.surface`).

    0 for a class that is in neither label, infinite for one that is in one label only.
    """
    flat = a_zyx.shape[0] == 1
    return {
        value: surface_distances(a, b, spacing_mm, flat=flat).hausdorff(0.95)
        for value, a, b in class_masks(a_zyx, b_zyx, classes)
    }


def nsd(
    a_zyx: IntLabel,
    b_zyx: IntLabel,
    spacing_mm: Spacing,
    tolerance_mm: float,
    *,
    classes: Sequence[int] | None = None,
) -> dict[int, float]:
    """Return the normalised surface Dice at a tolerance per class (definition: `voxels.surface`).

    For a tolerance of one voxel along any axis pass a spacing of (1, 1, 1) and a tolerance of 1.
    """
    flat = a_zyx.shape[0] == 1
    return {
        value: surface_distances(a, b, spacing_mm, flat=flat).overlap(tolerance_mm)
        for value, a, b in class_masks(a_zyx, b_zyx, classes)
    }


def changes(
    given_zyx: IntLabel,
    output_zyx: IntLabel,
    truth_zyx: IntLabel,
    classes: Sequence[int] | None = None,
) -> dict[int, Changes]:
    """Return what changed from given to output, judged by the truth, per class.

    One against the rest, so fixed + harmed is the number of voxels whose membership changed.
    """
    labels = (given_zyx, output_zyx, truth_zyx)
    found = {}
    for value, box in _class_boxes_of(labels, classes):
        given, output, truth = (label_zyx[box.slices] == value for label_zyx in labels)
        changed = given != output
        fixed = _count(changed & (output == truth))
        found[value] = Changes(fixed, _count(changed) - fixed, _count(given | truth))
    return found


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


def recovered_share(before: float, after: float, ceiling: float) -> float:
    """Return (after - before) / (ceiling - before); NaN unless the ceiling is .05 higher.

    `ceiling` is the Dice of out-of-fold predictions of the same network trained on true labels.
    """
    gap = ceiling - before
    return (after - before) / gap if gap > MIN_GAP else math.nan


@dataclass(frozen=True)
class CleanSummary:
    """How well cases that needed no cleaning were left alone: Dice of output to given label."""

    cases: int
    mean: float
    worst: float
    share_losing: float
    """Share of the cases that lost more than .01."""


def clean_summary(dice_to_given: ArrayLike, loss: float = 0.01) -> CleanSummary:
    """Return mean, worst and the share that lost more than `loss`; NaN for no case at all."""
    values = np.asarray(dice_to_given, np.float64).ravel()
    if values.size == 0:
        return CleanSummary(0, math.nan, math.nan, math.nan)
    losing = float((values < 1 - loss).mean())
    return CleanSummary(int(values.size), float(values.mean()), float(values.min()), losing)


def class_masks(
    a_zyx: IntLabel, b_zyx: IntLabel, classes: Sequence[int] | None = None
) -> Iterator[tuple[int, NDArray[np.bool_], NDArray[np.bool_]]]:
    """Yield (class, mask in a, mask in b), both cut to the box that holds the two masks.

    Raises InputError when the shapes differ.
    """
    for value, box in _class_boxes_of((a_zyx, b_zyx), classes):
        yield value, a_zyx[box.slices] == value, b_zyx[box.slices] == value


def _class_boxes_of(
    labels: Sequence[IntLabel], classes: Sequence[int] | None
) -> list[tuple[int, Box]]:
    """Return (class, box that holds it in all labels); one voxel stands for an absent class."""
    shapes = [label_zyx.shape for label_zyx in labels]
    if len(set(shapes)) > 1:
        raise InputError(
            f"Labels of one case must have one shape, got {shapes} (z, y, x); "
            "check that they belong to the same image."
        )
    boxes = [class_boxes(label_zyx) for label_zyx in labels]
    return [
        (value, united(*(found.get(value) for found in boxes)) or Box((0, 0, 0), (1, 1, 1)))
        for value in _chosen(classes, *boxes)
    ]


def _chosen(classes: Sequence[int] | None, *found: Mapping[int, Box]) -> list[int]:
    if classes is None:
        return sorted(set().union(*found))
    if 0 in classes:
        raise ConfigError("Class 0 is background and has no measure; leave it out of `classes`.")
    return [int(value) for value in classes]


def _count(mask: NDArray[np.bool_]) -> int:
    return int(np.count_nonzero(mask))
