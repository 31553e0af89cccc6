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

Windows lie on the working grid (`voxels.resampling`), boxes on the case's own voxels: what a window
answers is brought back to native voxels, each of which depends on a few working ones. Where the two
grids are one, nothing is touched. One working window may answer for many native voxels; then they
come in parts, and the window's passes are kept until the last of them.

Networks that look at their whole window (instance norm, attention) have no whole-volume answer.
For them `Tiling.averaged` lays windows of one size over the case, overlapping by the halo and at
places that depend on the case alone, and the answer is the mean of all windows that hold a voxel,
weighted by a triangle that falls to zero at a window's faces. Every window that touches a box is
predicted for it, in one order: so a box of a case gives the bits of the whole case. How far
overlapping windows differ is measured (`Seams`), not hidden.

Where a network reads windows of one size only (`Tiling.window_zyx`, nnU-Net) they lie as nnU-Net's
predictor lays them: half a window apart at most, a smaller case amid zeros; a Gaussian weighs them,
and the mean is that of logits.

Not guaranteed: the whole-volume answer for a halo smaller than the radius; then the error at seams
is what the halo leaves.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysegclean.errors import ConfigError
from raysegclean.nets.voters import Voter
from raysegclean.voxels.channels import pad_to_box
from raysegclean.voxels.geometry import Box, Grid, Index3, triple
from raysegclean.voxels.resampling import AxisTaps, WorkingGrid

__all__ = [
    "PART_VOX",
    "Seams",
    "Tile",
    "Tiling",
    "iter_tile_probs",
    "needed_window",
    "padded_shape",
    "tiles",
]

_LEAST_WEIGHT = 2.0**-24 / 10
"""What half precision leaves of nnU-Net's weights, as a share of the largest."""
PART_VOX = 1 << 21
"""Native voxels that a window answers for at a time, at most, where it was resampled."""

Read = Callable[[Box], NDArray[Any]]
"""Returns the normalised image on the working grid, float32 (C, Z, Y, X), in a box of the case."""


@dataclass(frozen=True)
class Tiling:
    """How a box is cut: tile edges, halo, and the stride that windows keep to; in working voxels.

    tile_zyx need not be a multiple of the stride; windows are rounded outwards. averaged: windows
    lie on a lattice of the case, at most tile_zyx apart, and are averaged where they overlap.
    window_zyx: averaged windows have exactly this size, and lie as those of nnU-Net.
    """

    tile_zyx: Index3
    halo_vox: Index3
    stride_zyx: Index3 = (1, 1, 1)
    averaged: bool = False
    window_zyx: Index3 | None = None


@dataclass(frozen=True)
class Tile:
    """core: the native voxels to answer for. seen: the working voxels that these depend on.

    window: the working voxels to read, in the padded volume. answered: those of them that the
    voter answers for.
    """

    core: Box
    seen: Box
    window: Box
    answered: Box
    grid: WorkingGrid

    def to_core(self, values: Tensor) -> Tensor:
        """Return values (N, Z, Y, X) on the native voxels of the core.

        They are those of what was answered, or of the whole window.
        """
        shape = tuple(values.shape[1:])
        whole = self.answered if shape == self.answered.shape_zyx else self.window
        values = values[(slice(None), *self.seen.relative_to(whole).slices)]
        for taps in self.grid.taps_to_native(self.seen, self.core):
            values = _gathered(values, taps)
        return values


def padded_shape(shape_zyx: Index3, stride_zyx: Index3) -> Index3:
    """Return the shape rounded up to multiples of the stride.

    >>> padded_shape((7, 8, 9), (1, 4, 4))
    (7, 8, 12)
    """
    return triple(-(-n // s) * s for n, s in zip(shape_zyx, stride_zyx, strict=True))


def tiles(core: Box, grid: WorkingGrid, tiling: Tiling) -> list[Tile]:
    """Return the tiles whose cores partition the native box `core` of a case; x fastest.

    The cut starts at the box's own corner, so it is the same whoever computes it.
    """
    found = []
    for part in _cut(core, grid.native_edges(tiling.tile_zyx)):
        seen = grid.needed_working(part)
        found.append(Tile(part, seen, _window(seen, grid.shape_zyx, tiling), seen, grid))
    return found


def _cut(core: Box, edges_zyx: Index3) -> list[Box]:
    parts = Grid(core.shape_zyx, edges_zyx)
    return [parts.box(index).moved(core.start_zyx) for index in parts.indices()]


def _parts(core: Box, grid: WorkingGrid) -> list[Box]:
    """Return what is answered for at a time: all, or parts of at most `PART_VOX` voxels."""
    edges = list(core.shape_zyx)
    while not grid.is_native and math.prod(edges) > PART_VOX:
        longest = edges.index(max(edges))
        edges[longest] = -(-edges[longest] // 2)
    return _cut(core, triple(edges))


def _window(core: Box, shape_zyx: Index3, tiling: Tiling) -> Box:
    grown = core.grown(tiling.halo_vox)
    stride = tiling.stride_zyx
    start = triple(a // s * s for a, s in zip(grown.start_zyx, stride, strict=True))
    window = Box(start, padded_shape(grown.stop_zyx, stride))
    return window.clipped(Box.whole(padded_shape(shape_zyx, stride)))


def read_window(
    read: Read, window: Box, shape_zyx: Index3, fill: Literal["edge"] | int = "edge"
) -> NDArray[np.float32]:
    """Return (C, Z, Y, X) of a window, padded with `fill` beyond the case's ends."""
    inside = window.clipped(Box.whole(shape_zyx))
    return pad_to_box(read(inside), inside, window, fill).astype(np.float32, copy=False)


def needed_window(box: Box, grid: WorkingGrid, tiling: Tiling) -> Box:
    """Return the working voxels of the case that answering for the native `box` reads."""
    seen = grid.needed_working(box)
    if tiling.averaged:
        spans = _near(seen, grid.shape_zyx, tiling)
        hull = Box.of((axis[0][0] for axis in spans), (axis[-1][1] for axis in spans))
    else:
        hull = _window(seen, grid.shape_zyx, tiling)
    return hull.clipped(Box.whole(grid.shape_zyx))


def iter_tile_probs(
    voter: Voter,
    read: Read,
    box: Box,
    grid: WorkingGrid,
    tiling: Tiling,
    seams: "Seams | None" = None,
) -> Iterator[tuple[Tile, Iterator[Tensor]]]:
    """Yield the tiles of the native `box`, or parts of them, each with the voter's passes.

    Each pass is a float32 probability (K, Z, Y, X) of the shape of the tile's core, on the voter's
    device. Consume the passes of a tile before asking for the next tile. The tile's window is what
    voters were asked for, not what they read: `Tile.to_core` takes their features, too. `seams` is
    told how far averaged windows differ. Raises ConfigError when the tiling's stride is no multiple
    of the voter's.
    """
    _check_stride(voter, tiling)
    if tiling.averaged:
        yield from _averaged_tiles(voter, read, box, grid, tiling, seams)
        return
    for tile in tiles(box, grid, tiling):
        window = torch.from_numpy(read_window(read, tile.window, grid.shape_zyx))
        yield from _answers(tile, voter.passes(window, tile.seen.relative_to(tile.window)))


def _averaged_tiles(
    voter: Voter, read: Read, box: Box, grid: WorkingGrid, tiling: Tiling, seams: "Seams | None"
) -> Iterator[tuple[Tile, Iterator[Tensor]]]:
    """Yield the slabs of the box; where it was resampled, parts of the whole.

    Then `seams` counts the working voxels that two boxes share once for each.
    """
    seen = grid.needed_working(box)
    slabs = _averaged(voter, read, seen, grid.shape_zyx, tiling, seams)
    if grid.is_native:
        yield from ((Tile(slab, slab, slab, slab, grid), means) for slab, means in slabs)
        return
    by_pass = zip(*(tuple(means) for _, means in slabs), strict=True)
    yield from _answers(
        Tile(box, seen, seen, seen, grid), (torch.cat(parts, dim=1) for parts in by_pass)
    )


def _answers(tile: Tile, passes: Iterable[Tensor]) -> Iterator[tuple[Tile, Iterator[Tensor]]]:
    """Yield the parts of a tile with the passes of its window, brought to native voxels."""
    parts = _parts(tile.core, tile.grid)
    passes = passes if len(parts) == 1 else _Kept(passes)
    for core in parts:
        part = replace(tile, core=core, seen=tile.grid.needed_working(core))
        yield part, map(part.to_core, passes)


class _Kept:
    """The passes of a window, computed when they are first asked for, and kept."""

    def __init__(self, passes: Iterable[Tensor]) -> None:
        self._coming, self._kept = iter(passes), list[Tensor]()

    def __iter__(self) -> Iterator[Tensor]:
        """Yield all of them, from the first."""
        yield from self._kept
        for one in self._coming:
            self._kept.append(one)
            yield one


def _gathered(values: Tensor, taps: AxisTaps) -> Tensor:
    """Return one step of `WorkingGrid.to_native` on the tensor's device, with the same bits."""
    total: Tensor | None = None
    for tap in range(len(taps.index)):
        index = torch.from_numpy(taps.index[tap]).to(values.device)
        weight = torch.from_numpy(taps.shaped(tap)).to(values.device)
        term = values.index_select(taps.axis, index).mul_(weight)
        total = term if total is None else total.add_(term)
    assert total is not None
    return total


def _check_stride(voter: Voter, tiling: Tiling) -> None:
    pairs = zip(tiling.stride_zyx, voter.stride_zyx, strict=True)
    if any(ours % theirs for ours, theirs in pairs):
        raise ConfigError(
            f"tiling: stride {tiling.stride_zyx} is no multiple of the stride "
            f"{voter.stride_zyx} of voter {voter.name!r}; build the tiling from the voter"
        )


class Seams:
    """How far the windows that share a voxel differ, summed in integers, so in any order."""

    SCALE = 1 << 24

    def __init__(self) -> None:
        self.square = 0
        """Sum over voxels and passes of the windows' variance, summed over classes; fixed point."""
        self.count = 0
        """Voxels and passes that several windows share."""

    def add(self, variance: Tensor, shared: Tensor) -> None:
        """Count variances (P, Z, Y, X) where `shared` (Z, Y, X) is true."""
        fixed = torch.round(variance.double() * self.SCALE).to(torch.int64)
        self.square += int((fixed * shared).sum())
        self.count += int(shared.sum()) * len(variance)


Span = tuple[int, int]


def _near(box: Box, shape_zyx: Index3, tiling: Tiling) -> list[list[Span]]:
    """Return, per axis, where the averaged windows lie that touch `box`."""
    spans = _lattice(shape_zyx, tiling)
    ends = zip(spans, box.start_zyx, box.stop_zyx, strict=True)
    return [[(a, b) for a, b in axis if a < stop and b > start] for axis, start, stop in ends]


def _lattice(shape_zyx: Index3, tiling: Tiling) -> list[list[Span]]:
    """Return, per axis, windows of one size that cover the padded case evenly."""
    if tiling.window_zyx is not None:
        return [_half_apart(n, w) for n, w in zip(shape_zyx, tiling.window_zyx, strict=True)]
    found = []
    padded = padded_shape(shape_zyx, tiling.stride_zyx)
    for length, tile, halo, stride in zip(
        padded, tiling.tile_zyx, tiling.halo_vox, tiling.stride_zyx, strict=True
    ):
        window = min(-(-(tile + 2 * halo) // stride) * stride, length)
        steps = -(-(length - window) // tile)
        starts = (number * (length - window) // max(1, steps) for number in range(steps + 1))
        found.append([(a // stride * stride, a // stride * stride + window) for a in starts])
    return found


def _half_apart(length: int, window: int) -> list[Span]:
    """Return windows as nnU-Net's `compute_steps_for_sliding_window` and `pad_nd_image` lay them.

    Windows of one voxel (slices of 2D networks) lie side by side.

    >>> _half_apart(110, 64), _half_apart(5, 8)
    ([(0, 64), (23, 87), (46, 110)], [(-1, 7)])
    """
    if length <= window:
        start = -((window - length) // 2)
        return [(start, start + window)]
    steps = math.ceil((length - window) / max(window * 0.5, 1.0))
    starts = [round((length - window) / steps * number) for number in range(steps + 1)]
    return [(start, start + window) for start in starts]


def _averaged(
    voter: Voter,
    read: Read,
    box: Box,
    shape_zyx: Index3,
    tiling: Tiling,
    seams: Seams | None,
) -> Iterator[tuple[Box, Iterator[Tensor]]]:
    """Yield the box in slabs along z, each as soon as no further window touches it."""
    spans_z, spans_y, spans_x = _near(box, shape_zyx, tiling)
    fixed = tiling.window_zyx is not None
    fill: Literal["edge"] | int = 0 if fixed else "edge"
    mix = (_LogMix if fixed else _Mix)(box)
    for number, (z0, z1) in enumerate(spans_z):
        for (y0, y1), (x0, x1) in product(spans_y, spans_x):
            window = Box((z0, y0, x0), (z1, y1, x1))
            image = torch.from_numpy(read_window(read, window, shape_zyx, fill))
            for index, prob in enumerate(voter.passes(image)):
                mix.add(prob, window, (index, voter.n_passes))
        done = spans_z[number + 1][0] if number + 1 < len(spans_z) else box.stop_zyx[0]
        if done > mix.start:
            yield mix.take(done, seams)


class _Mix:
    """The weighted sums of the windows that cover a slab of the box, which moves along z."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self.start = box.start_zyx[0]
        self._sums: Tensor | None = None
        """(P, K + 2, Z, Y, X): of w p by class, of w sum_k p^2, and of w; `_LogMix` has more."""
        self._windows: Tensor | None = None

    def add(self, prob: Tensor, window: Box, number_of: tuple[int, int]) -> None:
        """Add pass `number_of[0]` out of `number_of[1]` of one window (K, Z, Y, X)."""
        left = Box((self.start, *self.box.start_zyx[1:]), self.box.stop_zyx)
        part = window.clipped(left)
        sums, windows = self._reaching(part.stop_zyx[0], prob, number_of[1])
        here = (..., *part.relative_to(left).slices)
        weight = self._weights(window.shape_zyx).to(prob.device)
        cut = (..., *part.relative_to(window).slices)
        weighted, weight = self._terms(prob) * weight, weight[cut]
        mine = sums[number_of[0]][here]
        mine[:-2] += weighted[cut]
        mine[-2] += (weighted[: len(prob)] * prob).sum(dim=0)[cut]
        mine[-1] += weight
        if number_of[0] == 0:
            windows[here] += 1

    def _reaching(self, stop: int, prob: Tensor, passes: int) -> tuple[Tensor, Tensor]:
        """Return the sums, grown so that they reach `stop`."""
        _, y, x = self.box.shape_zyx
        if self._sums is None or self._windows is None:
            count = len(self._terms(prob)) + 2
            self._sums = prob.new_zeros((passes, count, 0, y, x))
            self._windows = torch.zeros((0, y, x), dtype=torch.int32, device=prob.device)
        more = stop - self.start - self._sums.shape[2]
        if more > 0:
            blank = self._sums.new_zeros((*self._sums.shape[:2], more, y, x))
            self._sums = torch.cat([self._sums, blank], dim=2)
            self._windows = torch.cat([self._windows, self._windows.new_zeros((more, y, x))])
        return self._sums, self._windows

    def take(self, done: int, seams: Seams | None) -> tuple[Box, Iterator[Tensor]]:
        """Return the means up to `done`, and forget them."""
        assert self._sums is not None
        assert self._windows is not None
        depth = done - self.start
        sums, windows = self._sums[:, :, :depth], self._windows[:depth]
        self._sums, self._windows = self._sums[:, :, depth:], self._windows[depth:]
        means, answers = self._means(sums[:, :-2] / sums[:, -1:])
        if seams is not None:
            variance = sums[:, -2] / sums[:, -1] - means.square().sum(dim=1)
            seams.add(variance.clamp(min=0), windows > 1)
        (_, y0, x0), (_, y1, x1) = self.box.start_zyx, self.box.stop_zyx
        core = Box((self.start, y0, x0), (done, y1, x1))
        self.start = done
        return core, iter(answers)

    def _weights(self, shape_zyx: Index3) -> Tensor:
        return _triangle(shape_zyx)

    def _terms(self, prob: Tensor) -> Tensor:
        """Return what is averaged, (N, Z, Y, X), probabilities first."""
        return prob

    def _means(self, means: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean probabilities and the answer (P, K, Z, Y, X) from the terms' means."""
        return means, means


class _LogMix(_Mix):
    """As nnU-Net: a Gaussian weighs windows, and their logits are averaged.

    Logits and log probabilities differ by one number per voxel and window, which softmax drops.
    """

    def _weights(self, shape_zyx: Index3) -> Tensor:
        return _gaussian(shape_zyx)

    def _terms(self, prob: Tensor) -> Tensor:
        return torch.cat([prob, prob.clamp_min(torch.finfo(prob.dtype).tiny).log()])

    def _means(self, means: Tensor) -> tuple[Tensor, Tensor]:
        probs, logs = means.chunk(2, dim=1)
        # Voxel by voxel: along another axis the bits of exp depend on how many voxels there are.
        by_voxel = torch.softmax(logs.movedim(1, -1).contiguous(), dim=-1)
        return probs, by_voxel.movedim(-1, 1).contiguous()


@lru_cache(maxsize=8)
def _triangle(shape_zyx: Index3) -> Tensor:
    """Return weights that rise from the faces of a window to its middle, a product over axes."""
    z, y, x = (
        torch.minimum(torch.arange(1, n + 1), torch.arange(n, 0, -1)).float() / n for n in shape_zyx
    )
    return z[:, None, None] * y[:, None] * x


@lru_cache(maxsize=8)
def _gaussian(shape_zyx: Index3) -> Tensor:
    """Return nnU-Net's weights of a window: a Gaussian of an eighth of each edge, never zero."""
    z, y, x = (torch.exp(-32 * ((torch.arange(n) - n // 2) / n) ** 2) for n in shape_zyx)
    return (z[:, None, None] * y[:, None] * x).clamp_min(_LEAST_WEIGHT)
