"""Gross errors: what is missing, elsewhere, or has the name of something else."""

from collections.abc import Mapping

import cc3d
import numpy as np
from numpy.typing import NDArray

from raysegclean.errors import ConfigError
from raysegclean.simulate.markov import face_neighbours
from raysegclean.simulate.outlines import VOXEL, voxel_size
from raysegclean.voxels.boxes import IntLabel, class_boxes, united
from raysegclean.voxels.geometry import Box, triple
from raysegclean.voxels.surface import Spacing

__all__ = ["cut", "drop", "leak", "merge", "mirror", "shift", "swap"]

MIN_COMPONENT_SHARE = 0.1
"""Components smaller than this share of their class are specks, not structures to drop."""
LEAK_VOXELS = 500
"""A leak of a smaller class would be larger than itself."""


def drop(
    label_zyx: IntLabel,
    rng: np.random.Generator,
    spacing_mm: Spacing = VOXEL,  # noqa: ARG001 - a structure is a structure at any scale
    *,
    target: str = "class",
    value: int | None = None,
    count: int = 1,
) -> IntLabel:
    """Remove one class at random, or one 26-connected component of it that is no speck.

    That is one of at least a tenth of the class, or, where none is so large, of the largest.
    `target` is "class" or "component"; `value` restricts it to one class. A label without
    foreground stays as it is. `count` are removed, one after the other.
    """
    if count < 1:
        raise ConfigError(f"Drop noise needs a count of at least 1, got {count}.")
    result = label_zyx.copy()
    for _ in range(count):
        boxes, chosen = _chosen_class(result, rng, target, value)
        if chosen is not None:
            inside = result[boxes[chosen].slices]
            mine = inside == chosen
            inside[mine if target == "class" else _random_part(mine, rng)] = 0
    return result


def swap(
    label_zyx: IntLabel,
    rng: np.random.Generator,
    spacing_mm: Spacing = VOXEL,
    *,
    target: str = "class",
    value: int | None = None,
    pairs: str = "",
) -> IntLabel:
    """Exchange one class, at random, with the class whose centre is nearest, as left and right.

    With `target` "component", one 26-connected component that is no speck (as for `drop`) takes
    the neighbour's value and the neighbour stays, as two vertebrae of one name; a class of one
    component is gone then. `value` names the first class. A label with fewer than two classes, or
    without `value`, stays as it is. `pairs`, as "2:3 10:11", exchanges just these classes, as where
    a whole label has left for right.
    """
    if pairs:
        return _renamed(label_zyx, _pairs(pairs))
    boxes, chosen = _chosen_class(label_zyx, rng, target, value, least=2)
    result = label_zyx.copy()
    if chosen is None:
        return result
    neighbour = _neighbour(label_zyx, chosen, boxes, spacing_mm)
    inside = result[boxes[chosen].slices]
    if target == "component":
        inside[_random_part(inside == chosen, rng)] = neighbour
        return result
    return _renamed(label_zyx, {chosen: neighbour, neighbour: chosen})


def merge(
    label_zyx: IntLabel,
    rng: np.random.Generator,
    spacing_mm: Spacing = VOXEL,
    *,
    value: int | None = None,
) -> IntLabel:
    """Give one class, at random or `value`, the name of the class whose centre is nearest.

    The first class is gone then. A label with fewer than two classes, or without `value`, stays.
    """
    boxes, chosen = _chosen_class(label_zyx, rng, "class", value, least=2)
    if chosen is None:
        return label_zyx.copy()
    return _renamed(label_zyx, {chosen: _neighbour(label_zyx, chosen, boxes, spacing_mm)})


def leak(
    label_zyx: IntLabel,
    rng: np.random.Generator,
    spacing_mm: Spacing = VOXEL,
    *,
    low_vox: float = 5.0,
    high_vox: float = 8.0,
    value: int | None = None,
) -> IntLabel:
    """Let one class, at random or `value`, flood the background of a ball on its outline.

    The ball's radius is uniform in low_vox..high_vox, in voxels of the finest edge; classes of
    fewer than LEAK_VOXELS voxels leak only where there is no larger one. A label without
    foreground stays as it is.
    """
    if not 0 < low_vox <= high_vox:
        raise ConfigError(f"Leak noise needs 0 < low_vox <= high_vox: {low_vox, high_vox}.")
    result, whole = label_zyx.copy(), Box.whole(label_zyx.shape)
    radius_mm = float(rng.uniform(low_vox, high_vox)) * min(spacing_mm)
    sizes = {
        one: int(np.count_nonzero(label_zyx[box.slices] == one))
        for one, box in class_boxes(label_zyx).items()
        if value is None or one == value
    }
    large = [one for one, size in sizes.items() if size >= LEAK_VOXELS] or [*sizes]
    if not large:
        return result
    chosen = int(rng.choice(large))
    rim = np.argwhere((label_zyx == chosen) & face_neighbours(label_zyx == 0))
    if not len(rim):
        return result
    centre = rim[rng.integers(len(rim))]
    reach = triple(int(radius_mm / edge) for edge in spacing_mm)
    box = Box.of(centre, centre + 1).grown(reach).clipped(whole)
    axes = zip(box.start_zyx, box.stop_zyx, centre, spacing_mm, strict=True)
    away = np.ix_(*(((np.arange(a, b) - at) * edge) ** 2 for a, b, at, edge in axes))
    inside = result[box.slices]
    inside[(sum(away) <= radius_mm**2) & (inside == 0)] = chosen
    return result


def cut(
    label_zyx: IntLabel,
    rng: np.random.Generator,
    spacing_mm: Spacing = VOXEL,  # noqa: ARG001 - a share is a share at any scale
    *,
    low_share: float = 0.3,
    high_share: float = 0.5,
) -> IntLabel:
    """Remove all foreground at one end: the first or last slices of the labelled extent.

    How much of the extent is uniform in low_share..high_share; in one slice it is cut along rows.
    """
    if not 0 < low_share <= high_share <= 1:
        raise ConfigError(
            f"Cut noise needs 0 < low_share <= high_share <= 1: {low_share, high_share}."
        )
    share, at_end = float(rng.uniform(low_share, high_share)), bool(rng.integers(2))
    result = label_zyx.copy()
    hull = united(*class_boxes(label_zyx).values())
    if hull is None:
        return result
    axis = 0 if label_zyx.shape[0] > 1 else 1
    low, high = hull.start_zyx[axis], hull.stop_zyx[axis]
    gone = max(1, round(share * (high - low)))
    where = slice(high - gone, high) if at_end else slice(low, low + gone)
    np.moveaxis(result, axis, 0)[where] = 0
    return result


def mirror(
    label_zyx: IntLabel,
    rng: np.random.Generator,  # noqa: ARG001 - there is but one way
    spacing_mm: Spacing = VOXEL,  # noqa: ARG001 - whole voxels change places
    *,
    axis: str = "x",
) -> IntLabel:
    """Flip the label along an axis of its voxels (z, y or x), as by a lost sign in a header."""
    if axis not in ("z", "y", "x"):
        raise ConfigError(f'Mirror noise needs an axis "z", "y" or "x", got {axis!r}.')
    return np.ascontiguousarray(np.flip(label_zyx, "zyx".index(axis)))


def shift(
    label_zyx: IntLabel,
    rng: np.random.Generator,
    spacing_mm: Spacing = VOXEL,
    *,
    length: float = 4.0,
    unit: str = "voxel",
) -> IntLabel:
    """Displace the label by a random vector of `length`, in whole voxels, at least one.

    In-plane for one slice. What leaves the volume is cut off; where that would empty a class the
    vector is halved until it does not.
    """
    if length <= 0:
        raise ConfigError(f"Shift noise needs a length > 0, got {length}.")
    direction = rng.normal(size=3)
    if label_zyx.shape[0] == 1:
        direction[0] = 0
    exact = length * direction / np.linalg.norm(direction) / voxel_size(unit, spacing_mm)
    classes = class_boxes(label_zyx).keys()
    while np.abs(exact).max() > 0.5:
        moved = _moved(label_zyx, np.rint(exact).astype(int))
        if class_boxes(moved).keys() == classes:
            return moved
        exact = exact / 2
    axis = int(np.abs(exact).argmax())
    moved = _moved(label_zyx, np.eye(3, dtype=int)[axis] * int(np.sign(exact[axis])))
    return moved if class_boxes(moved).keys() == classes else label_zyx.copy()


def _chosen_class(
    label_zyx: IntLabel, rng: np.random.Generator, target: str, value: int | None, least: int = 1
) -> tuple[dict[int, Box], int | None]:
    """Return the boxes of all classes and one class at random, or `value`; None below `least`."""
    if target not in ("class", "component"):
        raise ConfigError(f'The target must be "class" or "component", got {target!r}.')
    boxes = class_boxes(label_zyx)
    values = [one for one in boxes if value is None or one == value]
    return boxes, int(rng.choice(values)) if values and len(boxes) >= least else None


def _random_part(mask_zyx: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return one 26-connected component at random, of those that are no specks."""
    parts = cc3d.connected_components(np.ascontiguousarray(mask_zyx), connectivity=26)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    # Of many small ones, none of which is a tenth of the class, the largest are no specks.
    least = min(MIN_COMPONENT_SHARE * sizes.sum(), sizes.max())
    chosen = rng.choice(np.flatnonzero(sizes >= least))
    part: NDArray[np.bool_] = parts == chosen
    return part


def _neighbour(
    label_zyx: IntLabel, value: int, boxes: Mapping[int, Box], spacing_mm: Spacing
) -> int:
    """Return the class whose centre lies nearest; of equals, the lowest."""
    centres = {one: _centre_mm(label_zyx, one, box, spacing_mm) for one, box in boxes.items()}
    others = [one for one in boxes if one != value]
    return min(others, key=lambda one: (np.linalg.norm(centres[one] - centres[value]), one))


def _pairs(text: str) -> dict[int, int]:
    """Return {2: 3, 3: 2} of "2:3"; raise ConfigError for what is no list of pairs."""
    found: dict[int, int] = {}
    for pair in text.split():
        first, _, second = pair.partition(":")
        if not (first.isdecimal() and second.isdecimal()) or {int(first), int(second)} & {*found}:
            raise ConfigError(
                f'Swap noise needs pairs as "2:3 10:11", each class once, got {text!r}.'
            )
        found |= {int(first): int(second), int(second): int(first)}
    return found


def _renamed(label_zyx: IntLabel, names: Mapping[int, int]) -> IntLabel:
    result = label_zyx.copy()
    for old, new in names.items():
        result[label_zyx == old] = new
    return result


def _centre_mm(
    label_zyx: IntLabel, value: int, box: Box, spacing_mm: Spacing
) -> NDArray[np.float64]:
    where = np.argwhere(label_zyx[box.slices] == value).mean(axis=0) + box.start_zyx
    return np.asarray(where * spacing_mm, np.float64)


def _moved(label_zyx: IntLabel, by_zyx: NDArray[np.int_]) -> IntLabel:
    """Return the label displaced by whole voxels, background moving in."""
    result = np.zeros_like(label_zyx)
    whole = Box.whole(label_zyx.shape)
    moved = whole.moved(triple(by_zyx.tolist()))
    seen = moved.clipped(whole)
    if seen.voxels:
        result[seen.slices] = label_zyx[seen.relative_to(moved).slices]
    return result
