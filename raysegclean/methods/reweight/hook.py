"""Reweighting while a network learns: each voxel counts as far as it helps on trusted patches."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from raysegclean.errors import InputError
from raysegclean.nets.batch import Batch
from raysegclean.nets.hooks import Hook, HookContext, Lesson, Loss
from raysegclean.nets.losses import segmentation_loss, voxel_entropy
from raysegclean.nets.scales import unmoved_statistics
from raysegclean.voxels.channels import IGNORE

__all__ = ["ReweightHook", "averaging_one", "helpfulness"]


class ReweightHook(Hook):
    """Learn each voxel as far as it helps on the batch's trusted patches."""

    needs_trusted: ClassVar[bool] = True

    def __init__(self, context: HookContext, rule: str = "default", start_epoch: int = 3) -> None:
        super().__init__(context)
        self.published = rule == "published"
        self.start_step = 0 if self.published else start_epoch * context.epoch_steps

    def lesson(self, net: nn.Module, logits: Tensor, batch: Batch) -> Lesson:
        """Return the given label and, from the start epoch on, a weight for every voxel.

        Raises InputError for a batch without trusted patches.
        """
        plain = super().lesson(net, logits, batch)
        if batch.step < self.start_step:
            return plain
        weights = helpfulness(net, batch, self.context.loss)
        if self.published:
            total = weights.sum()
            weights = torch.where(total > 0, weights / total, weights)
        else:
            weights = averaging_one(weights, batch.label, self.context.classes)
        return Lesson(plain.label, plain.weights, weights)

    def loss(self, net: nn.Module, logits: Tensor, lesson: Lesson, batch: Batch) -> Tensor:
        """Return the weighted loss of each sample, and the configured one where none has weights.

        As published, the mean over samples is the sum of weighted cross-entropies of the batch.
        """
        weights = lesson.voxel_weights
        if weights is None:
            return super().loss(net, logits, lesson, batch)
        if not self.published:
            return segmentation_loss(logits, lesson.label, weights=weights)
        cost = voxel_entropy(logits, lesson.label) * weights
        return len(cost) * cost.flatten(1).sum(dim=1)


def averaging_one(weights: Tensor, label: Tensor, classes: int) -> Tensor:
    """Return the weights scaled to average 1 over the voxels of each given class.

    All of one shape. A class whose weights are all 0 keeps them; so do voxels of no class.
    """
    scaled = torch.zeros_like(weights)
    for channel in range(classes):
        mine = label == channel
        total = torch.where(mine, weights, 0.0).sum()
        factor = torch.where(total > 0, mine.sum() / total, 0.0)
        scaled = torch.where(mine, weights * factor, scaled)
    return scaled


def helpfulness(net: nn.Module, batch: Batch, loss: Loss) -> Tensor:
    """Return (B, Z, Y, X) >= 0: how fast a step on each voxel lowers `loss` on `batch.clean`.

    Up to a factor common to all voxels; 0 where the label is `IGNORE`. The network is left as it
    was. Raises InputError for a batch without trusted patches.
    """
    clean = batch.clean
    if clean is None:
        raise InputError("reweight: the batch brings no trusted patches; set `trusted:`")
    weights = {name: value.detach() for name, value in net.named_parameters()}

    def costs(weights: dict[str, Tensor]) -> Tensor:
        return voxel_entropy(functional_call(net, weights, (batch.image,)), batch.label)

    with unmoved_statistics(net), torch.enable_grad():
        # Not `torch.func.grad`, which takes no loss that has a gradient of its own.
        leaves = {name: value.detach().requires_grad_() for name, value in weights.items()}
        clean_loss = loss(functional_call(net, leaves, (clean.image,)), clean.label).mean()
        slopes = torch.autograd.grad(clean_loss, tuple(leaves.values()), materialize_grads=True)
        uphill = dict(zip(leaves, slopes, strict=True))
        rising = jvp(costs, (weights,), (uphill,))[1]  # of each voxel's cost, along `uphill`
    return torch.where(batch.label == IGNORE, 0.0, rising.detach().clamp(min=0))
