"""All measures of one label against one truth at once, so that each surface is built once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raysegclean.evaluate.metrics import Overlap, class_masks
from raysegclean.voxels.boxes import IntLabel
from raysegclean.voxels.surface import Spacing, surface_distances

__all__ = ["TruthScore", "truth_scores"]


@dataclass(frozen=True)
class TruthScore:
    """How well one class of one case matches the truth (definitions: `evaluate.metrics`)."""

    label_value: int
    label_voxels: int
    truth_voxels: int
    dice: float
    hd95_mm: float
    """Infinite where the class is in one of the two only."""
    nsd: float
    """Normalised surface Dice at a tolerance of one voxel along any axis."""


def truth_scores(
    label_zyx: IntLabel,
    truth_zyx: IntLabel,
    spacing_mm: Spacing,
    *,
    classes: Sequence[int] | None = None,
) -> list[TruthScore]:
    """Return the scores of every class in either label, sorted; axes z, y, x.

    Raises InputError when the shapes differ.
    """
    flat = label_zyx.shape[0] == 1
    isotropic = len(set(spacing_mm)) == 1
    scores = []
    for value, label, truth in class_masks(label_zyx, truth_zyx, classes):
        counts = Overlap(*(int(np.count_nonzero(m)) for m in (label, truth, label & truth)))
        in_mm = surface_distances(label, truth, spacing_mm, flat=flat)
        if isotropic:
            near = in_mm.overlap(spacing_mm[0])
        else:
            near = surface_distances(label, truth, (1.0, 1.0, 1.0), flat=flat).overlap(1.0)
        scores.append(
            TruthScore(value, counts.a, counts.b, counts.dice, in_mm.hausdorff(0.95), near)
        )
    return scores
