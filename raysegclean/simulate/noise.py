"""Label noise with a known truth, to measure what a cleaning gives back.

Eight kinds, each a pure function of the label, a generator and the voxel size, for 2D (one slice)
and 3D, any number of classes and any integer dtype, which is kept:

- `boundary`: a case is eroded or dilated by a random amount (Co-Seg Type I, Huang et al. 2021;
  "DE" of Spatial Correction, Yao et al. 2023);
- `bias`: the same over- or under-segmentation for every case (a stand-in for Co-Seg Type II);
- `markov`: outlines wander off, biased and rough (J1, J2 of Spatial Correction; `simulate.markov`);
- `polygon`: outlines become polygons of a few vertices (Redekop & Chernyavskiy 2021);
- `smooth`: outlines keep their lowest Fourier descriptors (same source);
- `drop`: a structure is missing;
- `shift`: the label is displaced, as by a wrong origin in a header;
- `swap`: two classes are exchanged, or a part of one has the name of its neighbour.

`boundary`, `bias`, `markov`, `polygon`, `smooth` and `shift` never empty a class that was there:
they do less to it instead. Real archives also contain gross errors that none of these resembles,
so a method that does well here has not yet shown that it does well there.
"""

import difflib
import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Any

import cc3d
import edt
import numpy as np
from numpy.typing import NDArray

from raysegclean.errors import ConfigError
from raysegclean.simulate.contours import polygon, smooth
from raysegclean.simulate.markov import markov
from raysegclean.voxels.boxes import IntLabel, class_boxes, united
from raysegclean.voxels.geometry import Box, triple
from raysegclean.voxels.surface import Spacing

__all__ = ["NOISES", "case_rng", "choose_cases", "corrupt"]

VOXEL: Spacing = (1.0, 1.0, 1.0)
MIN_COMPONENT_SHARE = 0.1
"""Components smaller than this share of their class are specks, not structures to drop."""
_SLACK = 1 + 1e-5
"""So that a layer is not lost to the rounding of distances in mm."""


def corrupt(
    label_zyx: IntLabel,
    noise: str,
    rng: np.random.Generator,
    spacing_mm: Spacing = VOXEL,
    **params: Any,
) -> IntLabel:
    """Return a corrupted copy of a label; `noise` is a key of NOISES, `params` its parameters.

    Raises ConfigError for an unknown noise or parameter, or a value that makes no sense.
    """
    function = NOISES.get(noise)
    if function is None:
        raise ConfigError(f"Unknown noise {noise!r}{_nearest(noise, NOISES)}")
    known = dict(list(inspect.signature(function).parameters.items())[3:])
    for name, value in params.items():
        if name not in known:
            raise ConfigError(f"Noise {noise!r} has no parameter {name!r}{_nearest(name, known)}")
        _check_kind(f"{noise}.{name}", value, known[name].default)
    return function(label_zyx, rng, spacing_mm, **params)


def case_rng(seed: int, case: str) -> np.random.Generator:
    """Return the generator of one case, whatever other cases there are."""
    return np.random.default_rng([seed, *hashlib.sha256(case.encode()).digest()])


def choose_cases(cases: Sequence[str], fraction: float, seed: int) -> set[str]:
    """Return round(fraction x cases) cases, chosen by hash: order and new cases hardly matter."""
    if not 0 <= fraction <= 1:
        raise ConfigError(f"The fraction of cases must lie in 0..1, got {fraction}.")
    if seed < 0:
        raise ConfigError(f"The seed must be 0 or more, got {seed}.")
    ranked = sorted(cases, key=lambda case: hashlib.sha256(f"{seed}/{case}".encode()).digest())
    return set(ranked[: round(fraction * len(ranked))])


def boundary(
    label_zyx: IntLabel,
    rng: np.random.Generator,
    spacing_mm: Spacing = VOXEL,  # noqa: ARG001 - measured in voxels, as in the paper
    *,
    n_max: int = 8,
    low_vox: float = 0.0,
    high_vox: float = 0.0,
) -> IntLabel:
    """Erode or dilate all foreground by n voxels: n uniform in 1..n_max, direction by a fair coin.

    With `high_vox` above 0 the amount is real and uniform in low_vox..high_vox instead. Dilation
    gives each new voxel to the nearest class; erosion removes foreground near background, so that
    classes that touch keep their common border. The default n_max is Co-Seg's, for 256 x 256
    images.
    """
    if n_max < 1:
        raise ConfigError(f"Boundary noise needs n_max of at least 1 voxel, got {n_max}.")
    if not 0 <= low_vox <= high_vox:
        raise ConfigError(f"Boundary noise needs 0 <= low_vox <= high_vox: {low_vox, high_vox}.")
    grows = bool(rng.integers(2))
    whole, real = rng.integers(1, n_max + 1), rng.uniform(low_vox, high_vox)
    amount = float(real if high_vox > 0 else whole)
    return _grown(label_zyx, amount, VOXEL) if grows else _shrunk(label_zyx, amount, VOXEL)


def bias(
    label_zyx: IntLabel,
    rng: np.random.Generator,  # noqa: ARG001 - the same for every case on purpose
    spacing_mm: Spacing = VOXEL,
    *,
    amount: float = 1.0,
    sign: int = 1,
    unit: str = "voxel",
) -> IntLabel:
    """Over-segment (`sign` +1) or under-segment (-1) all foreground by the same `amount`.

    `unit` is "voxel" or "mm". Draws nothing: every case gets the same error.
    """
    if amount <= 0 or sign not in (-1, 1):
        raise ConfigError(f"Bias needs an amount > 0 and a sign of 1 or -1, got {amount}, {sign}.")
    size = _voxel_size(unit, spacing_mm)
    return _grown(label_zyx, amount, size) if sign > 0 else _shrunk(label_zyx, amount, size)


def drop(
    label_zyx: IntLabel,
    rng: np.random.Generator,
    spacing_mm: Spacing = VOXEL,  # noqa: ARG001 - a structure is a structure at any scale
    *,
    target: str = "class",
    value: int | None = None,
) -> IntLabel:
    """Remove one class at random, or one 26-connected component of it that is no speck.

    That is one of at least a tenth of the class, or, where none is so large, of the largest.
    `target` is "class" or "component"; `value` restricts it to one class. A label without
    foreground stays as it is.
    """
    boxes, chosen = _chosen_class(label_zyx, rng, target, value)
    result = label_zyx.copy()
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
) -> IntLabel:
    """Exchange one class, at random, with the class whose centre is nearest, as left and right.

    With `target` "component", one 26-connected component that is no speck (as for `drop`) takes
    the neighbour's value and the neighbour stays, as two vertebrae of one name; a class of one
    component is gone then. `value` names the first class. A label with fewer than two classes, or
    without `value`, stays as it is.
    """
    boxes, chosen = _chosen_class(label_zyx, rng, target, value, least=2)
    result = label_zyx.copy()
    if chosen is None:
        return result
    centres = {one: _centre_mm(label_zyx, one, box, spacing_mm) for one, box in boxes.items()}
    others = [one for one in boxes if one != chosen]
    away = {one: float(np.linalg.norm(centres[one] - centres[chosen])) for one in others}
    neighbour = min(others, key=lambda one: (away[one], one))
    inside = result[boxes[chosen].slices]
    if target == "component":
        inside[_random_part(inside == chosen, rng)] = neighbour
        return result
    first, second = label_zyx == chosen, label_zyx == neighbour
    result[first], result[second] = neighbour, chosen
    return result


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
    exact = length * direction / np.linalg.norm(direction) / _voxel_size(unit, spacing_mm)
    classes = class_boxes(label_zyx).keys()
    while np.abs(exact).max() > 0.5:
        moved = _moved(label_zyx, np.rint(exact).astype(int))
        if class_boxes(moved).keys() == classes:
            return moved
        exact = exact / 2
    axis = int(np.abs(exact).argmax())
    moved = _moved(label_zyx, np.eye(3, dtype=int)[axis] * int(np.sign(exact[axis])))
    return moved if class_boxes(moved).keys() == classes else label_zyx.copy()


NOISES: Mapping[str, Callable[..., IntLabel]] = {
    noise.__name__: noise for noise in (boundary, bias, markov, polygon, smooth, drop, shift, swap)
}
"""Every noise by name."""


def _nearest(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"{hint} Known: {', '.join(known)}."


def _check_kind(name: str, value: object, default: object) -> None:
    """Refuse a value of another kind than the default's, before it fails deep inside."""
    kinds = {float: (int, float), int: (int,), str: (str,), type(None): (int,)}[type(default)]
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise ConfigError(f"{name} must be of type {kinds[-1].__name__}, got {value!r}.")
    if isinstance(value, float) and not isfinite(value):
        raise ConfigError(f"{name} must be a finite number, got {value}.")


def _voxel_size(unit: str, spacing_mm: Spacing) -> Spacing:
    if unit not in ("voxel", "mm"):
        raise ConfigError(f'The unit must be "voxel" or "mm", got {unit!r}.')
    return VOXEL if unit == "voxel" else spacing_mm


def _grown(label_zyx: IntLabel, amount: float, size: Spacing) -> IntLabel:
    """Give every background voxel within `amount` of foreground to the nearest class."""
    result = label_zyx.copy()
    boxes = class_boxes(label_zyx)
    hull = united(*boxes.values())
    if hull is None:
        return result
    whole, margin = Box.whole(label_zyx.shape), triple(int(amount / edge) + 1 for edge in size)
    hull = hull.grown(margin).clipped(whole)
    nearest = np.full(hull.shape_zyx, np.inf, np.float32)
    for value, box in boxes.items():
        around = box.grown(margin).clipped(whole)
        given, best = label_zyx[around.slices], nearest[around.relative_to(hull).slices]
        # The distance outside of the class; equal distances go to the lower class.
        distance = edt.edt(given != value, anisotropy=size)
        takes = (given == 0) & (distance <= amount * _SLACK) & (distance < best)
        result[around.slices][takes] = value
        best[takes] = distance[takes]
    return result


def _shrunk(label_zyx: IntLabel, amount: float, size: Spacing) -> IntLabel:
    """Remove foreground within `amount` of background, from each class at most all but some."""
    result = label_zyx.copy()
    boxes = class_boxes(label_zyx)
    hull = united(*boxes.values())
    if hull is None:
        return result
    around = hull.grown((1, 1, 1)).clipped(Box.whole(label_zyx.shape))
    depth = edt.edt(label_zyx[around.slices] != 0, anisotropy=size)
    for value, own in boxes.items():
        inside = own.slices
        depth_here = depth[own.relative_to(around).slices]
        mask = label_zyx[inside] == value
        less = amount
        while less > 0 and depth_here[mask].max() <= less * _SLACK:
            less -= min(size)
        result[inside][mask & (depth_here <= less * _SLACK)] = 0
    return result


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
