"""Outlines that are wider or narrower than the truth."""

from collections.abc import Collection

import edt
import numpy as np

from raysegclean.errors import ConfigError
from raysegclean.voxels.boxes import IntLabel, class_boxes, united
from raysegclean.voxels.geometry import Box, triple
from raysegclean.voxels.surface import Spacing

__all__ = ["VOXEL", "bias", "boundary", "voxel_size"]

VOXEL: Spacing = (1.0, 1.0, 1.0)
_SLACK = 1 + 1e-5
"""So that a layer is not lost to the rounding of distances in mm."""


def boundary(
    label_zyx: IntLabel,
    rng: np.random.Generator,
    spacing_mm: Spacing = VOXEL,  # noqa: ARG001 - measured in voxels, as in the paper
    *,
    n_max: int = 8,
    low_vox: float = 0.0,
    high_vox: float = 0.0,
    share: float = 1.0,
) -> IntLabel:
    """Erode or dilate all foreground by n voxels: n uniform in 1..n_max, direction by a fair coin.

    With `high_vox` above 0 the amount is real and uniform in low_vox..high_vox instead. Dilation
    gives each new voxel to the nearest class; erosion removes foreground near background, so that
    classes that touch keep their common border. The default n_max is Co-Seg's, for 256 x 256
    images. With `share` below 1 only that share of the classes, at least one, is drawn so, each by
    an amount and in a direction of its own.
    """
    if n_max < 1:
        raise ConfigError(f"Boundary noise needs n_max of at least 1 voxel, got {n_max}.")
    if not 0 <= low_vox <= high_vox:
        raise ConfigError(f"Boundary noise needs 0 <= low_vox <= high_vox: {low_vox, high_vox}.")
    if not 0 < share <= 1:
        raise ConfigError(f"Boundary noise needs a share above 0, at most 1, got {share}.")

    def redrawn(given_zyx: IntLabel, values: Collection[int] | None) -> IntLabel:
        grows = bool(rng.integers(2))
        whole, real = rng.integers(1, n_max + 1), rng.uniform(low_vox, high_vox)
        amount = float(real if high_vox > 0 else whole)
        return (_grown if grows else _shrunk)(given_zyx, amount, VOXEL, values)

    if share == 1:
        return redrawn(label_zyx, None)
    present = rng.permutation([*class_boxes(label_zyx)])
    result = label_zyx.copy()
    for value in present[: max(1, round(share * len(present)))]:
        result = redrawn(result, [int(value)])
    return result


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
    size = voxel_size(unit, spacing_mm)
    return _grown(label_zyx, amount, size) if sign > 0 else _shrunk(label_zyx, amount, size)


def voxel_size(unit: str, spacing_mm: Spacing) -> Spacing:
    """Return the voxel edges z, y, x in a unit, "voxel" or "mm"; raise ConfigError for another."""
    if unit not in ("voxel", "mm"):
        raise ConfigError(f'The unit must be "voxel" or "mm", got {unit!r}.')
    return VOXEL if unit == "voxel" else spacing_mm


def _grown(
    label_zyx: IntLabel, amount: float, size: Spacing, values: Collection[int] | None = None
) -> IntLabel:
    """Give every background voxel within `amount` of foreground to the nearest class.

    With `values` only these classes grow.
    """
    result = label_zyx.copy()
    boxes = _boxes_of(label_zyx, values)
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


def _shrunk(
    label_zyx: IntLabel, amount: float, size: Spacing, values: Collection[int] | None = None
) -> IntLabel:
    """Remove foreground within `amount` of background, from each class at most all but some.

    With `values` only these classes shrink.
    """
    result = label_zyx.copy()
    boxes = _boxes_of(label_zyx, values)
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


def _boxes_of(label_zyx: IntLabel, values: Collection[int] | None) -> dict[int, Box]:
    boxes = class_boxes(label_zyx)
    return {one: box for one, box in boxes.items() if values is None or one in values}
