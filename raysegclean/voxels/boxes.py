"""Where the classes of a label lie: the boxes that keep every later step small.

Organs fill a few percent of a CT, so metrics and noise work inside the box of one class instead of
on the whole volume. Values are kept as they are; nothing here assumes that they are dense.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from raysegclean.voxels.geometry import Box

__all__ = ["IntLabel", "bounding_box", "class_boxes", "united"]

IntLabel = NDArray[np.integer[Any]]
"""A label volume: integers, axes z, y, x, 0 is background."""

MAX_DENSE = 65_535
"""Above this value the labels are renumbered first: `find_objects` allocates up to the maximum."""


def bounding_box(mask_zyx: NDArray[np.bool_]) -> Box | None:
    """Return the smallest box that holds every true voxel, or None where there is none."""
    spans = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        hits = np.flatnonzero(mask_zyx.any(axis=others))
        if hits.size == 0:
            return None
        spans.append((int(hits[0]), int(hits[-1]) + 1))
    (z0, z1), (y0, y1), (x0, x1) = spans
    return Box((z0, y0, x0), (z1, y1, x1))


def class_boxes(label_zyx: IntLabel) -> dict[int, Box]:
    """Return the bounding box of every class that is present, background left out, sorted."""
    if label_zyx.size == 0:
        return {}
    values = np.arange(1, MAX_DENSE + 1)
    dense_zyx: IntLabel = label_zyx
    if int(label_zyx.min()) < 0 or int(label_zyx.max()) > MAX_DENSE:
        values, inverse = np.unique(label_zyx, return_inverse=True)
        dense_zyx = inverse.reshape(label_zyx.shape) + 1
    found = {}
    for value, where in zip(values, ndimage.find_objects(dense_zyx), strict=False):
        if value != 0 and where is not None:
            z, y, x = where
            found[int(value)] = Box((z.start, y.start, x.start), (z.stop, y.stop, x.stop))
    return dict(sorted(found.items()))


def united(*boxes: Box | None) -> Box | None:
    """Return the smallest box that holds all given boxes; None stands for an empty one."""
    known = [box for box in boxes if box is not None]
    if not known:
        return None
    starts = np.min([box.start_zyx for box in known], axis=0)
    stops = np.max([box.stop_zyx for box in known], axis=0)
    z0, y0, x0 = map(int, starts)
    z1, y1, x1 = map(int, stops)
    return Box((z0, y0, x0), (z1, y1, x1))
