"""Markov noise: outlines that wander off, biased and rough (Spatial Correction, Yao et al. 2023).

Exactly the published process, class by class. A chain of `steps` steps begins at the given label;
each step draws whether the class grows (probability `th1`) or shrinks, and flips every voxel of the
other side that has a face neighbour on this side with probability `th2`. At the end every voxel
flips with probability `th3`, and a low-pass filter at one half makes a label of it again. So the
outline is off by a bias that all cases share (about 9 pixels for 180 steps at th1 0.8, th2 0.05),
plus roughness.

Published settings, for structures of 256 x 256 images: J1 180 steps, 0.8, 0.05, 0.2 (thin ones 100
steps, th2 0.02); J2 the same with th1 0.2; J3 is noise `boundary` with low_vox 7, high_vox 9 (thin
ones 3, 5). The bias is not steps x th2 x (2 th1 - 1), because rough fronts move faster: measure it.
In small volumes use fewer steps: 20 at th2 0.1 move the outline by about 2 voxels.

Classes take their turns in ascending order and live on background only: no class takes a voxel of
another, and none is lost; one that would vanish stays as given.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from raysegclean.errors import ConfigError
from raysegclean.voxels.boxes import IntLabel, class_boxes, united
from raysegclean.voxels.geometry import Box
from raysegclean.voxels.surface import Spacing

__all__ = ["face_neighbours", "markov"]

Mask = NDArray[np.bool_]

SMOOTHINGS = ("published", "none")
SPECK_VOX = 16
"""How far from a class of a volume voxels flip; beyond, the filter removes all but one in 3e6."""
_TAPS = np.exp(-(np.arange(-2, 3) ** 2) / (2 * 2.0**2))


def markov(
    label_zyx: IntLabel,
    rng: np.random.Generator,
    spacing_mm: Spacing = (1.0, 1.0, 1.0),  # noqa: ARG001 - measured in voxels, as in the paper
    *,
    steps: int = 180,
    th1: float = 0.8,
    th2: float = 0.05,
    th3: float = 0.2,
    smoothing: str = "published",
) -> IntLabel:
    """Return the label after the chain; th1 above 0.5 over-segments, below under-segments.

    `smoothing` is "published" (one slice: 5 x 5 Gaussian of sigma 2; a volume: Gaussian of sigma
    1) or "none". Raises ConfigError for a probability outside 0..1 or a negative number of steps.
    """
    if steps < 0:
        raise ConfigError(f"Markov noise needs steps >= 0, got {steps}.")
    for name, value in (("th1", th1), ("th2", th2), ("th3", th3)):
        if not 0 <= value <= 1:
            raise ConfigError(f"Markov noise needs {name} from 0 to 1, got {value}.")
    if smoothing not in SMOOTHINGS:
        raise ConfigError(f"smoothing: expected one of {', '.join(SMOOTHINGS)}, got {smoothing!r}.")
    result = label_zyx.copy()
    whole = Box.whole(label_zyx.shape)
    for value, box in class_boxes(label_zyx).items():
        grows = rng.random(steps) < th1
        reach = int(grows.sum()) + SPECK_VOX
        around = whole if label_zyx.shape[0] == 1 else box.grown((reach,) * 3).clipped(whole)
        here = result[around.slices]
        mine, free = here == value, (here == 0) & (label_zyx[around.slices] == 0)
        drifted = _drifted(mine, free, box.relative_to(around), grows, th2, rng)
        noisy = _filtered(drifted ^ (rng.random(drifted.shape) < th3), smoothing)
        noisy &= mine | free
        if drifted.any() and noisy.any():
            here[mine] = 0
            here[noisy] = value
    return result


def face_neighbours(mask_zyx: Mask) -> Mask:
    """Return the voxels that have a face neighbour in the mask, by shifts.

    Outside of the mask these are the voxels at Euclidean distance 1 of it; nothing lies beyond
    the border.
    """
    near = np.zeros_like(mask_zyx)
    for axis in range(mask_zyx.ndim):
        into, of = np.moveaxis(near, axis, 0), np.moveaxis(mask_zyx, axis, 0)
        into[1:] |= of[:-1]
        into[:-1] |= of[1:]
    return near


def _drifted(
    mine_zyx: Mask,
    free_zyx: Mask,
    box: Box,
    grows: Mask,
    th2: float,
    rng: np.random.Generator,
) -> Mask:
    """Return the class after the chain. Random numbers are drawn for candidates only, in order."""
    mine, free, whole = mine_zyx.copy(), free_zyx.copy(), Box.whole(mine_zyx.shape)
    for grow in grows:
        around = box.grown((1, 1, 1)).clipped(whole)
        inside, outside = mine[around.slices], free[around.slices]
        if grow:
            candidates = np.flatnonzero(outside & face_neighbours(inside))
        else:
            candidates = np.flatnonzero(inside & face_neighbours(outside))
        chosen = np.unravel_index(candidates[rng.random(candidates.size) < th2], around.shape_zyx)
        inside[chosen], outside[chosen] = grow, not grow
        if grow:
            box = _reached(box, chosen, around)
    return mine


def _reached(box: Box, where: tuple[NDArray[np.intp], ...], around: Box) -> Box:
    """Return the box grown so that it holds the voxels `where`, which are counted in `around`."""
    if not where[0].size:
        return box
    low, high = ([int(end(axis)) for axis in where] for end in (np.min, np.max))
    there = Box.of(low, (n + 1 for n in high)).moved(around.start_zyx)
    return united(box, there) or box


def _filtered(mask_zyx: Mask, smoothing: str) -> Mask:
    if smoothing == "none":
        return mask_zyx
    values = mask_zyx.astype(np.float32)
    if mask_zyx.shape[0] == 1:
        for axis in (1, 2):
            values = ndimage.correlate1d(values, _TAPS / _TAPS.sum(), axis, mode="mirror")
    else:
        values = ndimage.gaussian_filter(values, 1.0)
    smooth: Mask = values > 0.5
    return smooth
