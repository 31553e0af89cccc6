"""2D archives: one slice of each case of a 3D archive, as the papers that work on images have."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from raysegclean.simulate.noise import case_rng
from raysegclean.store.archive import Archive, write_case

__all__ = ["EDGE_PIXELS", "write_slices"]

EDGE_PIXELS = 256
"""Edge of an image, as in Co-Seg."""
FIELD_MM = 336.0
"""Edge of its field of view: a body."""
LEAST_SHARE = 0.5
"""A slice is drawn among those that have this share of the largest slice of the class."""
SMOOTH_VOX = 0.7
"""Spread of what takes the steps of coarse voxels out of an outline that is drawn finer."""

Plane = NDArray[np.float32]


def write_slices(source: Archive, target: Archive, label: str, value: int, seed: int) -> None:
    """Write an axial slice of 256 x 256 pixels of each case, `value` as class 1, all else 0.

    Which slice depends on the seed and the case alone. What is there is reused.
    """
    for case in source.case_ids():
        if target.at(case).head("zarr.json") is not None:
            continue
        mask_zyx = source.label(case, label).read_all() == value
        z = _drawn(mask_zyx, case_rng(seed, case))
        image_yx, mask_yx = source.image(case).read_all()[z], mask_zyx[z]
        _, *edges_mm = source.spacing_mm(case)
        smooth = ndimage.gaussian_filter(mask_yx.astype(np.float32), SMOOTH_VOX)
        drawn = _finer(smooth, edges_mm, 0.0) > 0.5
        image = _finer(image_yx.astype(np.float32), edges_mm, float(image_yx.min()))
        pixel_mm = FIELD_MM / EDGE_PIXELS
        write_case(
            target,
            case,
            np.rint(image).astype(np.int16)[None],
            {label: drawn.astype(np.uint8)[None]},
            spacing_mm=(pixel_mm, pixel_mm, pixel_mm),
            attributes={"patient": case},
        )


def _drawn(mask_zyx: NDArray[np.bool_], rng: np.random.Generator) -> int:
    pixels = mask_zyx.sum(axis=(1, 2))
    return int(rng.choice(np.flatnonzero(pixels >= LEAST_SHARE * pixels.max())))


def _finer(plane_yx: Plane, edges_mm: list[float], outside: float) -> Plane:
    """Return the plane on the pixels of a square field of view around its centre."""
    from_centre_mm = (np.arange(EDGE_PIXELS) - (EDGE_PIXELS - 1) / 2) * FIELD_MM / EDGE_PIXELS
    where = [
        from_centre_mm / edge + (n - 1) / 2
        for edge, n in zip(edges_mm, plane_yx.shape, strict=True)
    ]
    grid = np.meshgrid(*where, indexing="ij")
    found = ndimage.map_coordinates(plane_yx, grid, order=1, mode="constant", cval=outside)
    return np.asarray(found, np.float32)
