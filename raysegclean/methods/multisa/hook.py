"""Learning from presence alone: which classes each field of each slice holds, not where in it.

A structure that every slice holds, as the spine, has no negative example among whole slices; so a
slice is cut into fields, each with its own presence.

Guaranteed: two labels with the same classes in every field are the same lesson, whatever their
outlines. Not guaranteed: that presence is enough to find a structure that never leaves a field.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raysegclean.nets.batch import Batch
from raysegclean.nets.hooks import Hook, HookContext, Lesson
from raysegclean.voxels.channels import IGNORE

__all__ = ["PresenceHook", "presence_loss"]

_NEVER = -1e4


class PresenceHook(Hook):
    """Learn which classes each field of each slice holds, and nothing of where in it.

    Cases whose given label is empty teach nothing when they are the ones to be labelled.
    """

    def __init__(
        self,
        context: HookContext,
        fields: int = 2,
        sharpness: float = 4.0,
        skips_empty: bool = False,
    ) -> None:
        """`skips_empty`: whether cases without any foreground are left out."""
        super().__init__(context)
        self.fields, self.sharpness, self.skips_empty = fields, sharpness, skips_empty

    def lesson(self, net: nn.Module, logits: Tensor, batch: Batch) -> Lesson:  # noqa: ARG002
        """Return the given label, without the cases that are to be labelled."""
        label = batch.label
        if self.skips_empty:
            empty = [set(self.context.present.get(case, ())) <= {0} for case in batch.case]
            label = label.clone()
            label[torch.tensor(empty, device=label.device)] = IGNORE
        return Lesson(label, torch.ones(len(batch.case), device=logits.device))

    def loss(self, net: nn.Module, logits: Tensor, lesson: Lesson, batch: Batch) -> Tensor:  # noqa: ARG002
        """Return the loss of presence; `train.loss` compares voxels and is not used."""
        return presence_loss(logits, lesson.label, self.fields, self.sharpness)


def presence_loss(logits: Tensor, label: Tensor, fields: int, sharpness: float) -> Tensor:
    """Return (B,) binary cross-entropies of presence, logits (B, K, Z, Y, X), labels (B, Z, Y, X).

    The evidence of class k is its logit above background's. A region's score is its soft maximum
    log(mean(exp(r e))) / r; regions are the fields of each slice, and the whole patch. A region
    without any known voxel has no say.
    """
    known = (label != IGNORE)[:, None]
    evidence = (logits[:, 1:] - logits[:, :1]).float().masked_fill(~known, _NEVER)
    classes = torch.arange(1, logits.shape[1], device=label.device)
    held = label[:, None] == classes.reshape(1, -1, 1, 1, 1)
    slices = [
        _region_loss(values, hits, told, (3, 4), sharpness)
        for values, hits, told in zip(
            _fields(evidence, fields), _fields(held, fields), _fields(known, fields), strict=True
        )
    ]
    patch = _region_loss(evidence, held, known, (2, 3, 4), sharpness)
    return torch.stack(slices).mean(dim=0) + patch


def _fields(grid: Tensor, fields: int) -> list[Tensor]:
    """Cut (B, K, Z, Y, X) into fields along y and x; fewer where an axis is short."""
    rows = torch.tensor_split(grid, min(fields, grid.shape[3]), dim=3)
    return [
        part for row in rows for part in torch.tensor_split(row, min(fields, grid.shape[4]), dim=4)
    ]


def _region_loss(
    evidence: Tensor,
    held: Tensor,
    known: Tensor,
    dims: tuple[int, ...],
    sharpness: float,
) -> Tensor:
    """Return (B,) losses of regions that are what `dims` leave of (B, K, Z, Y, X)."""
    voxels = known.sum(dim=dims)
    soft_max = torch.logsumexp(sharpness * evidence, dim=dims)
    score = (soft_max - voxels.clamp(min=1).float().log()) / sharpness
    present = held.any(dim=dims).float()
    loss = F.binary_cross_entropy_with_logits(score, present, reduction="none")
    told = (voxels > 0).float()
    return (loss * told).flatten(1).sum(dim=1) / told.expand_as(loss).flatten(1).sum(1).clamp(min=1)
