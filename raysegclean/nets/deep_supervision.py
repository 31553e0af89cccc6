"""Deep supervision: while a network learns, coarser levels of its decoder answer as well.

Each has a head of its own and learns the label at its resolution, with half the weight of the level
below it; so the gradient reaches deep levels by a short way. The heads belong to the training. The
network itself is the same with and without, and nothing of this is left at inference.

Source: Lee et al. 2015; weights as in Isensee et al. 2021 (nnU-Net).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from raysegclean.nets.hooks import Lesson
from raysegclean.nets.unet import NetworkSpec
from raysegclean.voxels.channels import IGNORE

__all__ = ["CoarseHeads", "coarse_label", "deep_loss"]


class CoarseHeads(nn.Module):
    """1x1x1 heads of the levels between the finest and the deepest, with weights from a seed."""

    def __init__(self, spec: NetworkSpec, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            heads = [nn.Conv3d(width, spec.classes, 1) for width in spec.widths[1:-1]]
        self.heads = nn.ModuleList(heads)

    def forward(self, answers: Sequence[Tensor]) -> list[Tensor]:
        """Return logits (B, K, Z, Y, X) of each level, finer ones first; `answers` likewise."""
        return [head(answer) for head, answer in zip(self.heads, answers, strict=True)]


def deep_loss(
    loss: Tensor, coarse: Sequence[Tensor], lesson: Lesson, of: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Return the (B,) mean of `loss` and of what coarser logits cost, each with half the weight.

    of: the loss of logits and labels. Voxels that the lesson gives no weight are left out.
    """
    label = lesson.label
    if lesson.voxel_weights is not None:
        label = label.masked_fill(lesson.voxel_weights == 0, IGNORE)
    weights = [0.5**level for level in range(len(coarse) + 1)]
    losses = [loss, *(of(logits, coarse_label(label, logits)) for logits in coarse)]
    total = sum((w * one for w, one in zip(weights, losses, strict=True)), torch.zeros_like(loss))
    return total / sum(weights)


def coarse_label(label: Tensor, logits: Tensor) -> Tensor:
    """Return the label (B, Z, Y, X) at the resolution of the logits: the voxel at each centre."""
    for axis in range(1, 4):
        step = label.shape[axis] // logits.shape[axis + 1]
        index = torch.arange(step // 2, label.shape[axis], step, device=label.device)
        label = label.index_select(axis, index)
    return label
