"""How far a network sees: measured on the network, not computed from a formula.

The halo of a tile must reach as far as the network looks. A formula has to be kept in step with
the architecture by hand; a gradient cannot be wrong about it. Kernels and strides are products
over axes, so each axis is measured apart, on a probe: the same network with one channel per level,
strides along that axis only, and positive weights so that nothing cancels. It is differentiated at
every phase of the stride, because a strided network looks further to one side than to the other,
depending on where in the stride cell the voxel lies.

Guaranteed: no input voxel further than the radius, along any axis, has any influence on a logit.
That bound is reached, though an influence so far away is usually tiny.
"""

from functools import lru_cache

import torch
from torch import nn

from raysegclean.core.geometry import Index3
from raysegclean.nets.unet import NetworkSpec, UNet, build_network

__all__ = ["receptive_radius", "total_stride"]


def total_stride(spec: NetworkSpec) -> Index3:
    """Return the downsampling of the deepest level; window origins must be multiples of it."""
    z = y = x = 1
    for stride in spec.strides:
        z, y, x = z * stride[0], y * stride[1], x * stride[2]
    return z, y, x


@lru_cache(maxsize=64)
def receptive_radius(spec: NetworkSpec) -> Index3:
    """Return, per axis z, y, x, the largest distance in voxels that influences a logit."""
    z, y, x = (_radius_along(axis, spec) for axis in range(3))
    return z, y, x


def _radius_along(axis: int, spec: NetworkSpec) -> int:
    probe = _probe(axis, spec)
    stride = total_stride(spec)[axis]
    return max(_reach(probe, axis, stride, phase) for phase in range(stride))


def _probe(axis: int, spec: NetworkSpec) -> UNet:
    """Return a network that strides along `axis` only and in which every path has a weight."""
    strides: list[Index3] = []
    for stride in spec.strides:
        z, y, x = (s if a == axis else 1 for a, s in enumerate(stride))
        strides.append((z, y, x))
    widths = tuple(1 for _ in spec.widths)
    probe = build_network(NetworkSpec(spec.dims, 1, 2, widths, tuple(strides), 0.0))
    with torch.no_grad():
        for module in probe.modules():
            if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
                module.weight.fill_(1.0 / module.weight[0].numel())
    return probe.double().eval()


def _reach(probe: UNet, axis: int, stride: int, phase: int) -> int:
    """Return how far the voxel at `phase` of a stride cell looks along `axis`."""
    cells = 4
    while True:
        shape = [1, 1, 1]
        shape[axis] = (2 * cells + 1) * stride
        at = cells * stride + phase
        image = torch.ones((1, 1, *shape), dtype=torch.float64, requires_grad=True)
        logit = probe(image).select(2 + axis, at).sum()
        (gradient,) = torch.autograd.grad(logit, image)
        seen = gradient.flatten().nonzero().flatten()
        first, last = int(seen[0]), int(seen[-1])
        if first > 0 and last < shape[axis] - 1:
            return max(at - first, last - at)
        cells *= 2
