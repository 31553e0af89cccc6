"""Tiles with halos whose answer is that of the whole volume.

The whole-volume answer is defined as the forward pass over the volume padded at its far ends, with
edge values, to a multiple of the network's total stride. A tile is predicted from a window that
is larger by the halo, begins and ends at multiples of the stride, and never leaves the padded
volume. So at a true border the zero padding of the convolutions sits where it sits in the
whole-volume pass, and everywhere else the wrong border is a halo away. With a halo of the measured
receptive radius (`receptive.receptive_radius`) the logits agree up to rounding.

Windows are predicted one by one and depend on nothing but the case's shape, the box and the
tiling; a case smaller than a tile is one window. At most one window's features and one pass are
in memory.

Not guaranteed: the above for networks that look at their window (instance norm), or for a halo
smaller than the radius; then the error at seams is what the halo leaves.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raysegclean.core.geometry import Box, Grid, Index3
from raysegclean.core.sampling import pad_to_box
from raysegclean.errors import ConfigError
from raysegclean.nets.unet import NetworkSpec
from raysegclean.nets.voters import Voter

__all__ = [
    "Tile",
    "Tiling",
    "iter_tile_probs",
    "padded_shape",
    "read_window",
    "tiles",
    "window_bytes",
]

Read = Callable[[Box], NDArray[Any]]
"""Returns the normalised image, float32 (C, Z, Y, X), in a box inside the case."""


@dataclass(frozen=True)
class Tiling:
    """How a box is cut: tile edges, halo, and the stride that windows keep to; all in voxels.

    tile_zyx need not be a multiple of the stride; windows are rounded outwards.
    """

    tile_zyx: Index3
    halo_vox: Index3
    stride_zyx: Index3 = (1, 1, 1)

    def __post_init__(self) -> None:
        if min(self.tile_zyx) < 1 or min(self.halo_vox) < 0 or min(self.stride_zyx) < 1:
            raise ConfigError(
                f"tiling: tile and stride must be at least 1 and halo at least 0, got {self}"
            )


@dataclass(frozen=True)
class Tile:
    """core: the voxels to answer for. window: the voxels to read, in the padded volume."""

    core: Box
    window: Box


def padded_shape(shape_zyx: Index3, stride_zyx: Index3) -> Index3:
    """Return the shape rounded up to multiples of the stride.

    >>> padded_shape((7, 8, 9), (1, 4, 4))
    (7, 8, 12)
    """
    z, y, x = (-(-n // s) * s for n, s in zip(shape_zyx, stride_zyx, strict=True))
    return z, y, x


def tiles(core: Box, shape_zyx: Index3, tiling: Tiling) -> list[Tile]:
    """Return the tiles whose cores partition the box `core` of a case; x fastest.

    The cut starts at the box's own corner, so it is the same whoever computes it.
    """
    grid = Grid(core.shape_zyx, tiling.tile_zyx)
    found = []
    for index in grid.indices():
        z, y, x = core.start_zyx
        part = grid.box(index).relative_to(Box((-z, -y, -x), (0, 0, 0)))
        found.append(Tile(part, _window(part, shape_zyx, tiling)))
    return found


def _window(core: Box, shape_zyx: Index3, tiling: Tiling) -> Box:
    grown = core.grown(tiling.halo_vox)
    stride = tiling.stride_zyx
    z0, y0, x0 = (a // s * s for a, s in zip(grown.start_zyx, stride, strict=True))
    z1, y1, x1 = (-(-b // s) * s for b, s in zip(grown.stop_zyx, stride, strict=True))
    return Box((z0, y0, x0), (z1, y1, x1)).clipped(Box.whole(padded_shape(shape_zyx, stride)))


def window_bytes(spec: NetworkSpec, window_zyx: Index3) -> int:
    """Return an upper bound of the memory that predicting one window takes, in bytes (fp32).

    The peak lies in the finest decoder level: skip, upsampled features, their concatenation and
    the first convolution's output are five times the finest width; beside them stand image,
    logits and one pass. Measured on CPU: 0.95 to 1.15 of that, so a quarter is added.
    """
    z, y, x = window_zyx
    floats = spec.in_channels + 5 * spec.widths[0] + 2 * spec.classes
    return 5 * floats * z * y * x


def read_window(read: Read, window: Box, shape_zyx: Index3) -> NDArray[np.float32]:
    """Return (C, Z, Y, X) of a window, padded with edge values beyond the case's far ends."""
    inside = window.clipped(Box.whole(shape_zyx))
    return pad_to_box(read(inside), inside, window).astype(np.float32, copy=False)


def iter_tile_probs(
    voter: Voter, read: Read, box: Box, shape_zyx: Index3, tiling: Tiling
) -> Iterator[tuple[Box, Iterator[torch.Tensor]]]:
    """Yield, for every tile of `box`, its core and an iterator over the voter's passes.

    Each pass is a float32 probability (K, Z, Y, X) of the core's shape, on the voter's device.
    Consume the passes of a tile before asking for the next tile. Raises ConfigError when the
    tiling's stride is no multiple of the voter's.
    """
    _check_stride(voter, tiling)
    for tile in tiles(box, shape_zyx, tiling):
        window = torch.from_numpy(read_window(read, tile.window, shape_zyx))
        crop = (slice(None), *tile.core.relative_to(tile.window).slices)
        yield tile.core, (prob[crop] for prob in voter.passes(window))


def _check_stride(voter: Voter, tiling: Tiling) -> None:
    pairs = zip(tiling.stride_zyx, voter.stride_zyx, strict=True)
    if any(ours % theirs for ours, theirs in pairs):
        raise ConfigError(
            f"tiling: stride {tiling.stride_zyx} is no multiple of the stride "
            f"{voter.stride_zyx} of voter {voter.name!r}; build the tiling from the voter"
        )
