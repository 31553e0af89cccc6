"""How far one boundary lies off another, per class, as integers that merge in any order.

Apart from how they are measured (`voxels.contour_offset`), because who only reads records needs no
scipy, whose import takes most of a second.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

__all__ = ["OFFSET_STEPS", "OffsetSums"]

OFFSET_STEPS = 256
"""Steps of a voxel in which offsets are counted."""

_Sums = tuple[int, int, int, int, int]
_NONE: _Sums = (0, 0, 0, 0, 0)


def _added(one: _Sums, other: _Sums) -> _Sums:
    a, b, c, d, e = (x + y for x, y in zip(one, other, strict=True))
    return a, b, c, d, e


@dataclass(frozen=True)
class OffsetSums:
    """How far the given boundary lies outside the predicted one: a mergeable record per class.

    `sums[c] = (boundary, near, total, squares, fine)`: the number of predicted boundary voxels, and
    of those that the given label comes near to; over these the sum of q, of q * q, and of r * r,
    where q is the offset of one voxel in steps of 1/256 voxel, and r is what it differs by from the
    offsets around it (`contour_offset.along_band`). Integers, so that merging is exact, associative
    and commutative.
    """

    sums: Mapping[int, _Sums]

    @classmethod
    def zero(cls, classes: Sequence[int]) -> "OffsetSums":
        """Return the neutral element for these classes."""
        return cls({int(value): _NONE for value in classes})

    def merge(self, other: "OffsetSums") -> "OffsetSums":
        """Return the record of both parts together."""
        merged = dict(self.sums)
        for value, theirs in other.sums.items():
            merged[value] = _added(merged.get(value, _NONE), theirs)
        return OffsetSums(merged)

    def boundary_vox(self, *classes: int) -> int:
        """Return the number of predicted boundary voxels of these classes together."""
        return self._together(classes)[0]

    def mean_vox(self, *classes: int) -> float:
        """Return the mean offset in voxels of the finest axis; positive: the given label is larger.

        NaN where the given label comes near to nothing that is predicted, or nothing is predicted.
        """
        _, near, total, _, _ = self._together(classes)
        return total / (near * OFFSET_STEPS) if near else float("nan")

    def spread_vox(self, *classes: int) -> float:
        """Return the standard deviation of the offset along the boundary; NaN without voxels."""
        _, near, _, squares, _ = self._together(classes)
        if not near:
            return float("nan")
        variance = squares / (near * OFFSET_STEPS**2) - self.mean_vox(*classes) ** 2
        return sqrt(max(0.0, variance))

    def roughness_vox(self, *classes: int) -> float:
        """Return the spread of the offset from place to place, what varies slowly taken out.

        Networks draw smooth outlines, so this is how rough the given one is; NaN without voxels.
        """
        _, near, _, _, fine = self._together(classes)
        return sqrt(fine / (near * OFFSET_STEPS**2)) if near else float("nan")

    def _together(self, classes: Sequence[int]) -> _Sums:
        together = _NONE
        for value in classes:
            together = _added(together, self.sums.get(value, _NONE))
        return together
