"""Which way is left: common axes for all cases of an archive, from their affines.

Where every case has an affine, positions are in RAS millimetres, so a case that is stored the other
way round, and says so, is no different from the others. Else the axes are those of the voxels.
"""

from collections.abc import Sequence
from itertools import permutations

import numpy as np

from raysegclean.evidence.robust import Values
from raysegclean.qc.label_statistics import LabelStatistics

__all__ = ["Frame", "orientation", "spacing_of_affine"]

_RAS_WORDS = (("left", "right"), ("back", "front"), ("down", "up"))
_AXIS_WORDS = tuple((f"toward low {axis}", f"toward high {axis}") for axis in "xyz")
_CODES = ("LR", "PA", "IS")


class Frame:
    """The axes on which the cases of one archive are compared: x, y, z."""

    def __init__(self, cases: Sequence[LabelStatistics]) -> None:
        self.anatomical = all(case.affine is not None for case in cases)
        self.words = _RAS_WORDS if self.anatomical else _AXIS_WORDS
        """For each axis, what its low and its high end are called."""

    def centre_mm(self, case: LabelStatistics, centres_zyx: Values) -> Values:
        """Return positions x, y, z (n, 3) in millimetres of voxels z, y, x (n, 3).

        Only differences within a case mean much.
        """
        centres = centres_zyx[:, ::-1]
        if self.anatomical:
            affine = np.array(case.affine)
            return np.asarray(centres @ affine[:3, :3].T + affine[:3, 3])
        return np.asarray(centres * case.spacing_mm[::-1])

    def is_inside(self, case: LabelStatistics, centre_mm: Values) -> bool:
        """Tell whether a position of `centre_mm` (3) lies in the image of the case."""
        if self.anatomical:
            affine = np.array(case.affine)
            voxel = np.linalg.solve(affine[:3, :3], centre_mm - affine[:3, 3])
        else:
            voxel = centre_mm / case.spacing_mm[::-1]
        return bool(((voxel >= -0.5) & (voxel < np.array(case.shape_zyx[::-1]) - 0.5)).all())

    def place(self, case: LabelStatistics, centres_zyx: Values) -> Values:
        """Return where in its image positions lie along x, y, z (n, 3), from 0 to 1."""
        share = (centres_zyx[:, ::-1] + 0.5) / case.shape_zyx[::-1]
        if not self.anatomical:
            return np.asarray(share)
        axes, signs = _axes(np.array(case.affine))
        out = np.empty_like(share)
        out[:, list(axes)] = np.where(np.array(signs) > 0, share, 1 - share)
        return out


def orientation(affine: tuple[tuple[float, ...], ...]) -> str:
    """Return where voxel axes x, y, z point, as nibabel does.

    >>> orientation(((-1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 2.0, 0.0)))
    'LAS'
    """
    axes, signs = _axes(np.array(affine))
    return "".join(_CODES[axis][sign > 0] for axis, sign in zip(axes, signs, strict=True))


def spacing_of_affine(affine: tuple[tuple[float, ...], ...]) -> tuple[float, float, float]:
    """Return the voxel edges z, y, x that an affine says."""
    x, y, z = np.linalg.norm(np.array(affine)[:3, :3], axis=0).tolist()
    return z, y, x


def _axes(affine: Values) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return for voxel axes x, y, z the world axis that each follows most, and the sign."""
    norms = np.linalg.norm(affine[:3, :3], axis=0)
    cosines = affine[:3, :3] / np.where(norms > 0, norms, 1.0)
    best = max(permutations(range(3)), key=lambda p: sum(abs(cosines[p[j], j]) for j in range(3)))
    return best, tuple(1 if cosines[best[j], j] >= 0 else -1 for j in range(3))
