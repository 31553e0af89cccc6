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
    hits = [np.flatnonzero(mask_zyx.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    if not hits[0].size:
        return None
    return Box.of((found[0] for found in hits), (found[-1] + 1 for found in hits))


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
            found[int(value)] = Box.of((s.start for s in where), (s.stop for s in where))
    return dict(sorted(found.items()))


def united(*boxes: Box | None) -> Box | None:
    """Return the smallest box that holds all given boxes; None stands for an empty one."""
    known = [box for box in boxes if box is not None]
    if not known:
        return None
    starts = zip(*(box.start_zyx for box in known), strict=True)
    stops = zip(*(box.stop_zyx for box in known), strict=True)
    return Box.of(map(min, starts), map(max, stops))
