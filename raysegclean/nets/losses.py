"""Cross-entropy plus soft Dice, one value per sample.

Per-sample values let a selection hook weigh or leave out samples before they are averaged. All of
it is computed in fp32 whatever the precision of the logits, and without scattered writes, so that
it is deterministic on every device. Voxels labelled `IGNORE` take part in nothing.

Source: Co-Seg (Huang et al. 2021, arXiv 2102.00523), equations 1 to 3.
"""

from collections.abc import Callable, Mapping

import torch

from raysegclean.core.sampling import IGNORE

__all__ = ["LOSSES", "sample_score", "segmentation_loss"]

_SPACE = (-3, -2, -1)
_SMOOTH = 1.0
"""Voxels on both sides of the Dice ratio: a class neither present nor predicted costs nothing."""


def _one_hot(label: torch.Tensor, classes: int) -> torch.Tensor:
    """Return bool (B, K, Z, Y, X); all False where the label is `IGNORE`."""
    values = torch.arange(classes, device=label.device).reshape(1, -1, 1, 1, 1)
    return label.unsqueeze(1) == values


def segmentation_loss(
    logits: torch.Tensor, label: torch.Tensor, dice_weight: float = 1.0
) -> torch.Tensor:
    """Return (B,) losses of logits (B, K, Z, Y, X) against labels (B, Z, Y, X) of channel indices.

    Cross-entropy is the mean over labelled voxels. Dice is 1 - mean over classes (background
    included) of 2 sum(p g) / (sum p^2 + sum g^2), the squared denominator of equation 3. A sample
    without any labelled voxel has loss 0.
    """
    log_prob = torch.log_softmax(logits.float(), dim=1)
    truth = _one_hot(label, logits.shape[1])
    labelled = truth.any(dim=1, keepdim=True)
    zero = log_prob.new_zeros(())
    voxels = labelled.sum(dim=(1, *_SPACE)).clamp(min=1)
    entropy = -torch.where(truth, log_prob, zero).sum(dim=(1, *_SPACE)) / voxels
    prob = torch.where(labelled, log_prob.exp(), zero)
    overlap = torch.where(truth, prob, zero).sum(dim=_SPACE)
    sizes = prob.square().sum(dim=_SPACE) + truth.sum(dim=_SPACE)
    dice = ((2 * overlap + _SMOOTH) / (sizes + _SMOOTH)).mean(dim=1)
    return entropy + dice_weight * (1 - dice)


@torch.no_grad()
def sample_score(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Return (B,) how badly each label is explained: cross-entropy per foreground voxel.

    The sum of -log p(label), with p clipped at 1e-4, over all labelled voxels, divided by the
    number of voxels that are foreground in the label or in the prediction (METHODS 7.2 divides by
    nothing, which ranks big organs worst). NaN where there is no foreground voxel: such a patch
    says nothing about its case.
    """
    log_prob = torch.log_softmax(logits.float(), dim=1)
    truth = _one_hot(label, logits.shape[1])
    given = torch.where(truth, log_prob, log_prob.new_zeros(())).sum(dim=1)
    labelled = label != IGNORE
    foreground = labelled & ((label > 0) | (log_prob.argmax(dim=1) > 0))
    cost = -given.clamp(min=-9.210340371976182).sum(dim=_SPACE)
    voxels = foreground.sum(dim=_SPACE)
    return torch.where(voxels > 0, cost / voxels.clamp(min=1), torch.nan)


LOSSES: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "ce_dice": segmentation_loss,
}
"""What `train.loss` may name."""
