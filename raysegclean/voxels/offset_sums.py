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

_NONE = (0, 0, 0, 0, 0)


@dataclass(frozen=True)
class OffsetSums:
    """How far the given boundary lies outside the predicted one: a mergeable record per class.

    `sums[c] = (boundary, near, total, squares, fine)`: the number of predicted boundary voxels, and
    of those that the given label comes near to; over these the sum of q, of q * q, and of r * r,
    where q is the offset of one voxel in steps of 1/256 voxel, and r is what it differs by from the
    offsets around it (`contour_offset.along_band`). Integers, so that merging is exact, associative
    and commutative.
    """

    sums: Mapping[int, tuple[int, int, int, int, int]]

    @classmethod
    def zero(cls, classes: Sequence[int]) -> "OffsetSums":
        """Return the neutral element for these classes."""
        return cls({int(value): _NONE for value in classes})

    def merge(self, other: "OffsetSums") -> "OffsetSums":
        """Return the record of both parts together."""
        parts = (self, other)
        return OffsetSums({c: _added(parts, [c]) for c in {**self.sums, **other.sums}})

    def boundary_vox(self, *classes: int) -> int:
        """Return the number of predicted boundary voxels of these classes together."""
        return _added([self], classes)[0]

    def mean_vox(self, *classes: int) -> float:
        """Return the mean offset in voxels of the finest axis; positive: the given label is larger.

        NaN where the given label comes near to nothing that is predicted, or nothing is predicted.
        """
        _, near, total, _, _ = _added([self], classes)
        return total / (near * OFFSET_STEPS) if near else float("nan")

    def spread_vox(self, *classes: int) -> float:
        """Return the standard deviation of the offset along the boundary; NaN without voxels."""
        _, near, _, squares, _ = _added([self], classes)
        if not near:
            return float("nan")
        variance = squares / (near * OFFSET_STEPS**2) - self.mean_vox(*classes) ** 2
        return sqrt(max(0.0, variance))

    def roughness_vox(self, *classes: int) -> float:
        """Return the spread of the offset from place to place, what varies slowly taken out.

        Networks draw smooth outlines, so this is how rough the given one is; NaN without voxels.
        """
        _, near, _, _, fine = _added([self], classes)
        return sqrt(fine / (near * OFFSET_STEPS**2)) if near else float("nan")


def _added(parts: Sequence[OffsetSums], classes: Sequence[int]) -> tuple[int, int, int, int, int]:
    """Return the sums of all parts and of all these classes."""
    rows = [part.sums.get(value, _NONE) for part in parts for value in classes]
    boundary, near, total, squares, fine = map(sum, zip(_NONE, *rows, strict=True))
    return boundary, near, total, squares, fine
