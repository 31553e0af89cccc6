"""Losses, one value per sample: cross-entropy plus soft Dice, and four that forgive wrong labels.

Per-sample values let a selection hook weigh or leave out samples before they are averaged. All of
it is computed in fp32 whatever the precision of the logits, and without scattered writes, so that
it is deterministic on every device. Voxels labelled `IGNORE` take part in nothing, and a sample
without any other voxel costs 0. No loss has a memory.

The robust losses grow slower than cross-entropy as the network gets surer that a label is wrong,
so a few wrong labels pull less. Not guaranteed: that they find a bias which most labels share; and
they learn slowly where most labels disagree with the network, as at the very start.

Source of the default: Co-Seg (Huang et al. 2021, arXiv 2102.00523), equations 1 to 3.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from raysegclean.voxels.channels import IGNORE

__all__ = ["LOSSES", "SLAB", "sample_score", "segmentation_loss", "voxel_entropy"]

_SPACE = (-3, -2, -1)
_SMOOTH = 1.0
"""Voxels added to Dice ratios: a class neither present nor predicted costs nothing."""
SLAB = 1 << 22
"""Classes x voxels that are worked on at a time."""
_LABEL_FLOOR = 1e-5
"""What a label of 0 counts as inside the logarithm of the reverse cross-entropy."""


def _one_hot(label: Tensor, classes: int) -> Tensor:
    """Return bool (B, K, Z, Y, X); all False where the label is `IGNORE`."""
    values = torch.arange(classes, device=label.device).reshape(1, -1, 1, 1, 1)
    return label.unsqueeze(1) == values


def segmentation_loss(
    logits: Tensor,
    label: Tensor,
    dice_weight: float = 1.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Return (B,) losses of logits (B, K, Z, Y, X) against labels (B, Z, Y, X) of channel indices.

    Cross-entropy is the mean over labelled voxels. Dice is 1 - mean over classes (background
    included) of 2 sum(p g) / (sum p^2 + sum g^2), the squared denominator of equation 3. A sample
    without any labelled voxel has loss 0. weights: (B, Z, Y, X), factors of each voxel's part in
    every sum, through which no gradient flows; None is 1 for all.

    Beside the logits only their gradient is ever held whole (`_EntropyAndDice`).
    """
    voxels = (label != IGNORE).sum(dim=_SPACE).clamp(min=1)
    entropy, dice = _EntropyAndDice.apply(logits, label, weights)  # type: ignore[no-untyped-call]
    return cast(Tensor, entropy / voxels + dice_weight * (1 - dice))


class _EntropyAndDice(torch.autograd.Function):
    """Sums of -log p(label), and means over classes of Dice, by sample, in slabs along z.

    Autograd would keep half a dozen tensors of classes x voxels in fp32. Here the probabilities of
    a slab are computed, summed and forgotten, and computed again for the gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, label: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return (B,) sums and (B,) means."""
        entropy = logits.new_zeros(len(logits), dtype=torch.float32)
        for z in _slabs(logits):
            share, given = _shares(label[:, z], weights, z), label[:, z].clamp(min=0)
            log_prob = torch.log_softmax(logits[:, :, z].float(), dim=1)
            entropy = entropy - (log_prob.gather(1, given[:, None])[:, 0] * share).sum(dim=_SPACE)
        overlap, sizes = _dice_sums(logits, label, weights)
        ctx.save_for_backward(logits, label, overlap, sizes, weights)
        return entropy, ((2 * overlap + _SMOOTH) / (sizes + _SMOOTH)).mean(dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of the logits, p (G - sum of p G) for the gradient G of p."""
        logits, label, overlap, sizes, weights = ctx.saved_tensors
        by_entropy, by_dice = (_wide(g[:, None]) for g in gradients)
        by_dice = by_dice / logits.shape[1]
        whole = sizes + _SMOOTH
        pull, push = _wide(2 / whole), _wide(2 * (2 * overlap + _SMOOTH) / whole.square())
        found = torch.empty_like(logits)
        for z in _slabs(logits):
            share = _shares(label[:, z], weights, z)[:, None]
            truth = _one_hot(label[:, z], logits.shape[1])
            prob = torch.softmax(logits[:, :, z].float(), dim=1)
            slope = (pull * truth - push * prob).mul_(by_dice)
            slope = slope - (prob * slope).sum(dim=1, keepdim=True)
            slope = slope.mul_(prob).add_(by_entropy * (prob - truth.to(prob))).mul_(share)
            found[:, :, z] = slope.to(found)
        return found, None, None


def _slabs(logits: Tensor) -> Iterator[slice]:
    """Yield slices along z of at most `SLAB` numbers."""
    depth = logits.shape[2]
    step = max(1, SLAB * depth // max(1, logits.numel()))
    yield from (slice(start, min(start + step, depth)) for start in range(0, depth, step))


def _shares(label: Tensor, weights: Tensor | None, z: slice) -> Tensor:
    """Return the factors (B, Z, Y, X) of the voxels of a slab, 0 where the label is `IGNORE`."""
    known = (label != IGNORE).float()
    return known if weights is None else known * weights[:, z]


def _wide(sums: Tensor) -> Tensor:
    """Return (B, K) as (B, K, 1, 1, 1)."""
    return sums[:, :, None, None, None]


def _dice_sums(logits: Tensor, label: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return (B, K): sums of p g, and of p^2 + g^2."""
    overlap = logits.new_zeros(logits.shape[:2], dtype=torch.float32)
    sizes = torch.zeros_like(overlap)
    for z in _slabs(logits):
        share = _shares(label[:, z], weights, z)[:, None]
        truth = _one_hot(label[:, z], logits.shape[1])
        prob = torch.softmax(logits[:, :, z].float(), dim=1)
        shared = truth * share
        overlap = overlap + (shared * prob).sum(dim=_SPACE)
        sizes = sizes + (prob.square_() * share).sum(dim=_SPACE) + shared.sum(dim=_SPACE)
    return overlap, sizes


def voxel_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Return (B, Z, Y, X) cross-entropies -log p(label); 0 where the label is `IGNORE`."""
    log_prob = torch.log_softmax(logits.float(), dim=1)
    truth = _one_hot(label, logits.shape[1])
    return -torch.where(truth, log_prob, log_prob.new_zeros(())).sum(dim=1)


def generalised_cross_entropy(logits: Tensor, label: Tensor, q: float = 0.5) -> Tensor:
    """Return (B,) means over labelled voxels of (1 - p(label)^q) / q, which is at most 1 / q.

    q towards 0 is cross-entropy, q = 1 the mean absolute error. Source: Zhang and Sabuncu 2018;
    q as in PyMIC.
    """
    # Of `IGNORE` the entropy is 0, so p^q is 1 and the voxel costs nothing.
    forgiven = -torch.expm1(-q * voxel_entropy(logits, label)) / q
    return _mean_over_labelled(forgiven, label)


def symmetric_cross_entropy(
    logits: Tensor, label: Tensor, ce_weight: float = 0.5, reverse_weight: float = 1.0
) -> Tensor:
    """Return (B,) means over labelled voxels of 0.5 cross-entropy + 1 reverse cross-entropy.

    The reverse one, -sum_k p_k log g_k with g clamped at 1e-5, is -log(1e-5) (1 - p(label)).
    Source: Wang et al. 2019; weights and clamp as in Spatial Correction (Yao et al. 2023).
    """
    entropy = voxel_entropy(logits, label)
    reverse = math.log(_LABEL_FLOOR) * torch.expm1(-entropy)
    return _mean_over_labelled(ce_weight * entropy + reverse_weight * reverse, label)


def noise_robust_dice(logits: Tensor, label: Tensor, power: float = 1.5) -> Tensor:
    """Return (B,) means over classes (background included) of sum |p - g|^1.5 / sum (p + g).

    Sums go over labelled voxels; one voxel is added to the denominator. Source: COPLE-Net (Wang et
    al. 2020), with the denominator that PyMIC has.
    """
    prob, truth = _labelled_prob(logits, label)
    distance = (prob - truth).abs().pow(power).sum(dim=_SPACE)
    sizes = (prob + truth).sum(dim=_SPACE)
    return (distance / (sizes + _SMOOTH)).mean(dim=1)


def t_loss(logits: Tensor, label: Tensor, nu: float = 1.0) -> Tensor:
    """Return (B,) values of (nu + D) / (2 D) log(1 + s / nu), Student's t of each image's error.

    D is the number of labelled voxels and s = sum (p - g)^2 over them, half of it summed over
    classes, which for two classes is the published form. An image whose error is large as a whole
    learns with the weight (nu + D) / (nu + s): images are forgiven here, not voxels.

    Two departures from T-Loss (Gonzalez-Jimenez et al. 2023): nu stays at its published
    start of 1, because a loss has no memory here (learnt, it can run down until training collapses,
    by their issue 3); and the value is divided by D, without the terms that are constant then.
    """
    prob, truth = _labelled_prob(logits, label)
    squares = (prob - truth).square().sum(dim=(1, *_SPACE)) / 2
    voxels = (label != IGNORE).sum(dim=_SPACE).clamp(min=1)
    return (nu + voxels) / (2 * voxels) * torch.log1p(squares / nu)


def _labelled_prob(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Return probabilities and one-hot labels (B, K, Z, Y, X), float32, 0 where `IGNORE`."""
    truth = _one_hot(label, logits.shape[1])
    prob = torch.softmax(logits.float(), dim=1)
    labelled = truth.any(dim=1, keepdim=True)
    return torch.where(labelled, prob, prob.new_zeros(())), truth.float()


def _mean_over_labelled(cost: Tensor, label: Tensor) -> Tensor:
    """Return (B,) means of (B, Z, Y, X) costs, which are 0 where the label is `IGNORE`."""
    return cost.sum(dim=_SPACE) / (label != IGNORE).sum(dim=_SPACE).clamp(min=1)


@torch.no_grad()
def sample_score(logits: Tensor, label: Tensor) -> Tensor:
    """Return (B,) how badly each label is explained: cross-entropy per foreground voxel.

    The sum of -log p(label), with p clipped at 1e-4, over all labelled voxels, divided by the
    number of voxels that are foreground in the label or in the prediction (the paper divides by
    nothing, which ranks big organs worst). NaN where there is no foreground voxel: such a patch
    says nothing about its case.
    """
    log_prob = torch.log_softmax(logits.float(), dim=1)
    labelled = label != IGNORE
    given = log_prob.gather(1, label.clamp(min=0)[:, None])[:, 0] * labelled
    foreground = labelled & ((label > 0) | (log_prob.argmax(dim=1) > 0))
    cost = -given.clamp(min=-9.210340371976182).sum(dim=_SPACE)
    voxels = foreground.sum(dim=_SPACE)
    return torch.where(voxels > 0, cost / voxels.clamp(min=1), torch.nan)


LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce_dice": segmentation_loss,
    "gce": generalised_cross_entropy,
    "nr_dice": noise_robust_dice,
    "sce": symmetric_cross_entropy,
    "t_loss": t_loss,
}
"""What `train.loss` may name."""
