"""Where a boundary lies against another one, as sums that merge over blocks.

Sums are integers, so that they merge in any order; with a halo of `offset_halo_vox` a block gives
for its core just what the whole case gives.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from raysegclean.errors import ConfigError
from raysegclean.voxels.geometry import Box, Index3, triple
from raysegclean.voxels.signed_distance import (
    Spacing,
    axis_ratios,
    distance_halo_vox,
    nearest_class,
    signed_distance,
)

__all__ = ["OFFSET_LIMIT_VOX", "OffsetSums", "along_band", "boundary_sums", "offset_halo_vox"]

_OFFSET_STEPS = 256
_BAND_VOX = 1.0
_SMOOTH_VOX, _SMOOTH_REACH_VOX = 1.5, 4
_FAR_VOX, _LEAST_WEIGHT = 4.0, 1e-3

OFFSET_LIMIT_VOX = 5.0
"""Default clip of both distances in `boundary_sums`: beyond it, no outline was merely shifted."""


def offset_halo_vox(
    spacing_mm: Spacing | None = None, limit_vox: float = OFFSET_LIMIT_VOX
) -> Index3:
    """Return the halo of `boundary_sums`: distances that are exact as far as they are smoothed."""
    halo_vox, reach_vox = distance_halo_vox(limit_vox, spacing_mm), _smooth_reach_vox(spacing_mm)
    return triple(a + b for a, b in zip(halo_vox, reach_vox, strict=True))


def _smooth_reach_vox(spacing_mm: Spacing | None) -> Index3:
    return triple(int(_SMOOTH_REACH_VOX / ratio) for ratio in axis_ratios(spacing_mm))


def along_band(
    offset_zyx: NDArray[np.float32], band_zyx: NDArray[np.bool_], spacing_mm: Spacing | None = None
) -> NDArray[np.float32]:
    """Return the mean offset of the band around each voxel: what a coarse look at it would see.

    Gaussian weights of 1.5 voxels of the finest axis, up to 4 away; offsets beyond 4 voxels count
    as 4, and 0 is returned where no band is near.
    """
    sigma = [_SMOOTH_VOX / ratio for ratio in axis_ratios(spacing_mm)]
    reach = _smooth_reach_vox(spacing_mm)

    def blurred(values: NDArray[np.float32]) -> NDArray[np.float32]:
        out = ndimage.gaussian_filter(values, sigma, mode="nearest", radius=reach)
        return np.asarray(out, np.float32)

    inside = band_zyx.astype(np.float32)
    near = np.clip(offset_zyx, -_FAR_VOX, _FAR_VOX) * inside
    mean = blurred(near) / np.maximum(blurred(inside), np.float32(_LEAST_WEIGHT))
    return np.asarray(mean, np.float32)


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
    offsets around it (`along_band`). Integers, so that merging is exact, associative and
    commutative.
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
        return total / (near * _OFFSET_STEPS) if near else float("nan")

    def spread_vox(self, *classes: int) -> float:
        """Return the standard deviation of the offset along the boundary; NaN without voxels."""
        _, near, _, squares, _ = self._together(classes)
        if not near:
            return float("nan")
        variance = squares / (near * _OFFSET_STEPS**2) - self.mean_vox(*classes) ** 2
        return sqrt(max(0.0, variance))

    def roughness_vox(self, *classes: int) -> float:
        """Return the spread of the offset from place to place, what varies slowly taken out.

        Networks draw smooth outlines, so this is how rough the given one is; NaN without voxels.
        """
        _, near, _, _, fine = self._together(classes)
        return sqrt(fine / (near * _OFFSET_STEPS**2)) if near else float("nan")

    def _together(self, classes: Sequence[int]) -> _Sums:
        together = _NONE
        for value in classes:
            together = _added(together, self.sums.get(value, _NONE))
        return together


def boundary_sums(
    given_zyx: NDArray[np.integer],
    predicted_zyx: NDArray[np.integer],
    *,
    classes: Sequence[int],
    core: Box,
    limit_vox: float = OFFSET_LIMIT_VOX,
    spacing_mm: Spacing | None = None,
) -> OffsetSums:
    """Sum the offset of the given boundary against the predicted one, per class.

    Over the voxels of `core` with |psi| < 1, where psi is the signed distance to the predicted
    foreground (the union of `classes`): phi - psi, phi being that of the given foreground, both
    clipped at `limit_vox`. A voxel counts for its nearest predicted class, so that interfaces
    between touching classes take no part.

    What is predicted `limit_vox` or more outside the given label counts as boundary, but has no
    offset: that is an object that nobody labelled, not an outline that was drawn elsewhere.

    Args:
        given_zyx: block with halo of the given label, class values.
        predicted_zyx: the same voxels of the prediction.
        classes: foreground values.
        core: the voxels to count, in the block's own coordinates.
        limit_vox: clip; the halo must be `offset_halo_vox(spacing_mm, limit_vox)` or reach the
            border of the case.
        spacing_mm: voxel edges (z, y, x); None means isotropic.
    """
    if limit_vox < 2.0:
        raise ConfigError(
            f"limit_vox must be at least 2 to see the band's classes, got {limit_vox}"
        )
    psi = signed_distance(np.isin(predicted_zyx, classes), spacing_mm, limit_vox=limit_vox)
    band = np.abs(psi) < _BAND_VOX
    if not band[core.slices].any():
        return OffsetSums.zero(classes)
    phi = signed_distance(np.isin(given_zyx, classes), spacing_mm, limit_vox=limit_vox)
    near = band & (phi > -limit_vox)
    offset = phi - psi
    fine = np.clip(offset, -_FAR_VOX, _FAR_VOX) - along_band(offset, near, spacing_mm)
    nearest = nearest_class(predicted_zyx, classes, spacing_mm=spacing_mm, limit_vox=limit_vox)

    def counted(part: NDArray[Any]) -> NDArray[Any]:
        return part[core.slices][band[core.slices]]

    near_n, class_n = counted(near), counted(nearest)
    steps_n, rough_n = (
        np.rint(counted(part) * _OFFSET_STEPS).astype(np.int64) for part in (offset, fine)
    )
    result = {}
    for value in classes:
        mine = class_n == value
        q, r = steps_n[mine & near_n], rough_n[mine & near_n]
        squares, fine = int((q * q).sum()), int((r * r).sum())
        result[int(value)] = (int(mine.sum()), int(q.size), int(q.sum()), squares, fine)
    return OffsetSums(result)
