"""Outlines drawn with a few clicks: every slice of every component becomes a polygon.

Vertices lie on the outline at equal distances along it, from a random start (the vertex placement
of Redekop & Chernyavskiy 2021 is not published; this one is ours). Fewer vertices cut off convex
parts and fill hollows, which is how hurried outlines go wrong.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.draw import polygon as filled_polygon
from skimage.measure import find_contours

from raysegclean.core.boxes import IntLabel, class_boxes
from raysegclean.core.surface import Spacing
from raysegclean.errors import ConfigError

__all__ = ["polygon"]

TINY_PIXELS = 9
"""Components of fewer pixels in a slice stay as they are."""


def polygon(
    label_zyx: IntLabel,
    rng: np.random.Generator,
    spacing_mm: Spacing = (1.0, 1.0, 1.0),
    *,
    vertices: int = 7,
) -> IntLabel:
    """Replace the outline of each component (8-connected, per class and slice) by a polygon.

    Holes are filled. Where polygons overlap, a voxel keeps its class if one of them has it, else
    the lower class wins. Components of fewer than 9 pixels stay, and so does a class that would
    vanish. Length along the outline is measured in mm. Raises ConfigError below 3 vertices.
    """
    if vertices < 3:
        raise ConfigError(f"A polygon needs at least 3 vertices, got {vertices}.")
    result = np.zeros_like(label_zyx)
    boxes = class_boxes(label_zyx)
    for value, box in boxes.items():
        for given_yx, drawn_yx in zip(label_zyx[box.slices], result[box.slices], strict=True):
            for mask_yx, corner in _components(given_yx == value):
                rows, columns = (_polygon_of(mask_yx, vertices, rng, spacing_mm) + corner).T
                free = (drawn_yx[rows, columns] == 0) | (given_yx[rows, columns] == value)
                drawn_yx[rows[free], columns[free]] = value
    while left_out := boxes.keys() - class_boxes(result).keys():
        given_back = np.isin(label_zyx, list(left_out))
        result[given_back] = label_zyx[given_back]
    return result


def _components(
    mask_yx: NDArray[np.bool_],
) -> list[tuple[NDArray[np.bool_], NDArray[np.intp]]]:
    """Return (cut out mask, its first row and column) of each 8-connected component."""
    if not mask_yx.any():
        return []
    ids, _ = ndimage.label(mask_yx, np.ones((3, 3)))
    return [
        (ids[rows, columns] == one, np.array([rows.start, columns.start], np.intp))
        for one, (rows, columns) in enumerate(ndimage.find_objects(ids), start=1)
    ]


def _polygon_of(
    mask_yx: NDArray[np.bool_], vertices: int, rng: np.random.Generator, spacing_mm: Spacing
) -> NDArray[np.intp]:
    """Return the pixels of the mask (row, column) that its polygon covers; never none."""
    phase = rng.random()  # drawn for tiny components too, so that they do not move the others
    pixels = np.argwhere(mask_yx)
    if len(pixels) < TINY_PIXELS:
        return pixels
    padded = np.pad(mask_yx, 1).astype(np.float32)
    outlines = find_contours(padded, 0.5)  # type: ignore[no-untyped-call]
    outline = max(outlines, key=len) - 1
    steps = np.hypot(*(np.diff(outline, axis=0) * spacing_mm[1:]).T)
    length = np.concatenate([[0.0], np.cumsum(steps)])
    stops = (phase + np.arange(vertices)) / vertices * length[-1]
    rows, columns = (np.interp(stops, length, outline[:, axis]) for axis in range(2))
    covered = np.stack(
        filled_polygon(rows, columns, shape=mask_yx.shape),  # type: ignore[no-untyped-call]
        axis=1,
    )
    return covered if len(covered) else pixels
