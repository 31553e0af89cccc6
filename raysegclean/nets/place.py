"""Where a trainer runs: which networks it hosts, and who it talks to.

Peers teach each other; data-parallel ranks train the same peers on different parts of each batch.
What is here does with one process; `cluster.exchange` has those of several.
"""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Exchange", "LocalExchange", "Place", "Replicas"]


class Exchange(Protocol):
    """Carries lessons between peers."""

    def swap(self, picks: dict[int, Tensor]) -> dict[int, Tensor]:
        """Return, for each peer hosted here, the tensor of the peer before it.

        picks: weights (B,) or labels (B, Z, Y, X) of the lesson of each peer hosted here. Peer i
        receives from peer i - 1, and peer 0 from the last. Every rank calls this alike.
        """

    def mean(self, values: dict[int, Tensor]) -> Tensor:
        """Return the mean over all peers of one tensor each; every peer gets the same bits."""


@dataclass(frozen=True)
class LocalExchange:
    """All peers live in this process."""

    peers: int

    def swap(self, picks: dict[int, Tensor]) -> dict[int, Tensor]:
        """Return each peer's predecessor's picks."""
        return {peer: picks[(peer - 1) % self.peers] for peer in picks}

    def mean(self, values: dict[int, Tensor]) -> Tensor:
        """Return the mean over peers, in their order."""
        return torch.stack([values[peer] for peer in sorted(values)]).mean(dim=0)


class Replicas:
    """The data-parallel ranks that train the same peers on different batches; here one alone."""

    def mean_(self, tensors: list[Tensor]) -> None:
        """Replace each tensor, in place, by its mean over ranks; every rank gets the same bits."""


@dataclass(frozen=True)
class Place:
    """Where a trainer runs: which peers it hosts and who it talks to."""

    hosted: tuple[int, ...]
    exchange: Exchange
    replicas: Replicas = field(default_factory=Replicas)
    rank: int = 0
    device: str = "cpu"
