"""Measures of labels against the truth, and of what a cleaning did to them.

Every figure in the reports and in docs/results.md comes from here. All functions are pure and see
each class one against the rest: a voxel is right for class c when it belongs to c in the label
exactly where it does in the truth.

Empty classes: in neither label: Dice 1, NSD 1, HD95 0, harm 0. In one of them only: Dice 0, NSD 0,
HD95 infinite. So averages over cases must leave infinite distances out and say how many there were.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysegclean.errors import InputError
from raysegclean.voxels.boxes import IntLabel, class_boxes, united
from raysegclean.voxels.geometry import Box

__all__ = ["Changes", "changes", "class_masks", "dice", "dice_of_masks"]


@dataclass(frozen=True)
class Changes:
    """What a cleaning did to one class: voxels made right, made wrong, and the size of the class.

    `extent` counts the voxels of the class in the given label or the truth.
    """

    fixed: int
    harmed: int
    extent: int

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


def dice(
    a_zyx: IntLabel, b_zyx: IntLabel, classes: Sequence[int] | None = None
) -> dict[int, float]:
    """Return the Dice coefficient of two labels per class; by default of every class in either.

    Raises InputError when the shapes differ.
    """
    return {value: dice_of_masks(a, b) for value, a, b in class_masks(a_zyx, b_zyx, classes)}


def dice_of_masks(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Return 2 |A and B| / (|A| + |B|); 1 where both are empty."""
    voxels = _count(a) + _count(b)
    return 2 * _count(a & b) / voxels if voxels else 1.0


def changes(given_zyx: IntLabel, output_zyx: IntLabel, truth_zyx: IntLabel) -> dict[int, Changes]:
    """Return what changed from given to output, judged by the truth, per class.

    One against the rest, so fixed + harmed is the number of voxels whose membership changed.
    """
    labels = (given_zyx, output_zyx, truth_zyx)
    found = {}
    for value, box in _class_boxes_of(labels, None):
        given, output, truth = (label_zyx[box.slices] == value for label_zyx in labels)
        changed = given != output
        fixed = _count(changed & (output == truth))
        found[value] = Changes(fixed, _count(changed) - fixed, _count(given | truth))
    return found


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
        for value in (sorted(set().union(*boxes)) if classes is None else classes)
    ]


def _count(mask: NDArray[np.bool_]) -> int:
    return int(np.count_nonzero(mask))
