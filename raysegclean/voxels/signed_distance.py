"""Signed distances to the boundary of a class, and how to move it, whatever the cut into blocks.

Guaranteed: a block with a halo of `distance_halo_vox` gives, inside its core, bit for bit what the
whole case gives, for any cut of the case into blocks. Two things make that exact: distances are
clipped at a limit, and axis ratios are rounded to 1/64 (squared distances are then exact in
float32).

Unit: one voxel of the finest axis. For isotropic cases that is a voxel; for anisotropic ones it is
`min(spacing_mm)` millimetres (signed distances follow the spacing), so that a policy threshold of
"0.4 voxel" means the same share of the finest resolution in every case. A stack of one slice is
measured in its plane, because the border of the array is not a boundary.
"""

from collections.abc import Mapping, Sequence
from math import ceil, sqrt

import edt
import numpy as np
from numpy.typing import NDArray

from raysegclean.errors import ConfigError
from raysegclean.voxels.boxes import bounding_box
from raysegclean.voxels.geometry import Box, Index3, triple

__all__ = [
    "axis_ratios",
    "distance_halo_vox",
    "fine_voxel_mm",
    "nearest_class",
    "shift_halo_vox",
    "shift_label",
    "signed_distance",
]

Spacing = tuple[float, float, float]
_RATIO_STEPS = 64


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
    return triple(round(v / min(edges) * _RATIO_STEPS) / _RATIO_STEPS for v in edges)


def distance_halo_vox(limit_vox: float, spacing_mm: Spacing | None = None) -> Index3:
    """Return the halo that makes distances clipped at `limit_vox` exact inside a block's core."""
    return triple(int((limit_vox + 0.5) / ratio) for ratio in axis_ratios(spacing_mm))


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
    box = bounding_box(mask)
    if box is not None:  # further away the distance is -limit
        # One voxel more, so that the background that touches the box is seen whatever the reach is.
        reach_vox = triple(n + 1 for n in distance_halo_vox(limit_vox, spacing_mm))
        box = box.grown(reach_vox).clipped(Box.whole(triple(mask.shape)))
        part = np.ascontiguousarray(mask[box.slices])
        signed = edt.sdf(part, anisotropy=ratios, parallel=1)
        signed -= np.copysign(np.float32(0.5), signed)
        out[box.slices] = np.clip(signed, -limit_vox, limit_vox)
    return out


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
