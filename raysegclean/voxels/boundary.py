"""Where a boundary lies against another one, and how to move it.

Guaranteed: a block with a halo of `distance_halo_vox` gives, inside its core, bit for bit what the
whole case gives, for any cut of the case into blocks. Three things make that exact: distances are
clipped at a limit, axis ratios are rounded to 1/64 (squared distances are then exact in float32),
and sums are integers, so that they merge in any order.

Unit: one voxel of the finest axis. For isotropic cases that is a voxel; for anisotropic ones it is
`min(spacing_mm)` millimetres (signed distances follow the spacing), so that a policy threshold of
"0.4 voxel" means the same share of the finest resolution in every case. A stack of one slice is
measured in its plane, because the border of the array is not a boundary.

Not guaranteed: that a class survives a shift. A block cannot see the rest of its class; whoever
settles the case has to guard its last component.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Any

import edt
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from raysegclean.errors import ConfigError
from raysegclean.voxels.geometry import Box, Index3

__all__ = [
    "OFFSET_LIMIT_VOX",
    "OffsetSums",
    "along_band",
    "axis_ratios",
    "boundary_sums",
    "distance_halo_vox",
    "fine_voxel_mm",
    "nearest_class",
    "offset_halo_vox",
    "shift_halo_vox",
    "shift_label",
    "signed_distance",
]

Spacing = tuple[float, float, float]
_RATIO_STEPS = 64
_OFFSET_STEPS = 256
_BAND_VOX = 1.0
_SMOOTH_VOX, _SMOOTH_REACH_VOX = 1.5, 4
_FAR_VOX, _LEAST_WEIGHT = 4.0, 1e-3
OFFSET_LIMIT_VOX = 5.0
"""Default clip of both distances in `boundary_sums`: beyond it, no outline was merely shifted."""


def fine_voxel_mm(spacing_mm: Spacing | None) -> float:
    """Return the length in mm of this module's unit; 1.0 when no spacing is given."""
    return 1.0 if spacing_mm is None else float(min(spacing_mm))


def axis_ratios(spacing_mm: Spacing | None) -> Spacing:
    """Return the voxel edges (z, y, x) in units of the finest edge, rounded to 1/64.

    >>> axis_ratios((5.0, 0.79, 0.79))
    (6.328125, 1.0, 1.0)
    """
    if spacing_mm is None:
        return 1.0, 1.0, 1.0
    edges = [float(v) for v in spacing_mm]
    if len(edges) != 3 or not all(np.isfinite(v) and v > 0 for v in edges):
        raise ConfigError(
            f"spacing_mm must be three positive lengths (z, y, x), got {spacing_mm!r}; "
            "correct the spacing of this case in the archive"
        )
    z, y, x = (round(v / min(edges) * _RATIO_STEPS) / _RATIO_STEPS for v in edges)
    return z, y, x


def distance_halo_vox(limit_vox: float, spacing_mm: Spacing | None = None) -> Index3:
    """Return the halo that makes distances clipped at `limit_vox` exact inside a block's core."""
    z, y, x = (int((limit_vox + 0.5) / ratio) for ratio in axis_ratios(spacing_mm))
    return z, y, x


def offset_halo_vox(
    spacing_mm: Spacing | None = None, limit_vox: float = OFFSET_LIMIT_VOX
) -> Index3:
    """Return the halo of `boundary_sums`: distances that are exact as far as they are smoothed."""
    z, y, x = distance_halo_vox(limit_vox, spacing_mm)
    dz, dy, dx = _smooth_reach_vox(spacing_mm)
    return z + dz, y + dy, x + dx


def _smooth_reach_vox(spacing_mm: Spacing | None) -> Index3:
    z, y, x = (int(_SMOOTH_REACH_VOX / ratio) for ratio in axis_ratios(spacing_mm))
    return z, y, x


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


def signed_distance(
    mask_zyx: NDArray[np.bool_],
    spacing_mm: Spacing | None = None,
    *,
    limit_vox: float | None = None,
) -> NDArray[np.float32]:
    """Return the signed Euclidean distance to the boundary of a mask, positive inside.

    Half-voxel convention: inside EDT - 1/2, outside -(EDT - 1/2), where EDT is the
    distance to the nearest voxel centre on the other side; so face neighbours across a boundary
    have +1/2 and -1/2.

    Args:
        mask_zyx: the mask, shape (z, y, x).
        spacing_mm: voxel edges (z, y, x); None means isotropic.
        limit_vox: values are clipped to [-limit, +limit]. Default: the diagonal of the array, which
            clips nothing that has a boundary. An empty mask gives -limit everywhere and a full mask
            +limit, because no boundary was seen within the limit.

    Returns:
        float32 (z, y, x), in voxels of the finest axis.
    """
    mask = np.ascontiguousarray(mask_zyx, dtype=bool)
    if mask.ndim != 3:
        raise ConfigError(f"mask_zyx must have axes (z, y, x), got shape {mask.shape}")
    ratios = axis_ratios(spacing_mm)
    if limit_vox is None:
        limit_vox = sqrt(sum((n * r) ** 2 for n, r in zip(mask.shape, ratios, strict=True))) + 1.0
    if not limit_vox > 0:
        raise ConfigError(f"limit_vox must be positive, got {limit_vox}")
    out = np.full(mask.shape, -limit_vox, dtype=np.float32)
    box = _neighbourhood(mask, distance_halo_vox(limit_vox, spacing_mm))
    if box is not None:
        part = np.ascontiguousarray(mask[box.slices])
        inside = edt.edt(part, anisotropy=ratios, parallel=1)
        outside = edt.edt(~part, anisotropy=ratios, parallel=1)
        signed = np.where(part, inside - np.float32(0.5), np.float32(0.5) - outside)
        out[box.slices] = np.clip(signed, -limit_vox, limit_vox)
    return out


def _neighbourhood(mask_zyx: NDArray[np.bool_], reach_vox: Index3) -> Box | None:
    """Return the mask's bounding box grown by the reach; only there is the distance not -limit."""
    start, stop = [], []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        used = np.flatnonzero(mask_zyx.any(axis=others))
        if used.size == 0:
            return None
        start.append(int(used[0]))
        stop.append(int(used[-1]) + 1)
    # One voxel more, so that the background that touches the box is seen whatever the reach is.
    reach = (reach_vox[0] + 1, reach_vox[1] + 1, reach_vox[2] + 1)
    box = Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
    z, y, x = mask_zyx.shape
    return box.grown(reach).clipped(Box.whole((z, y, x)))


def nearest_class(
    label_zyx: NDArray[np.integer],
    classes: Sequence[int],
    *,
    spacing_mm: Spacing | None = None,
    limit_vox: float,
) -> NDArray[np.int64]:
    """Return the class with the largest signed distance at each voxel (ties: first in `classes`).

    Inside a class that is the class itself. Where every class is further than `limit_vox` the
    answer is 0.
    """
    best = np.full(label_zyx.shape, -limit_vox, dtype=np.float32)
    nearest = np.zeros(label_zyx.shape, dtype=np.int64)
    for value in classes:
        distance = signed_distance(label_zyx == value, spacing_mm, limit_vox=limit_vox)
        closer = distance > best
        nearest[closer] = value
        best[closer] = distance[closer]
    return nearest


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
        result[int(value)] = (
            int(mine.sum()),
            int(q.size),
            int(q.sum()),
            int((q * q).sum()),
            int((r * r).sum()),
        )
    return OffsetSums(result)


def shift_halo_vox(
    shift_by_class: Mapping[int, float], spacing_mm: Spacing | None = None
) -> Index3:
    """Return the halo with which `shift_label` on a block equals `shift_label` on the case."""
    return distance_halo_vox(_shift_limit(shift_by_class), spacing_mm)


def _shift_limit(shift_by_class: Mapping[int, float]) -> float:
    amounts = [float(v) for v in shift_by_class.values()]
    if not all(np.isfinite(amounts)):
        raise ConfigError(f"every shift must be a finite number of voxels, got {shift_by_class!r}")
    return ceil(max((abs(v) for v in amounts), default=0.0)) + 1.0


def shift_label(
    label_zyx: NDArray[np.integer],
    shift_by_class: Mapping[int, float],
    *,
    classes: Sequence[int],
    spacing_mm: Spacing | None = None,
) -> NDArray[np.integer]:
    """Move the outer boundary near each class inwards (shift > 0) or outwards (shift < 0).

    A voxel is foreground afterwards when phi_fg - shift[c] > 0, with c the class of largest phi_c;
    it then takes class c. Interfaces between touching classes stay. Classes without an
    entry are not moved. Values outside `classes` are never changed and never taken.

    Args:
        label_zyx: a case, or a block with a halo of `shift_halo_vox` of which the core is used.
        shift_by_class: class value -> shift in voxels of the finest axis.
        classes: all foreground values, moved or not.
        spacing_mm: voxel edges (z, y, x); None means isotropic. One slice is moved in its plane.

    Returns:
        A new array of the label's dtype.
    """
    moved = {int(c): float(s) for c, s in shift_by_class.items() if s != 0.0}
    out = np.array(label_zyx)
    if not moved:
        return out
    if not set(moved) <= {int(c) for c in classes}:
        raise ConfigError(f"shifts for {sorted(moved)} but the classes are {sorted(classes)}")
    limit = _shift_limit(moved)
    known = np.isin(label_zyx, classes)
    phi = signed_distance(known, spacing_mm, limit_vox=limit)
    nearest = nearest_class(label_zyx, classes, spacing_mm=spacing_mm, limit_vox=limit)
    for value, shift in moved.items():
        mine = nearest == value
        out[mine & known & (phi - np.float32(shift) <= 0)] = 0
        out[mine & (label_zyx == 0) & (phi - np.float32(shift) > 0)] = value
    return out
