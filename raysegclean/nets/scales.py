"""The same image at other sizes, or disturbed: a second view of it while a network learns.

Guaranteed: deterministic forward and backward on every device (plain matrix products; torch's own
trilinear backward is not on CUDA), and the network's batch statistics are left as they were. Not
guaranteed: anything below the first scale's resolution; images are not smoothed before they shrink.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from raysegclean.voxels.channels import IGNORE
from raysegclean.voxels.geometry import Index3, triple

__all__ = ["at_scales", "disagreement", "disturbed", "resized", "unmoved_statistics"]

_TINY = 1e-8


def scaled_shape(shape_zyx: Index3, scale: float, stride_zyx: Index3) -> Index3:
    """Return the shape times `scale`, in multiples of the stride, at least one of each.

    An axis along which alone the network never strides is thin, or not looked along: it is kept.

    >>> scaled_shape((24, 32, 7), 0.7, (4, 4, 1))
    (16, 24, 7)
    >>> scaled_shape((10, 20, 20), 0.7, (1, 1, 1))
    (7, 14, 14)
    """
    strides_somewhere = max(stride_zyx) > 1
    return triple(
        edge if stride == 1 and strides_somewhere else max(1, round(edge * scale / stride)) * stride
        for edge, stride in zip(shape_zyx, stride_zyx, strict=True)
    )


def resized(values: Tensor, shape_zyx: Index3) -> Tensor:
    """Return (..., Z, Y, X) linearly interpolated to `shape_zyx`; the corners of voxels stay."""
    for axis, edge in zip((-3, -2, -1), shape_zyx, strict=True):
        if values.shape[axis] != edge:
            weights = _weights(values.shape[axis], edge).to(values)
            values = (values.movedim(axis, -1) @ weights).movedim(-1, axis)
    return values


def _weights(before: int, after: int) -> Tensor:
    """Return (before, after): which share of each voxel goes into each new one."""
    at = (torch.arange(after, dtype=torch.float64) + 0.5) * before / after - 0.5
    at = at.clamp(0, before - 1)
    low = at.floor().long().clamp(max=max(0, before - 2))
    share = at - low
    weights = torch.zeros(after, before, dtype=torch.float64)
    weights.scatter_(1, low[:, None], (1 - share)[:, None])
    weights.scatter_add_(1, (low + 1).clamp(max=before - 1)[:, None], share[:, None])
    return weights.T.float()


@contextmanager
def unmoved_statistics(net: nn.Module) -> Iterator[None]:
    """Let batch norms work as their mode says, but keep their running statistics as they are."""
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]  # noqa: SLF001
    training = [norm for norm in norms if norm.training and norm.track_running_stats]
    for norm in training:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in training:
            norm.track_running_stats = True


def at_scales(
    net: nn.Module,
    image: Tensor,
    scales: Sequence[float],
    stride_zyx: Index3,
    *,
    bf16: bool = False,
) -> tuple[Tensor, ...]:
    """Return float32 logits (B, K, Z, Y, X) of images (B, C, Z, Y, X) seen at each scale.

    Without dropout. Gradients flow where they are enabled.
    """
    z, y, x = image.shape[-3:]
    found = []
    with unmoved_statistics(net):
        for scale in scales:
            view = resized(image, scaled_shape((z, y, x), scale, stride_zyx))
            with torch.autocast(image.device.type, torch.bfloat16, enabled=bf16):
                logits = net(view)
            found.append(resized(logits.float(), (z, y, x)))
    return tuple(found)


def disagreement(views: list[Tensor], label: Tensor, rho: float) -> Tensor:
    """Return (B,) sum over views of KL(view || mean of the views), averaged over labelled voxels.

    views: logits (B, K, Z, Y, X). Only voxels count whose mean probability exceeds `rho`.
    """
    probs = [torch.softmax(view, dim=1) for view in views]
    mean = torch.stack(probs).mean(dim=0)
    log_mean = (mean + _TINY).log()
    diverging = torch.stack(
        [(prob * ((prob + _TINY).log() - log_mean)).sum(dim=1) for prob in probs]
    ).sum(dim=0)
    counted = (label != IGNORE) & (mean.detach().amax(dim=1) > rho)
    total = torch.where(counted, diverging, diverging.new_zeros(())).flatten(1).sum(dim=1)
    return total / (label != IGNORE).flatten(1).sum(dim=1).clamp(min=1)


def disturbed(image: Tensor, step: int, amount: float = 0.1) -> Tensor:
    """Return images (B, C, Z, Y, X) with other gain, level and noise, each N(0, amount^2).

    A function of the step, the shape and the device alone; images are normalised, so that `amount`
    is in standard deviations.
    """
    random = torch.Generator(image.device).manual_seed(step)

    def normal(*shape: int) -> Tensor:
        return amount * torch.randn(shape, generator=random, device=image.device)

    samples = (len(image), 1, 1, 1, 1)
    return image * (1 + normal(*samples)) + normal(*samples) + normal(*image.shape)
