"""Which network a spec names, and what the engine asks of it.

A network is any torch module that maps an image (B, C, Z, Y, X) to logits (B, K, Z, Y, X), for
edges that are multiples of its stride. It comes from a callable `build(spec)` whose fresh weights
follow from torch's global random state alone. There is no base class; what a module offers beyond
`forward` it offers by name:

- `stride_zyx`: the lattice on which windows may lie, where it is not the spec's total stride;
- `begin(image)` and `deepen(features)`: the forward pass in two halves, the first without dropout,
  so that dropout passes share it;
- `ChannelDropout` layers (dropout.py), without which there are no dropout voters;
- `head`: its last layer, for methods that compare features;
- `channels_last = True`: it is faster on CPU in that layout, and no `view` of it breaks.

A module that is named is imported: a name is only ever taken from the user's config or from this
package, never from a weights file.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from raysegclean.errors import ConfigError, told
from raysegclean.names import BUILT_IN, load
from raysegclean.nets.dropout import ChannelDropout
from raysegclean.nets.unet import NetworkSpec, UNet
from raysegclean.voxels.geometry import Box, Index3, triple

__all__ = [
    "UNET",
    "begin",
    "build_network",
    "check_network",
    "deepen",
    "forward_checked",
    "has_dropout",
    "is_shipped",
    "prepare_network",
    "stride_of",
]

UNET = "unet"


def is_shipped(name: str) -> bool:
    """Tell whether the network comes with this package, so that naming it imports nothing else."""
    return name in BUILT_IN["network"]


def build_network(spec: NetworkSpec, seed: int = 0) -> nn.Module:
    """Return a fresh network; its weights depend on `spec` and `seed` alone.

    The global random state is left as it was. Raises ConfigError when `spec.name` cannot be
    imported, or builds no torch module.
    """
    if spec.script:
        raise ConfigError("network: a TorchScript file has weights of its own; it is never trained")
    make = _builder(spec.name)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = make(spec)
    except ConfigError:
        raise
    except Exception as error:  # whatever a callable that users bring may raise
        if spec.name == UNET:
            raise
        raise ConfigError(
            f"network.name: {spec.name} failed to build a network of widths {spec.widths} and "
            f"strides {spec.strides} ({told(error)})."
        ) from error
    if not isinstance(net, nn.Module):
        raise ConfigError(
            f"network.name: {spec.name} returned a {type(net).__name__}, expected a torch.nn.Module"
        )
    return net


@lru_cache(maxsize=64)
def _builder(name: str) -> Callable[[NetworkSpec], Any]:
    try:
        found: Callable[[NetworkSpec], Any] = load("network", name)
    except Exception as error:  # whatever a module of the user's may raise
        raise ConfigError(
            f"network.name: {name!r} cannot be loaded ({told(error)}). Use {UNET}, or "
            "package.module:build of a callable that this Python, and every worker's, can import."
        ) from error
    if not callable(found):
        raise ConfigError(
            f"network.name: {name!r} is a {type(found).__name__}, expected a callable build(spec)"
        )
    return found


@lru_cache(maxsize=16)
def check_network(spec: NetworkSpec) -> None:
    """Raise ConfigError unless `spec` builds a network that keeps to the contract.

    Tried on two samples of two stride cells an edge, in both modes: shape of the logits, the same
    weights for the same seed and, where it does not learn, the same answer to the same image.
    """
    if spec.name == UNET:
        return
    what = f"network.name: {spec.name}"
    net, twin = build_network(spec, seed=1), build_network(spec, seed=1)
    states = zip(net.state_dict().values(), twin.state_dict().values(), strict=True)
    if not all(torch.equal(mine, its) for mine, its in states):
        raise ConfigError(
            f"{what} gives other weights at each call; draw them from torch's "
            "global random state only, so that a run can be repeated"
        )
    z, y, x = stride_of(net, spec)
    image = torch.linspace(-1, 1, 16 * spec.in_channels * z * y * x)
    image = image.reshape(2, spec.in_channels, 2 * z, 2 * y, 2 * x)
    with torch.random.fork_rng(devices=[]):
        for mode in (True, False):
            logits = forward_checked(net.train(mode), image, spec.classes, what)
        again = forward_checked(net, image, spec.classes, what)
    if not torch.equal(logits, again):
        raise ConfigError(
            f"{what} answers the same image in two ways though it is in eval mode; draw random "
            "numbers only while it learns (dropout: `training=self.training`)"
        )


@torch.no_grad()
def forward_checked(net: nn.Module, image: Tensor, classes: int, what: str) -> Tensor:
    """Return the logits of `image` (B, C, Z, Y, X).

    Raises ConfigError, in which `what` names the network, when the forward pass fails or its
    answer is not one tensor of logits (B, classes, Z, Y, X).
    """
    try:
        logits = net(image)
    except Exception as error:  # whatever a module that users bring may raise
        first, *_ = str(error).strip().splitlines() or ["no reason given"]
        raise ConfigError(
            f"{what}: the forward pass of an image {tuple(image.shape)} failed "
            f"({type(error).__name__}: {first}). Expected to read any window whose "
            "edges are multiples of the stride; see network.strides."
        ) from error
    expected = (image.shape[0], classes, *image.shape[2:])
    if not isinstance(logits, Tensor):
        raise ConfigError(
            f"{what}: it returned a {type(logits).__name__}, expected one tensor of logits "
            f"{expected}; switch deep supervision off"
        )
    if tuple(logits.shape) != expected:
        raise ConfigError(
            f"{what}: an image {tuple(image.shape)} gave {tuple(logits.shape)}, expected logits "
            f"{expected}: one channel for each of {classes} classes, background first, and every "
            "voxel of the image"
        )
    return logits


def stride_of(net: nn.Module, spec: NetworkSpec) -> Index3:
    """Return the lattice of windows: what the network says of itself, or the spec's stride."""
    own = getattr(net, "stride_zyx", None)
    if own is None:
        return spec.stride_zyx
    return triple(int(step) for step in own)


def has_dropout(net: nn.Module) -> bool:
    """Tell whether dropout passes of `net` can differ."""
    return any(isinstance(m, ChannelDropout) and m.drop > 0 for m in net.modules())


def begin(net: nn.Module, image: Tensor) -> Tensor:
    """Return what all dropout passes share: the first half of the network, or the image."""
    return cast(Tensor, cast(Any, net).begin(image)) if _is_staged(net) else image


def deepen(net: nn.Module, begun: Tensor, core: Box | None = None) -> Tensor:
    """Return the logits that follow from what `begin` returned, of the window's box `core` alone.

    Only the default network saves work by that.
    """
    if isinstance(net, UNet):
        return net.deepen(begun, core)
    logits = cast(Tensor, cast(Any, net).deepen(begun) if _is_staged(net) else net(begun))
    return logits if core is None else logits[(..., *core.slices)]


def _is_staged(net: nn.Module) -> bool:
    return callable(getattr(net, "begin", None)) and callable(getattr(net, "deepen", None))


def prepare_network(net: nn.Module, device: torch.device | str = "cpu") -> nn.Module:
    """Move `net` to `device` in the memory layout that is fastest there (and return it)."""
    device = torch.device(device)
    if device.type == "cpu" and getattr(net, "channels_last", False):
        net = net.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    return net.to(device)
