"""The default network: a small U-Net whose answer does not depend on the window it is read in.

Every layer is a convolution with zero padding, a batch norm (constants at inference), a
LeakyReLU, or a resampling whose kernel equals its stride. So at inference the network is
translation-equivariant for shifts by its total stride, and a window that reaches one receptive
radius beyond the voxels of interest gives the whole-volume logits. A norm that looks at the
window (instance, layer, group) would break that, and is not offered.

Not guaranteed: equivariance in training mode (batch statistics), or for shifts that are not a
multiple of the total stride.

Architecture: Ronneberger et al. 2015; strided convolutions and the rule for anisotropic strides
follow Isensee et al. 2021 (nnU-Net), simplified.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from raysegclean.errors import ConfigError
from raysegclean.nets.dropout import ChannelDropout
from raysegclean.voxels.geometry import Box, Index3, triple

__all__ = [
    "ConvUnit",
    "NetworkSpec",
    "UNet",
    "build",
    "decoder_cuts",
    "fold_batchnorm",
    "plan_strides",
]

_SLOPE = 0.01
_SHORTEST_VOX = 4
"""An axis is not halved below this length: deeper features would see padding only."""


@dataclass(frozen=True)
class NetworkSpec:
    """Everything that decides the shape of a network; saved beside its weights.

    name: `unet`, or the import path `package.module:build` of a callable that takes this spec
    (networks.py says what it must return).
    dims: 3, or 2 for kernels (1, 3, 3) that read slices one by one.
    classes: output channels, background included.
    widths: channels per level, finest first.
    strides: downsampling (z, y, x) between neighbouring levels: `len(widths) - 1` of them.
    dropout: rate of the channel dropout in the deeper levels and the decoder; 0 leaves it out.
    residual: whether the second unit of each level of the encoder adds to what it reads (after
    Isensee et al. 2024).
    script: digest of the TorchScript file that stands in for a network (torchscript.py); then only
    in_channels, classes and strides mean anything.
    nnunet: how the network of an nnU-Net folder is built, as text (nnunet.py); then, too.
    """

    dims: int = 3
    in_channels: int = 1
    classes: int = 2
    widths: tuple[int, ...] = (8, 16, 32)
    strides: tuple[Index3, ...] = ((2, 2, 2), (2, 2, 2))
    dropout: float = 0.2
    name: str = "unet"
    script: str = ""
    residual: bool = False
    nnunet: str = ""

    def __post_init__(self) -> None:
        count = f"{len(self.widths)} widths need {len(self.widths) - 1} strides"
        problems = (
            (self.dims not in (2, 3), f"dims must be 2 or 3, got {self.dims}"),
            (self.in_channels < 1, f"in_channels must be positive, got {self.in_channels}"),
            (self.classes < 2, f"classes must be at least 2, got {self.classes}: count background"),
            (not self.widths or min(self.widths) < 1, f"widths must be positive: {self.widths}"),
            (len(self.strides) != len(self.widths) - 1, f"{count}, got {len(self.strides)}"),
            (any(s < 1 for stride in self.strides for s in stride), "strides must be positive"),
            (
                self.dims == 2 and any(stride[0] != 1 for stride in self.strides),
                f"a network of dims 2 must keep z, got strides {self.strides}: use (1, 2, 2)",
            ),
            (not 0.0 <= self.dropout < 1.0, f"dropout must be in [0, 1), got {self.dropout}"),
        )
        for wrong, message in problems:
            if wrong:
                raise ConfigError(f"network: {message}")

    def identity(self) -> dict[str, Any]:
        """Return all that is set; networks of before `nnunet` do not say that they are none."""
        found = asdict(self)
        return found if self.nnunet else {k: v for k, v in found.items() if k != "nnunet"}

    @property
    def finished(self) -> bool:
        """Whether the weights are given, so that nothing is trained."""
        return bool(self.script or self.nnunet)

    @property
    def kernel_zyx(self) -> Index3:
        """Kernel of the convolutions that keep the size."""
        return (1, 3, 3) if self.dims == 2 else (3, 3, 3)

    @property
    def stride_zyx(self) -> Index3:
        """Downsampling of the deepest level."""
        return triple(math.prod(stride[axis] for stride in self.strides) for axis in range(3))


class ConvUnit(nn.Module):
    """Convolution, batch norm, LeakyReLU."""

    def __init__(self, channels: tuple[int, int], kernel_zyx: Index3, stride_zyx: Index3) -> None:
        super().__init__()
        keeps_size = stride_zyx == (1, 1, 1)
        padding = triple(k // 2 if keeps_size else 0 for k in kernel_zyx)
        self.conv = nn.Conv3d(*channels, kernel_zyx, stride_zyx, padding, bias=False)
        self.norm: nn.Module = nn.BatchNorm3d(channels[1])

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C0, Z, Y, X) to (B, C1, Z / stride, ...)."""
        out = self.norm(_convolved(self.conv, features))
        return nn.functional.leaky_relu(cast(Tensor, out), _SLOPE, inplace=True)


def _convolved(conv: nn.Conv3d, features: Tensor) -> Tensor:
    """Return the convolution, at inference on CPU always by oneDNN.

    Left alone, PyTorch takes a path six times slower for small inputs of one sample on one thread
    (fewer than 20,480 channels x z x y), and tiles of different sizes then differ in their last
    bits. oneDNN is called here without its gradient.
    """
    if not _can_call_onednn(features):
        return cast(Tensor, conv(features))
    padding = cast(tuple[int, ...], conv.padding)
    return torch.mkldnn_convolution(
        features, conv.weight, conv.bias, padding, conv.stride, conv.dilation, conv.groups
    )


def _can_call_onednn(features: Tensor) -> bool:
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if torch.is_grad_enabled() or tracing:
        return False
    fits = features.device.type == "cpu" and features.dtype == torch.float32
    return fits and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


class Level(nn.Module):
    """Two units at one resolution, the second perhaps residual, and dropout behind them."""

    def __init__(
        self,
        channels: tuple[int, int],
        kernel_zyx: Index3,
        drop: float,
        name: str,
        *,
        residual: bool = False,
    ) -> None:
        super().__init__()
        ones = (1, 1, 1)
        self.units = nn.Sequential(
            ConvUnit(channels, kernel_zyx, ones),
            ConvUnit((channels[1], channels[1]), kernel_zyx, ones),
        )
        self.residual = residual
        self.dropout = ChannelDropout(drop, name)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C0, Z, Y, X) to (B, C1, Z, Y, X)."""
        first, second = self.units
        features = first(features)
        added = second(features)
        return cast(Tensor, self.dropout(features + added if self.residual else added))


class UNet(nn.Module):
    """(B, C, Z, Y, X) to logits (B, K, Z, Y, X); edges must be multiples of the total stride."""

    channels_last = True
    """oneDNN convolutions with few channels run twice as fast in that layout."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        widths, strides, kernel = spec.widths, spec.strides, spec.kernel_zyx
        self.reach_zyx = triple(2 * (k // 2) for k in kernel)
        """How far the two convolutions of a level look."""
        self.encoder = nn.ModuleList()
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for level, width in enumerate(widths):
            # The finest level stays whole: its few channels carry the outline.
            drop = spec.dropout if level else 0.0
            channels, name = (width if level else spec.in_channels, width), f"encoder{level}"
            self.encoder.append(Level(channels, kernel, drop, name, residual=spec.residual))
        for level, stride in enumerate(strides):
            fine, coarse = widths[level], widths[level + 1]
            self.down.append(ConvUnit((fine, coarse), stride, stride))
            self.up.append(nn.ConvTranspose3d(coarse, fine, stride, stride))
            self.decoder.append(Level((2 * fine, fine), kernel, spec.dropout, f"decoder{level}"))
        self.head = nn.Conv3d(widths[0], spec.classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits; raises RuntimeError when an edge is no multiple of the total stride."""
        return self.deepen(self.begin(image))

    def begin(self, image: Tensor) -> Tensor:
        """Return the finest features, which no dropout touches: passes can share them."""
        return cast(Tensor, self.encoder[0](image))

    def deepen(self, finest: Tensor, core: Box | None = None) -> Tensor:
        """Return the logits that follow from the finest features, of `core` alone if it is given.

        `core` is a box of the window. Each level of the decoder then computes what the core needs
        of it, which costs half as much and gives the same logits.
        """
        for answer in self._answers(finest, core):  # coarser ones are not kept
            features = answer
        return cast(Tensor, self.head(features))

    def answers(self, image: Tensor) -> list[Tensor]:
        """Return what each level of the decoder answers with, finest first."""
        return [*self._answers(self.begin(image), None)][::-1]

    def _answers(self, finest: Tensor, core: Box | None) -> Iterator[Tensor]:
        """Yield the features that each level of the decoder answers with, the finest last."""
        cuts = self._cuts(finest, core)
        skips, features = [], finest
        for cut, down, level in zip(cuts[:-1], self.down, list(self.encoder)[1:], strict=True):
            skips.append(_cut(features, cut.read))
            features = level(down(features))
        features = _cut(features, cuts[-1].answer)
        if not skips:
            yield features
        decoders = zip(reversed(self.up), reversed(self.decoder), reversed(cuts[:-1]), strict=True)
        for up, level, cut in decoders:
            fine = _cut(up(features), cut.of_coarse)
            features = _cut(level(torch.cat([skips.pop(), fine], dim=1)), cut.answer)
            yield features

    def _cuts(self, finest: Tensor, core: Box | None) -> "list[DecoderCut]":
        """Return what each level computes for `core`, finest first."""
        strides = [triple(cast(ConvUnit, down).conv.stride) for down in self.down]
        if core is None or core.shape_zyx == tuple(finest.shape[2:]):
            return [DecoderCut()] * (len(strides) + 1)
        return list(decoder_cuts(triple(finest.shape[2:]), core, strides, self.reach_zyx))


@dataclass(frozen=True)
class DecoderCut:
    """What one level of the decoder computes; all of it without boxes.

    read: of this level's features. of_coarse: the same place in what the coarser level's answer
    covers here. answer: what is handed on, within `read`.
    """

    read: Box | None = None
    of_coarse: Box | None = None
    answer: Box | None = None


def decoder_cuts(
    window_zyx: Index3, core: Box, strides: Sequence[Index3], reach_zyx: Index3
) -> Iterator[DecoderCut]:
    """Yield what each level of the decoder computes so that `core` of a window is answered.

    Finest first, each in its own voxels; the last is the deepest level, which needs `answer` of it.
    reach_zyx: how far the convolutions of a level look.
    """
    answer, shape = core, window_zyx
    for stride in strides:
        read = answer.grown(reach_zyx).clipped(Box.whole(shape))
        ends = tuple(zip(read.start_zyx, read.stop_zyx, stride, strict=True))
        coarse = Box.of((a // s for a, _, s in ends), (-(-b // s) for _, b, s in ends))
        fine = tuple(zip(coarse.start_zyx, coarse.stop_zyx, stride, strict=True))
        grown = Box.of((a * s for a, _, s in fine), (b * s for _, b, s in fine))
        yield DecoderCut(read, read.relative_to(grown), answer.relative_to(read))
        answer, shape = coarse, triple(n // s for n, s in zip(shape, stride, strict=True))
    yield DecoderCut(answer=answer)


def _cut(features: Tensor, box: Box | None) -> Tensor:
    """Return `box` of the features, in memory of its own; all of them without a box."""
    if box is None or box.shape_zyx == tuple(features.shape[2:]):
        return features
    return features[(..., *box.slices)].clone()


def build(spec: NetworkSpec) -> UNet:
    """Return a fresh U-Net with weights from the global random state of torch.

    Initialisation: He et al. 2015 for LeakyReLU.
    """
    net = UNet(spec)
    for module in net.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(module.weight, a=_SLOPE)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return net


def fold_batchnorm(net: nn.Module) -> nn.Module:
    """Merge the batch norm of every `ConvUnit` in `net`, in place, into its convolution.

    Returns `net` in eval mode; what is not made of these units stays as it is. For inference only:
    the same function up to rounding, one pass over memory less per layer.
    """
    net.eval()
    for module in net.modules():
        if isinstance(module, ConvUnit) and isinstance(module.norm, nn.BatchNorm3d):
            module.conv = fuse_conv_bn_eval(module.conv, module.norm)
            module.norm = nn.Identity()
    return net


def plan_strides(
    spacing_mm: tuple[float, float, float], shape_zyx: Index3, levels: int, *, dims: int = 3
) -> tuple[Index3, ...]:
    """Return the strides between `levels` levels for cases of this typical spacing and shape.

    An axis is halved unless it is thick (its voxels, at that level, at least twice as long as the
    shortest edge) or short (fewer than twice `_SHORTEST_VOX` voxels left). Axis z is kept when
    `dims` is 2.

    >>> plan_strides((5.0, 0.8, 0.8), (26, 166, 164), 3)
    ((1, 2, 2), (1, 2, 2))
    """
    spacing, shape = list(spacing_mm), list(shape_zyx)
    strides: list[Index3] = []
    for _ in range(levels - 1):
        long = [a for a in range(3) if shape[a] >= 2 * _SHORTEST_VOX and (dims == 3 or a)]
        finest = min((spacing[a] for a in long), default=0.0)
        stride = triple(2 if a in long and spacing[a] < 2 * finest else 1 for a in range(3))
        strides.append(stride)
        for axis, factor in enumerate(stride):
            spacing[axis] *= factor
            shape[axis] = -(-shape[axis] // factor)
    return tuple(strides)
