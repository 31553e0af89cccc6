"""Outlines drawn in a hurry: every slice drawn again, with less detail, or some slices only.

`polygon` and `smooth` are noises of Redekop & Chernyavskiy 2021, who do not say where vertices lie,
nor how they smooth; both answers here are ours.
"""

from collections.abc import Callable

import edt
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.draw import polygon as filled_polygon
from skimage.measure import find_contours

from raysegclean.errors import ConfigError
from raysegclean.voxels.boxes import IntLabel, class_boxes
from raysegclean.voxels.geometry import Box
from raysegclean.voxels.surface import Spacing

__all__ = ["interpolate", "polygon", "smooth"]

Points = NDArray[np.float64]
"""A closed outline (n, 2): row and column; the first point comes once."""


Draw = Callable[[Points, float], Points]
"""From an outline and a number from 0 to below 1 to the outline that replaces it."""

TINY_PIXELS = 9
"""Components of fewer pixels in a slice stay as they are."""

CURVE_POINTS = 256
"""Points of a smoothed outline: closer than a pixel up to 80 pixels across, and a chord of a
larger one is off by less than 0.1 pixel."""


def polygon(
    label_zyx: IntLabel,
    rng: np.random.Generator,
    spacing_mm: Spacing = (1.0, 1.0, 1.0),
    *,
    vertices: int = 7,
) -> IntLabel:
    """Replace the outline of each component (8-connected, per class and slice) by a polygon.

    Vertices lie on the outline at equal distances along it, from a random start. Fewer vertices cut
    off convex parts and fill hollows.

    Holes are filled. Where polygons overlap, a voxel keeps its class if one of them has it, else
    the lower class wins. Components of fewer than 9 pixels stay, and so does a class that would
    vanish. Length along the outline is measured in mm. Raises ConfigError below 3 vertices.
    """
    if vertices < 3:
        raise ConfigError(f"A polygon needs at least 3 vertices, got {vertices}.")

    def corners(outline: Points, phase: float) -> Points:
        return _resampled(outline, vertices, phase, spacing_mm)

    return _redrawn(label_zyx, rng, corners)


def smooth(
    label_zyx: IntLabel,
    rng: np.random.Generator,
    spacing_mm: Spacing = (1.0, 1.0, 1.0),
    *,
    descriptors: int = 6,
) -> IntLabel:
    """Keep the `descriptors` lowest Fourier descriptors of each component's outline.

    The outline, at equal steps along it, is a periodic complex function; of its Fourier
    coefficients the constant one stays, and 1, -1, 2, -2 and so on as far as they are counted:
    with 2 the outline becomes an ellipse. Tips are rounded off. Overlaps, holes and what stays are
    as in `polygon`. Draws nothing that matters. Raises ConfigError below 2 descriptors, which may
    leave a point or line.
    """
    if descriptors < 2:
        raise ConfigError(f"A smooth outline needs at least 2 descriptors, got {descriptors}.")

    def low_pass(outline: Points, phase: float) -> Points:
        points = _resampled(outline, CURVE_POINTS, phase, spacing_mm)
        spectrum = np.fft.fft(points[:, 0] + 1j * points[:, 1])
        order = np.fft.fftfreq(CURVE_POINTS, 1 / CURVE_POINTS)
        rank = np.where(order > 0, 2 * order - 1, -2 * order)  # 0, then 1, -1, 2, -2 and so on
        curve = np.fft.ifft(np.where(rank <= descriptors, spectrum, 0))
        return np.stack([curve.real, curve.imag], axis=1)

    return _redrawn(label_zyx, rng, low_pass, overshoot=0.5)


def interpolate(
    label_zyx: IntLabel,
    rng: np.random.Generator,
    spacing_mm: Spacing = (1.0, 1.0, 1.0),
    *,
    every: int = 3,
) -> IntLabel:
    """Keep every third slice, or `every`, from a random first one, and interpolate the others.

    Between two slices each class is where the interpolated signed distance, in plane, is inside;
    towards a slice without it, it ends halfway. Before the first slice and after the last it stays
    the same. Where classes overlap the deeper one wins; a class that would vanish stays as given.
    Raises ConfigError for `every` below 2.
    """
    if every < 2:
        raise ConfigError(f"Interpolated slices need every >= 2, got {every}.")
    depth = label_zyx.shape[0]
    drawn = np.arange(int(rng.integers(every)) % depth, depth, every)
    result = np.zeros_like(label_zyx)
    deepest = np.zeros(label_zyx.shape, np.float32)
    for value, box in class_boxes(label_zyx).items():
        rows, columns = box.grown((0, 1, 1)).clipped(Box.whole(label_zyx.shape)).slices[1:]
        inside = [_inside_mm(label_zyx[z, rows, columns] == value, spacing_mm) for z in drawn]
        for z in range(depth):
            at = float(np.interp(z, drawn, np.arange(len(drawn))))
            here = _between(inside, at)
            if here is not None:
                takes = (here > 0) & (here > deepest[z, rows, columns])
                result[z, rows, columns][takes] = value
                deepest[z, rows, columns][takes] = here[takes]
    return _with_all_classes(result, label_zyx)


def _inside_mm(mask_yx: NDArray[np.bool_], spacing_mm: Spacing) -> NDArray[np.float32] | None:
    """Return the signed distance in plane, positive inside; None for an empty slice."""
    if not mask_yx.any():
        return None
    edges = spacing_mm[1:]
    signed = edt.edt(mask_yx, edges) - edt.edt(~mask_yx, edges)
    across = float(np.hypot(*np.multiply(mask_yx.shape, edges)))  # no background, no distance to it
    return np.asarray(signed.clip(-across, across), np.float32)


def _between(slices: list[NDArray[np.float32] | None], at: float) -> NDArray[np.float32] | None:
    """Return the distance at a place between two slices; what one lacks ends halfway to it."""
    low = int(at)
    ends = ((slices[low], low + 1 - at), (slices[min(low + 1, len(slices) - 1)], at - low))
    known = [(inside, np.float32(weight)) for inside, weight in ends if inside is not None]
    if not known:
        return None
    lacking = 1 - sum(weight for _, weight in known)
    deepest = max(inside.max() for inside, _ in known)
    weighted = [inside * weight for inside, weight in known]
    return np.asarray(sum(weighted) - lacking * deepest, np.float32)


def _redrawn(
    label_zyx: IntLabel,
    rng: np.random.Generator,
    draw: Draw,
    overshoot: float = 0.0,
) -> IntLabel:
    """Draw every component again.

    A new outline leaves the box of its component by less than `overshoot` times its longer edge.
    """
    result = np.zeros_like(label_zyx)
    boxes, whole = class_boxes(label_zyx), Box.whole(label_zyx.shape)
    for value, box in boxes.items():
        reach = int(np.ceil(overshoot * max(box.shape_zyx[1:])))
        around = box.grown((0, reach, reach)).clipped(whole).slices
        for given_yx, drawn_yx in zip(label_zyx[around], result[around], strict=True):
            for mask_yx, corner in _components(given_yx == value):
                # Drawn for tiny components too, so that they do not move the others.
                phase = float(rng.random())
                pixels = corner + _covered(mask_yx, draw, phase, reach)
                inside = np.all((pixels >= 0) & (pixels < given_yx.shape), axis=1)
                rows, columns = pixels[inside].T
                free = (drawn_yx[rows, columns] == 0) | (given_yx[rows, columns] == value)
                drawn_yx[rows[free], columns[free]] = value
    return _with_all_classes(result, label_zyx)


def _with_all_classes(result_zyx: IntLabel, label_zyx: IntLabel) -> IntLabel:
    """Give classes that vanished back as they were given, until none is missing."""
    wanted = class_boxes(label_zyx).keys()
    while left_out := wanted - class_boxes(result_zyx).keys():
        given_back = np.isin(label_zyx, list(left_out))
        result_zyx[given_back] = label_zyx[given_back]
    return result_zyx


def _components(mask_yx: NDArray[np.bool_]) -> list[tuple[NDArray[np.bool_], NDArray[np.intp]]]:
    """Return (cut out mask, its first row and column) of each 8-connected component."""
    if not mask_yx.any():
        return []
    ids, _ = ndimage.label(mask_yx, np.ones((3, 3)))
    return [
        (ids[rows, columns] == one, np.array([rows.start, columns.start], np.intp))
        for one, (rows, columns) in enumerate(ndimage.find_objects(ids), start=1)
    ]


def _covered(mask_yx: NDArray[np.bool_], draw: Draw, phase: float, margin: int) -> NDArray[np.intp]:
    """Return the pixels (row, column) inside of the new outline of a mask; never none."""
    pixels = np.argwhere(mask_yx)
    if len(pixels) < TINY_PIXELS:
        return pixels
    padded = np.pad(mask_yx, 1).astype(np.float32)
    outlines = find_contours(padded, 0.5)  # type: ignore[no-untyped-call]
    rows, columns = (draw(max(outlines, key=len)[:-1] - 1, phase) + margin).T
    shape = tuple(n + 2 * margin for n in mask_yx.shape)
    inside = filled_polygon(rows, columns, shape=shape)  # type: ignore[no-untyped-call]
    covered = np.stack(inside, axis=1) - margin
    return covered if len(covered) else pixels


def _resampled(outline: Points, count: int, phase: float, spacing_mm: Spacing) -> Points:
    """Return `count` points at equal steps, in mm, along an outline; `phase` shifts the first."""
    closed = np.concatenate([outline, outline[:1]])
    steps = np.hypot(*(np.diff(closed, axis=0) * spacing_mm[1:]).T)
    length = np.concatenate([[0.0], np.cumsum(steps)])
    stops = (phase + np.arange(count)) / count * length[-1]
    return np.stack([np.interp(stops, length, closed[:, axis]) for axis in range(2)], axis=1)
