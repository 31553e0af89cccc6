"""Peers and data-parallel ranks that sit in different processes.

Ranks form a mesh with axes ("peer", "dp"): rank = peer * ranks of a peer + data-parallel rank.
Every step crosses it three times: the batch goes from peer 0 to the others, the chosen samples go
round the peers, and gradients are averaged within a peer. All of it moves bits and, for gradients,
sums that every rank gets alike; so two ranks train exactly what one process would.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from raysegclean.errors import ConfigError
from raysegclean.nets.batch import Batch
from raysegclean.nets.place import Replicas

__all__ = ["MeshExchange", "MeshReplicas", "PeerMesh"]


@dataclass(frozen=True)
class PeerMesh:
    """A rank's place among the peers and the data-parallel ranks."""

    mesh: DeviceMesh
    peers: int
    ranks: int

    @classmethod
    def make(cls, peers: int, device: torch.device) -> "PeerMesh":
        """Lay the mesh over the default process group; every rank calls this once.

        Raises ConfigError when the world cannot be split among the peers.
        """
        world = distributed.get_world_size()
        if world % peers:
            raise ConfigError(f"training: {world} workers cannot be split among {peers} peers")
        shape = (peers, world // peers)
        mesh = init_device_mesh(device.type, shape, mesh_dim_names=("peer", "dp"))
        return cls(mesh, peers, world // peers)

    @property
    def peer(self) -> int:
        """Which network this rank trains."""
        return self.mesh.get_local_rank("peer")

    @property
    def rank(self) -> int:
        """Which part of the batch this rank takes."""
        return self.mesh.get_local_rank("dp")

    def of_all_ranks(self, mine: Any) -> list[Any]:
        """Return what every data-parallel rank of this peer passed, plain values, by rank."""
        everyones: list[Any] = [None] * self.ranks
        distributed.all_gather_object(everyones, mine, group=self.mesh.get_group("dp"))
        return everyones

    def hand_over(self, batch: Batch, cases: tuple[str, ...]) -> Batch:
        """Return peer 0's batch, with its clean one, on every peer.

        The other peers pass a batch of the same shapes and device, which is overwritten. cases:
        all ids; their numbers travel in place of them.
        """
        clean = None if batch.clean is None else self.hand_over(batch.clean, cases)
        group = self.mesh.get_group("peer")
        numbers = {case: number for number, case in enumerate(cases)}
        uniform = batch.uniform or [True] * len(batch.case)
        facts = torch.tensor(
            [
                [batch.step] * len(batch.case),
                [numbers[case] for case in batch.case],
                [int(flag) for flag in uniform],
            ],
            device=batch.image.device,
        )
        for tensor in (batch.image, batch.label, facts):
            distributed.broadcast(tensor, group=group, group_src=0)
        step, case, flags = facts.tolist()
        return Batch(
            image=batch.image,
            label=batch.label,
            case=[cases[number] for number in case],
            step=step[0],
            uniform=[bool(flag) for flag in flags],
            clean=clean,
        )


@dataclass(frozen=True)
class MeshExchange:
    """Carries lessons between peers that are ranks."""

    mesh: PeerMesh

    def swap(self, picks: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """Return the weights that the peer before this one chose."""
        peer = self.mesh.peer
        return {peer: self._everyones(picks[peer])[(peer - 1) % self.mesh.peers]}

    def mean(self, values: dict[int, torch.Tensor]) -> torch.Tensor:
        """Return the mean over peers, in their order, as one process would."""
        mine = values[self.mesh.peer]
        device = self.mesh.mesh.device_type
        return torch.stack(self._everyones(mine.to(device))).mean(dim=0).to(mine.device)

    def _everyones(self, mine: torch.Tensor) -> list[torch.Tensor]:
        mine = mine.contiguous()
        everyone = [torch.empty_like(mine) for _ in range(self.mesh.peers)]
        distributed.all_gather(everyone, mine, group=self.mesh.mesh.get_group("peer"))
        return everyone


@dataclass(frozen=True)
class MeshReplicas(Replicas):
    """Averages over the ranks that train the same peer."""

    mesh: PeerMesh

    def mean_(self, tensors: list[torch.Tensor]) -> None:
        """Replace each tensor by its mean over ranks, in one exchange for all of them."""
        if self.mesh.ranks == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        distributed.all_reduce(flat, group=self.mesh.mesh.get_group("dp"))
        flat /= self.mesh.ranks
        means = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, mean in zip(tensors, means, strict=True):
            tensor.copy_(mean.view_as(tensor))
