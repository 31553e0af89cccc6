"""How far a network sees: measured on the network, not computed from a formula.

The halo of a tile must reach as far as the network looks. A formula has to be kept in step with
the architecture by hand; a gradient cannot be wrong about it. Probes are the same architecture with
as few channels as it allows, and positive weights so that nothing cancels.

The U-Net's kernels and strides are products over axes, so each axis is measured apart, at every
phase of the stride, because a strided network looks further to one side than to the other,
depending on where in the stride cell the voxel lies. The radius is exactly how far it sees.

Any other module is measured by what the logits of one stride cell depend on, which bounds the
radius from above. Two things make its answer depend on the window, so that no halo is enough: it
sees everything (a norm or an attention over the whole window), or it gives another answer when
image and window move by one stride (positions). Both are found by trying; then `radius_vox` is
None, windows have to be averaged, and `seam_error` says by how much overlapping ones differ.

Not guaranteed: that a network which sees further than `_FURTHEST_VOX` is told from one that sees
everything; both are averaged.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from raysegclean.errors import ConfigError
from raysegclean.nets.networks import UNET, build_network, stride_of
from raysegclean.nets.numerics import one_thread
from raysegclean.nets.unet import NetworkSpec
from raysegclean.voxels.geometry import Index3, triple

__all__ = [
    "Forward",
    "Geometry",
    "Trial",
    "geometry_of",
    "receptive_radius",
    "seam_error",
    "total_stride",
]

Forward = Callable[[Tensor], Tensor]

_FURTHEST_VOX = 256
_DRAWS = 3
"""Images a module is tried on: what it picks by value (max pooling) differs between them."""
_SAME = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Difference of logits, as a share of the largest, that is rounding."""


@dataclass(frozen=True)
class Geometry:
    """How windows of a network must be placed, in voxels."""

    stride_zyx: Index3
    """Origins and edges of windows are multiples of this."""
    radius_vox: Index3 | None
    """How far a logit looks; None where the answer depends on the window."""


@lru_cache(maxsize=64)
def geometry_of(spec: NetworkSpec) -> Geometry:
    """Return the geometry of the network that `spec` names; ConfigError when it cannot be run."""
    if spec.name == UNET:
        with one_thread():
            return Geometry(spec.stride_zyx, triple(_radius_along(a, spec) for a in range(3)))
    net, stride = _lively(_thin(spec)), total_stride(spec)
    image = torch.zeros(1, spec.in_channels, *(2 * s for s in stride))
    try:
        net.double()(image.double())
    except RuntimeError:  # a module that makes tensors of a fixed type in its forward pass
        net.float()
    dtype = next((p.dtype for p in net.parameters()), torch.float32)
    try:
        return Geometry(stride, Trial(net, spec.in_channels, stride, dtype).radius())
    except RuntimeError as error:
        raise ConfigError(
            f"network.name: {spec.name} cannot read windows of any multiple of its stride {stride} "
            f"({str(error).splitlines()[0]}). Name another lattice as `stride_zyx` of the module."
        ) from error


@lru_cache(maxsize=64)
def total_stride(spec: NetworkSpec) -> Index3:
    """Return the lattice on which windows may lie."""
    return spec.stride_zyx if spec.name == UNET or spec.finished else stride_of(_thin(spec), spec)


def receptive_radius(spec: NetworkSpec) -> Index3:
    """Return, per axis z, y, x, the largest distance in voxels that influences a logit.

    Zero where that is the whole window (`Geometry.radius_vox`).
    """
    return geometry_of(spec).radius_vox or (0, 0, 0)


@dataclass(frozen=True)
class Trial:
    """A function from images to logits, tried on noise to see how far it looks.

    Weights are taken as they are. Raises RuntimeError, as torch does, when a window of some
    multiple of the stride cannot be read.
    """

    forward: Forward
    channels: int
    stride_zyx: Index3
    dtype: torch.dtype = torch.float32

    def radius(self) -> Index3 | None:
        """Return how far a logit looks; None where the answer depends on the window."""
        reach = self.reach()
        return reach if reach is not None and self.moves(reach) else None

    def reach(self) -> Index3 | None:
        """Return how far the logits of a stride cell look; None if there is no end to it."""
        reach: list[int] = []
        for axis in range(3):
            found = self._reach_along(axis)
            if found is None:
                return None
            reach.append(found)
        return triple(reach)

    def moves(self, radius_vox: Index3) -> bool:
        """Tell whether a window moved by a stride answers the same, a radius from its ends."""
        return all(self._moves_along(axis, radius) for axis, radius in enumerate(radius_vox))

    def _reach_along(self, axis: int) -> int | None:
        stride, cells = self.stride_zyx[axis], 4
        while True:
            length, start = (2 * cells + 1) * stride, cells * stride
            first, last = length, -1
            for image in self._images(axis, length):
                seen = _seen(self.forward, image, axis, start, stride)
                if seen:
                    first, last = min(first, seen[0]), max(last, seen[-1])
                if first == 0 or last == length - 1:
                    break
            if first > 0 and last < length - 1:
                return max(0, start + stride - 1 - first, last - start)
            if start >= _FURTHEST_VOX:
                return None
            cells *= 2

    @torch.no_grad()
    def _moves_along(self, axis: int, radius: int) -> bool:
        stride, dim = self.stride_zyx[axis], 2 + axis
        length = (2 * -(-radius // stride) + 4) * stride
        image = next(self._images(axis, length + stride))
        here = self.forward(image.narrow(dim, 0, length).contiguous())
        moved = self.forward(image.narrow(dim, stride, length).contiguous())
        inside = length - 2 * radius - stride
        here = here.narrow(dim, radius + stride, inside)
        difference = float((here - moved.narrow(dim, radius, inside)).abs().max())
        return difference <= _SAME[self.dtype] * max(1.0, float(here.abs().max()))

    def _images(self, axis: int, length: int) -> Iterator[Tensor]:
        """Yield images of noise, `length` along `axis` and two stride cells across."""
        shape = [length if a == axis else 2 * s for a, s in enumerate(self.stride_zyx)]
        generator = torch.Generator().manual_seed(length)
        for _ in range(_DRAWS):
            noise = torch.rand((1, self.channels, *shape), generator=generator, dtype=torch.float64)
            yield (noise + 0.5).to(self.dtype)


def _seen(forward: Forward, image: Tensor, axis: int, start: int, length: int) -> list[int]:
    """Return the voxels along `axis` that logits from `start` on, `length` of them, depend on."""
    logits = forward(image.requires_grad_()).narrow(2 + axis, start, length)
    (gradient,) = torch.autograd.grad(logits.sum(), image)
    others = [a for a in range(5) if a != 2 + axis]
    return list(gradient.abs().sum(dim=others).nonzero().flatten().tolist())


def _thin(spec: NetworkSpec) -> nn.Module:
    """Return the same architecture with two channels a level, where it allows that."""
    widths = (2,) * len(spec.widths)
    thin = replace(spec, classes=2, widths=widths, dropout=0.0, script="")
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what thin layers lack
            net = build_network(thin)
            net.eval()(torch.zeros(1, spec.in_channels, *(2 * s for s in stride_of(net, thin))))
    except Exception:  # noqa: BLE001  (a module may want more channels; the real spec is the judge)
        return build_network(spec)
    # A squeeze to a share of two channels leaves none, and with it no path to measure.
    whole = all(parameter.numel() for parameter in net.parameters())
    return net if whole else build_network(spec)


def _lively(net: nn.Module) -> nn.Module:
    """Give every path through the network a positive weight; weights of an output sum to one."""
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1:
                size = parameter[0].numel()
                parameter.copy_((parameter.abs() + 1e-3) / (parameter.abs() + 1e-3).mean() / size)
            else:
                parameter.fill_(1.0)
        for name, parameter in net.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    return net.eval().requires_grad_(False)


def seam_error(forward: Forward, channels: int, window_zyx: Index3, step_zyx: Index3) -> float:
    """Return by how much the probabilities of neighbouring windows differ where they overlap.

    The root mean square over voxels and classes, on noise, of windows `step_zyx` apart along each
    axis that they overlap along; 0 where they overlap along none.
    """
    square, count = 0.0, 0
    generator = torch.Generator().manual_seed(0)
    for axis in range(3):
        overlap = window_zyx[axis] - step_zyx[axis]
        if overlap <= 0 or step_zyx[axis] <= 0:
            continue
        shape = [n + (step_zyx[axis] if a == axis else 0) for a, n in enumerate(window_zyx)]
        image = torch.randn((1, channels, *shape), generator=generator)
        parts = []
        for start, keep in ((0, step_zyx[axis]), (step_zyx[axis], 0)):
            with torch.no_grad():
                logits = forward(image.narrow(2 + axis, start, window_zyx[axis]).contiguous())
            prob = torch.softmax(logits.double(), dim=1)
            parts.append(prob.narrow(2 + axis, keep, overlap))
        square += float((parts[0] - parts[1]).square().sum())
        count += parts[0].numel()
    return math.sqrt(square / count) if count else 0.0


def _radius_along(axis: int, spec: NetworkSpec) -> int:
    probe = _probe(axis, spec)
    stride = spec.stride_zyx[axis]
    return max(_reach(probe, axis, stride, phase) for phase in range(stride))


def _probe(axis: int, spec: NetworkSpec) -> nn.Module:
    """Return a U-Net that strides along `axis` only and in which every path has a weight."""
    along = (triple(s if a == axis else 1 for a, s in enumerate(stride)) for stride in spec.strides)
    widths = (1,) * len(spec.widths)
    thin = NetworkSpec(spec.dims, 1, 2, widths, tuple(along), 0.0, residual=spec.residual)
    probe = build_network(thin)
    with torch.no_grad():
        for module in probe.modules():
            if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
                module.weight.fill_(1.0 / module.weight[0].numel())
    return probe.double().eval()


def _reach(probe: nn.Module, axis: int, stride: int, phase: int) -> int:
    """Return how far the voxel at `phase` of a stride cell looks along `axis`."""
    cells = 4
    while True:
        shape = [1, 1, 1]
        shape[axis] = (2 * cells + 1) * stride
        at = cells * stride + phase
        seen = _seen(probe, torch.ones((1, 1, *shape), dtype=torch.float64), axis, at, 1)
        first, last = seen[0], seen[-1]
        if first > 0 and last < shape[axis] - 1:
            return max(at - first, last - at)
        cells *= 2
