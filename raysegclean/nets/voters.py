"""Voters: anything that gives class probabilities for a window of an image.

A voter answers with one or more *passes*, each a softmax over classes: one for a network, one per
member for an ensemble, one per set of masks for Monte Carlo dropout. Passes are yielded one by
one, so that a consumer keeps running sums and memory does not grow with their number.

A voter says how far it looks (`halo_vox`) and on which lattice it may be placed (`stride_zyx`);
inference.py turns that into tiles. The window's edges are multiples of the stride.

Guaranteed for the voters here: the probability of a voxel does not depend on the window, as long
as the window reaches `halo_vox` beyond it (or to the volume's border), up to rounding.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from raysegclean.errors import ConfigError
from raysegclean.nets.dropout import dropout_masks
from raysegclean.nets.networks import begin, deepen, has_dropout, prepare_network, stride_of
from raysegclean.nets.receptive import receptive_radius
from raysegclean.nets.unet import NetworkSpec, fold_batchnorm
from raysegclean.voxels.geometry import Box, Index3, triple

__all__ = ["DropoutVoter", "EnsembleVoter", "NetworkVoter", "Precision", "Voter", "head_inputs"]

Precision = Literal["fp32", "bf16"]


class Voter(Protocol):
    """What inference needs of a voter. Users bring their own by having these members."""

    @property
    def name(self) -> str:
        """For messages and records."""

    @property
    def halo_vox(self) -> Index3:
        """How far beyond a voxel the window must reach.

        Zero where the answer depends on the whole window; those are averaged (inference.py).
        """

    @property
    def stride_zyx(self) -> Index3:
        """Window origins and edges must be multiples of this."""

    @property
    def n_passes(self) -> int:
        """How many passes `passes` yields."""

    def passes(self, window_czyx: Tensor, core: Box | None = None) -> Iterator[Tensor]:
        """Yield (K, Z, Y, X) float32 probabilities of a float32 window (C, Z, Y, X).

        With `core` those of that box of the window alone.
        """


class NetworkVoter:
    """One network, one pass. The network is folded and moved in place: it is the voter's now."""

    name = "network"
    n_passes = 1

    def __init__(
        self,
        net: nn.Module,
        spec: NetworkSpec,
        *,
        device: torch.device | str = "cpu",
        precision: Precision = "fp32",
    ) -> None:
        self._net = prepare_network(fold_batchnorm(net), device).requires_grad_(False)
        self._device = torch.device(device)
        self._precision = precision
        self._spec = spec
        self.stride_zyx = stride_of(net, spec)

    @property
    def halo_vox(self) -> Index3:
        """The receptive radius; measured when it is asked for."""
        return receptive_radius(self._spec)

    @property
    def head(self) -> nn.Module | None:
        """The network's last layer, where it names one."""
        return getattr(self._net, "head", None)

    def passes(self, window_czyx: Tensor, core: Box | None = None) -> Iterator[Tensor]:
        """Yield the softmax."""
        yield self._finish(self._begin(window_czyx), core)

    def _begin(self, window_czyx: Tensor) -> Tensor:
        """Return the finest features, which are the same in every dropout pass."""
        with torch.no_grad(), self._autocast():
            return begin(self._net, window_czyx.to(self._device)[None])

    def _finish(self, finest: Tensor, core: Box | None) -> Tensor:
        """Return probabilities (K, Z, Y, X)."""
        with torch.no_grad():
            with self._autocast():
                logits = deepen(self._net, finest, core)
            return torch.softmax(logits[0].float(), dim=0)

    def _autocast(self) -> torch.autocast:
        bf16 = self._precision == "bf16"
        return torch.autocast(self._device.type, torch.bfloat16, enabled=bf16)


class DropoutVoter(NetworkVoter):
    """Monte Carlo dropout (Gal and Ghahramani 2016) by whole channels.

    Pass n drops the channels that (seed, n, layer, channel) name, the same in every window, so a
    pass is one fixed network and tiles of it fit together. What lies before the first dropout
    layer is computed once per window.
    """

    name = "dropout"

    def __init__(
        self,
        net: nn.Module,
        spec: NetworkSpec,
        *,
        n_passes: int = 8,
        seed: int = 0,
        device: torch.device | str = "cpu",
        precision: Precision = "fp32",
    ) -> None:
        if n_passes < 1 or not has_dropout(net):
            raise ConfigError(
                f"voter 'dropout': {n_passes} dropout passes of network {spec.name} with dropout "
                f"{spec.dropout}; both must be positive, so train with network.dropout: 0.2, and a "
                "network of your own needs ChannelDropout layers (raysegclean.nets.dropout)"
            )
        super().__init__(net, spec, device=device, precision=precision)
        self.n_passes = n_passes
        self.seed = seed

    def passes(self, window_czyx: Tensor, core: Box | None = None) -> Iterator[Tensor]:
        """Yield the softmax under each set of masks."""
        finest = self._begin(window_czyx)
        for number in range(self.n_passes):
            # Not held across the yield: a consumer may stop early or use the network.
            with dropout_masks(self._net, (self.seed, number)):
                prob = self._finish(finest, core)
            yield prob


class EnsembleVoter:
    """Several voters as one: all passes of the first, then of the next."""

    name = "ensemble"

    def __init__(self, members: Sequence[Voter]) -> None:
        if not members:
            raise ConfigError("voter 'ensemble': an ensemble needs at least one member")
        self.members = tuple(members)
        self.n_passes = sum(member.n_passes for member in members)
        strides = zip(*(member.stride_zyx for member in members), strict=True)
        self.stride_zyx = triple(math.lcm(*steps) for steps in strides)

    @property
    def halo_vox(self) -> Index3:
        """The reach of the member that looks furthest."""
        return triple(map(max, zip(*(m.halo_vox for m in self.members), strict=True)))

    def passes(self, window_czyx: Tensor, core: Box | None = None) -> Iterator[Tensor]:
        """Yield every member's passes in turn."""
        for member in self.members:
            yield from member.passes(window_czyx, core)


@contextmanager
def head_inputs(voter: Voter) -> Iterator[list[Tensor]]:
    """Give a list that receives what the head of the voter's first network reads: its features.

    Only the first pass since the list was last cleared counts, (F, Z, Y, X) float32 of what was
    asked for (the window, or its core) on the voter's device. Raises ConfigError where that
    network has no `head`.
    """
    while isinstance(voter, EnsembleVoter):
        voter = voter.members[0]
    head = getattr(voter, "head", None)
    if not isinstance(head, nn.Module):
        raise ConfigError(
            f"voter {voter.name!r} has no layer `head`, whose input are the features that this "
            "method compares. Name the last 1x1x1 layer of your network `head`, or use unet."
        )
    found: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not found:
            found.append(inputs[0][0].detach().float())

    handle = head.register_forward_pre_hook(keep)
    try:
        yield found
    finally:
        handle.remove()
