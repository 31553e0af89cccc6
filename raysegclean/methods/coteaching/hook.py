"""Co-teaching while a network learns: each network drops its peer's worst voxels."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from raysegclean.nets.batch import Batch
from raysegclean.nets.hooks import Exchanges, Hook, HookContext, Lesson
from raysegclean.nets.losses import voxel_entropy
from raysegclean.voxels.channels import IGNORE

__all__ = ["CoteachingHook", "without_largest"]


class CoteachingHook(Hook):
    """The voxels that this network explains best are its peer's lesson."""

    exchanges: ClassVar[Exchanges] = "voxels"

    def __init__(
        self,
        context: HookContext,
        forget: float = 0.2,
        ramp_epochs: float = 3.0,
        by_class: bool = True,
    ) -> None:
        super().__init__(context)
        self.forget, self.by_class = forget, by_class
        self.ramp_steps = ramp_epochs * context.epoch_steps

    def lesson(self, net: nn.Module, logits: Tensor, batch: Batch) -> Lesson:
        """Return the given label with `IGNORE` where it is explained worst."""
        plain = super().lesson(net, logits, batch)
        share = self.forget_at(batch.step)
        if share == 0:
            return plain
        cost = voxel_entropy(logits, batch.label)
        counts = [int((batch.label == channel).sum()) for channel in range(logits.shape[1])]
        if self.by_class:
            group, drops = batch.label, [_count(share, count) for count in counts]
            drops[0] = min(drops[0], _count(share, sum(counts[1:])))
        else:
            group, drops = batch.label.clamp(max=0), [_count(share, sum(counts))]
        return Lesson(without_largest(batch.label, cost, group, drops), plain.weights)

    def forget_at(self, step: int) -> float:
        """Return 1 - R(t), the share that is dropped."""
        return self.forget * (min(1.0, step / self.ramp_steps) if self.ramp_steps else 1.0)


def _count(share: float, voxels: int) -> int:
    """Return the largest number of voxels that is no more than `share` of them."""
    return int(share * voxels + 1e-9)


def without_largest(label: Tensor, cost: Tensor, group: Tensor, drops: list[int]) -> Tensor:
    """Return `label` with `IGNORE` at the `drops[g]` voxels of each group g that cost the most.

    label, cost, group: one shape; voxels whose group is not in `drops` are left alone. Of equal
    costs the later voxel is dropped.
    """
    flat = label.flatten().clone()
    for number, drop in enumerate(drops):
        if drop:
            mine = (group.flatten() == number).nonzero()[:, 0]
            order = torch.sort(cost.flatten()[mine], stable=True).indices
            flat[mine[order[len(mine) - drop :]]] = IGNORE  # each place once: no race
    return flat.view_as(label)
