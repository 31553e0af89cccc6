"""How much memory and work a window or a training step takes, so that a plan can say what it needs.

For the default network a formula, held against the process's real peak by a test. For any other
module the peak of a forward pass is measured: every tensor that an operation makes is counted from
its birth to its death. Memory is taken to grow with the window's voxels; attention over a whole
window grows faster, and is underestimated. Not counted: what libraries use inside an operation.
"""

import math
import weakref
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from raysegclean.nets.losses import SLAB, segmentation_loss
from raysegclean.nets.networks import UNET, build_network
from raysegclean.nets.receptive import Forward, total_stride
from raysegclean.nets.unet import NetworkSpec, UNet, decoder_cuts
from raysegclean.voxels.geometry import Box, Index3, triple

__all__ = [
    "bytes_per_voxel",
    "computed_per_kept",
    "forward_bytes_per_voxel",
    "predicting_bytes",
    "training_bytes",
]

_UNET_BYTES = 7.2
"""Per number that `_unet_floats` counts."""
_TRAINED_BYTES = 1.4
"""Per byte that `training_bytes` counts: copies in other layouts, and what kernels use inside."""
_WEIGHT_BYTES = 16
"""Per weight: itself, its gradient and two moments of the optimiser, fp32."""
_SLAB_FLOATS = 8
"""How often a loss holds a slab at once."""
_BATCHES = 3
"""Batches that a training holds: one that is learnt, and what is read ahead."""
_CELLS = 3
_MARGIN = 1.4
_LEAST_EDGE_VOX = 12


@lru_cache(maxsize=64)
def bytes_per_voxel(spec: NetworkSpec) -> float:
    """Return an upper bound of the memory that predicting takes, in bytes (fp32) per voxel.

    Measured on U-Nets: 1.05 to 1.75 of what `_unet_floats` counts, by processor (the upsampled
    features come in another layout, and are copied; some kernels pad channels), so four fifths
    are added. Twice as much, and more than this, only where oneDNN knows no AVX2.
    """
    if spec.name == UNET:
        return _UNET_BYTES * _unet_floats(spec)
    net = build_network(spec).eval().requires_grad_(False)
    return forward_bytes_per_voxel(net, spec.in_channels, total_stride(spec))


def _unet_floats(spec: NetworkSpec) -> float:
    """Return how many numbers per voxel of the window live at once.

    Beside the image stand logits and one pass, or, where that is more, the skips of finer levels
    and what the hungriest level holds: skip, upsampled features, their concatenation and the first
    convolution's output are five times its width, on top of the coarser level's features.
    """
    most, skips = 2.0 * spec.classes, 0.0
    share = 1.0
    for width, coarser, stride in zip(
        spec.widths, (*spec.widths[1:], 0), (*spec.strides, (1, 1, 1)), strict=True
    ):
        coarser_share = share / math.prod(stride)
        most = max(most, skips + 5 * share * width + coarser_share * coarser)
        skips += share * width
        share = coarser_share
    return spec.in_channels + most


def predicting_bytes(
    spec: NetworkSpec, window_zyx: Index3, core: Box, bytes_per_vox: float
) -> float:
    """Return an upper bound of what answering for `core` of a window takes, in bytes (fp32).

    The encoder works on the window, the decoder and the head of the default network on the core
    alone; any other network takes `bytes_per_vox` of the window.
    """
    window = math.prod(window_zyx)
    if spec.name != UNET or spec.script:
        return bytes_per_vox * window
    cuts = list(decoder_cuts(window_zyx, core, spec.strides, _reach(spec)))
    share, skips, most = 1.0, 0.0, (2.0 + spec.residual) * spec.widths[0] * window
    for width, stride in zip(spec.widths[1:], spec.strides, strict=True):
        share /= math.prod(stride)
        most = max(most, spec.widths[0] * window + skips + 3 * width * share * window)
        skips += width * share * window
    held = spec.widths[0] * window + skips
    for width, cut in zip(spec.widths, cuts[:-1], strict=False):
        assert cut.read is not None
        most = max(most, held + 5 * width * cut.read.voxels)
    most = max(most, spec.widths[0] * window + 2.0 * spec.classes * core.voxels)
    return _UNET_BYTES * (spec.in_channels * window + most)


def training_bytes(
    spec: NetworkSpec,
    voxels: int,
    *,
    networks: int = 1,
    together: int = 1,
    bf16: bool = False,
    deep: bool = False,
) -> int:
    """Return an upper bound of what learning batches of `voxels` takes, in bytes.

    networks: that share a process, of which so many are learnt `together`, each keeping its
    features until all have been asked. bf16: whether features and logits are half as wide. deep:
    whether coarser levels have logits, too, at most a third as many where slices stay as they are.
    The process itself is not counted.
    """
    width = 2 if bf16 else 4
    if spec.name == UNET:
        kept = width * (_kept_floats(spec) + 2 * spec.classes * (1 + deep / 3))
    else:
        kept = _step_bytes_per_voxel(spec) * width / 4
    slab = 4 * _SLAB_FLOATS * min(SLAB, voxels * spec.classes)
    batches = _BATCHES * (4 * spec.in_channels + 8) * voxels
    weights = _WEIGHT_BYTES * sum(p.numel() for p in _unfilled(spec).parameters())
    return int(_TRAINED_BYTES * (together * kept * voxels + networks * weights + slab + batches))


def _kept_floats(spec: NetworkSpec) -> float:
    """Return how many numbers per voxel of a patch the gradient needs; logits are not counted.

    A unit keeps what its convolution and its activation gave, a dropout and a residual sum what
    they gave, a level of the decoder also the upsampled features and their concatenation.
    """
    drops, total, share = spec.dropout > 0, 0.0, 1.0
    for level, width in enumerate(spec.widths):
        encoder = 4 + spec.residual + (2 + drops if level else 0)
        decoder = 7 + drops if level + 1 < len(spec.widths) else 0
        total += share * width * (encoder + decoder)
        if decoder:
            share /= math.prod(spec.strides[level])
    return total


@lru_cache(maxsize=64)
def _step_bytes_per_voxel(spec: NetworkSpec) -> float:
    """Return the counted peak of one step of any network on two small patches, per voxel, fp32."""
    shape = [s * max(_CELLS, -(-_LEAST_EDGE_VOX // s)) for s in total_stride(spec)]
    net, counter = build_network(spec).train(), _Alive()
    image = torch.zeros(2, spec.in_channels, *shape)
    label = torch.zeros(2, *shape, dtype=torch.int64)
    with counter, torch.random.fork_rng(devices=[]):
        segmentation_loss(net(image), label).mean().backward()  # type: ignore[no-untyped-call]
    return counter.peak / (2 * math.prod(shape))


def _unfilled(spec: NetworkSpec) -> nn.Module:
    """Return a network whose weights need not hold anything."""
    if spec.name != UNET:
        return build_network(spec)
    with torch.device("meta"):
        return UNet(spec)


def computed_per_kept(spec: NetworkSpec, window_zyx: Index3, core: Box) -> float:
    """Return the work of answering for `core` of a window, as a share of what its voxels are worth.

    In multiply-adds of the default network; a whole volume without halos is 1. Of any other network
    the window's voxels per voxel of the core.
    """
    if spec.name != UNET or spec.script:
        return math.prod(window_zyx) / core.voxels
    cell = triple(16 * s for s in spec.stride_zyx)
    worth = _multiply_adds(spec, cell, Box.whole(cell)) / math.prod(cell)
    return _multiply_adds(spec, window_zyx, core) / (worth * core.voxels)


def _multiply_adds(spec: NetworkSpec, window_zyx: Index3, core: Box) -> float:
    kernel = math.prod(spec.kernel_zyx)
    cuts = decoder_cuts(window_zyx, core, spec.strides, _reach(spec))
    voxels, before, total = float(math.prod(window_zyx)), spec.in_channels, 0.0
    levels = zip(spec.widths, (*spec.strides, (1, 1, 1)), cuts, strict=True)
    for level, (width, stride, cut) in enumerate(levels):
        total += voxels * kernel * width * (before + width)
        if level + 1 < len(spec.widths):
            assert cut.read is not None
            coarser = spec.widths[level + 1]
            total += voxels * width * coarser
            total += cut.read.voxels * (kernel * 3 * width * width + coarser * width)
            voxels, before = voxels / math.prod(stride), coarser
    return total + core.voxels * spec.widths[0] * spec.classes


def _reach(spec: NetworkSpec) -> Index3:
    return triple(2 * (k // 2) for k in spec.kernel_zyx)


def forward_bytes_per_voxel(forward: Forward, channels: int, stride_zyx: Index3) -> float:
    """Return the measured peak of a forward pass and its softmax, per voxel, with a margin."""
    shape = [s * max(_CELLS, -(-_LEAST_EDGE_VOX // s)) for s in stride_zyx]
    image = torch.zeros(1, channels, *shape)
    counter = _Alive()
    with torch.no_grad(), counter:
        torch.softmax(forward(image).float(), dim=1)
    return _MARGIN * (counter.peak + image.nbytes) / math.prod(shape)


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that operations make while they live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # the signature is torch's
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._see(leaf.untyped_storage())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
