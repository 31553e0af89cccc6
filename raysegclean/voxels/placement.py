"""Where voxels lie in space, and whether a label lies on its image.

One measure for spacing, translation and orientation alike: how far the corners of the image move,
in voxels of the image. Entries of a matrix are not compared: a small one moves the far corner of a
large image much, and a large one that of a thin image little.
"""

from itertools import product

import numpy as np
from numpy.typing import NDArray

from raysegclean.voxels.geometry import Index3

__all__ = ["TOLERANCE_VOX", "Affine", "affine_of", "displacement", "same_place"]

Affine = NDArray[np.float64]
"""4 x 4, from voxels x, y, z to millimetres."""

TOLERANCE_VOX = 0.1
"""So far apart a corner of label and image may lie: rounded headers move it less."""

_TURNED = 1e-3


def affine_of(
    spacing_mm: tuple[float, float, float], origin_mm: tuple[float, float, float]
) -> Affine:
    """Return the affine of voxels without rotation, both given as z, y, x."""
    affine = np.diag([*spacing_mm[::-1], 1.0])
    affine[:3, 3] = origin_mm[::-1]
    return affine


def displacement(image: Affine, label: Affine, shape_zyx: Index3) -> float:
    """Return how many voxels apart the furthest corner is, along its worst axis.

    A corner is the middle of a corner voxel of the image, which has `shape_zyx` voxels.
    """
    ends = [(0, n - 1) for n in shape_zyx[::-1]]
    corners = np.array([(*corner, 1) for corner in product(*ends)], np.float64)
    apart_mm = corners @ (label - image)[:3].T
    return float(np.abs(np.linalg.solve(image[:3, :3], apart_mm.T)).max())


def same_place(image: Affine, label: Affine, shape_zyx: Index3) -> str:
    """Return how a label lies elsewhere than its image, in words; empty where it lies on it."""
    apart_vox = displacement(image, label, shape_zyx)
    if apart_vox <= TOLERANCE_VOX:
        return ""
    mine, other = (np.linalg.norm(affine[:3, :3], axis=0) for affine in (label, image))
    if displacement(_with_spacing(label, other), label, shape_zyx) > TOLERANCE_VOX:
        how = f"its spacing is {_mm(mine)}, the image's {_mm(other)} mm (z, y, x)"
    elif not np.allclose(label[:3, :3] / mine, image[:3, :3] / other, atol=_TURNED):
        how = "its axes point another way than the image's"
    else:
        moved = " x ".join(f"{edge:.4g}" for edge in (label - image)[:3, 3][::-1])
        how = f"its origin is {moved} mm (z, y, x) away from the image's"
    return f"{how}, so that corners lie {apart_vox:.3g} voxels apart"


def _with_spacing(affine: Affine, edges_mm: NDArray[np.float64]) -> Affine:
    """Return an affine with other voxel sizes x, y, z."""
    scaled = affine.copy()
    scaled[:3, :3] *= edges_mm / np.linalg.norm(affine[:3, :3], axis=0)
    return scaled


def _mm(edges_xyz: NDArray[np.float64]) -> str:
    return " x ".join(f"{edge:.4g}" for edge in edges_xyz[::-1])
