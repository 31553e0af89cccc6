"""Where a boundary lies against another one, as sums that merge over blocks.

Sums are integers, so that they merge in any order; with a halo of `offset_halo_vox` a block gives
for its core just what the whole case gives.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from raysegclean.errors import ConfigError
from raysegclean.voxels.channels import UNKNOWN
from raysegclean.voxels.geometry import Box, Index3, triple
from raysegclean.voxels.offset_sums import OFFSET_STEPS, OffsetSums
from raysegclean.voxels.signed_distance import (
    Spacing,
    axis_ratios,
    distance_halo_vox,
    nearest_class,
    signed_distance,
)

__all__ = ["OFFSET_LIMIT_VOX", "along_band", "boundary_sums", "offset_halo_vox"]

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
    offset: that is an object that nobody labelled, not an outline that was drawn elsewhere. Voxels
    that touch an `UNKNOWN` one count for nothing: there an outline ends that nobody drew.

    Args:
        given_zyx: block with halo of the given label, channels.
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
    band = (np.abs(psi) < _BAND_VOX) & _drawn(given_zyx, predicted_zyx)
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
        np.rint(counted(part) * OFFSET_STEPS).astype(np.int64) for part in (offset, fine)
    )
    result = {}
    for value in classes:
        mine = class_n == value
        q, r = steps_n[mine & near_n], rough_n[mine & near_n]
        squares, fine = int((q * q).sum()), int((r * r).sum())
        result[int(value)] = (int(mine.sum()), int(q.size), int(q.sum()), squares, fine)
    return OffsetSums(result)


def _drawn(
    given_zyx: NDArray[np.integer], predicted_zyx: NDArray[np.integer]
) -> NDArray[np.bool_] | bool:
    """Return where no voxel of either label touches one that is `UNKNOWN`."""
    unknown = (given_zyx == UNKNOWN) | (predicted_zyx == UNKNOWN)
    if not unknown.any():
        return True
    # A voxel of the band has the other side of the outline at a face or an edge.
    touching = ndimage.generate_binary_structure(3, 2)
    return np.asarray(~ndimage.binary_dilation(unknown, touching), np.bool_)
