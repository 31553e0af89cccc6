"""How to move a boundary inwards or outwards."""

from collections.abc import Mapping, Sequence
from math import ceil

import numpy as np
from numpy.typing import NDArray

from raysegclean.errors import ConfigError
from raysegclean.voxels.geometry import Index3
from raysegclean.voxels.signed_distance import (
    Spacing,
    distance_halo_vox,
    nearest_class,
    signed_distance,
)

__all__ = ["shift_halo_vox", "shift_label"]


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
