"""Reweighting (Mirikharaji et al. 2019): each voxel counts as far as it helps on trusted cases.

At every step the network is moved on trial, theta' = theta - lr grad sum_v eps_v l_v, and each
voxel's weight is w_v = max(0, -dL/d eps_v) at eps = 0, where l is the cross-entropy and L the loss
of theta' on a batch of trusted patches. As d theta' / d eps_v = -lr grad l_v, that derivative is
-lr <grad L, grad l_v>: w_v is the rise of l_v along grad L, which one forward-mode pass gives for
all voxels at once, exactly, without a second derivative; lr cancels out.

`rule: published` divides the weights by their sum and steps on sum_v w_v l_v, from the start. In
three dimensions small organs then often stay unlearnt: at first nearly all of the gradient says
"background", so their voxels get no weight and the network never sees them. `rule: default` repairs
that: the network learns plainly until `start_epoch`, then weights average 1 within each given
class, in cross-entropy + Dice.

It needs trusted cases, at least one on the training side of each fold: the voters of a fold learn
only from trusted cases that they do not judge. A step with weights takes two to three times as long
as a plain one; the trial is in fp32 and without dropout.

Reweighting makes voters and writes no labels: under either rule the policy decides which cases are
wrong, and how (`policy.default.decide`). Not guaranteed: that weights are small where labels are wrong
in a way that no trusted case resembles. The public code passes trusted masks where images belong.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch.func import functional_call, grad, jvp

from raysegclean.errors import ConfigError, InputError
from raysegclean.methods.base import ArchiveEvidence, Method, Verdict, Voters, check_epoch
from raysegclean.nets.batch import Batch
from raysegclean.nets.hooks import HookContext, HookSpec, Lesson, Loss, PlainHook
from raysegclean.nets.losses import segmentation_loss, voxel_entropy
from raysegclean.nets.sampling import IGNORE
from raysegclean.nets.scales import unmoved_statistics
from raysegclean.policy.default import PolicyParams, decide

__all__ = ["REWEIGHT", "ReweightHook", "ReweightParams", "averaging_one", "helpfulness"]

RULES = ("default", "published")


@dataclass(frozen=True)
class ReweightParams:
    """Settings of reweighting."""

    rule: Literal["default", "published"] = "default"
    """How weights are shared out, and from when on."""
    start_epoch: int = 3
    """Epoch, a tenth of the steps, from which voxels have weights (default rule)."""
    members: int = 1
    """Networks per fold."""
    confidence: float | None = None
    """Least confidence with which a candidate replaces a label in a flagged case (default rule);
    null: what the archive's own excess of candidates says."""
    retrain: bool = False
    """Whether a final network is trained on the cleaned labels, without weights."""

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        if self.rule not in RULES:
            raise ConfigError(
                f"params.rule: expected one of {', '.join(RULES)}, got {self.rule!r}."
            )
        if self.members < 1:
            raise ConfigError(f"params.members: expected at least 1, got {self.members}.")
        check_epoch("start_epoch", self.start_epoch)
        if self.confidence is not None and not 0 < self.confidence <= 1:
            raise ConfigError(
                f"params.confidence: expected a share above 0 and up to 1, got {self.confidence}."
            )


class ReweightHook(PlainHook):
    """Learn each voxel as far as it helps on the batch's trusted patches."""

    needs_trusted: ClassVar[bool] = True

    def __init__(self, context: HookContext, rule: str = "default", start_epoch: int = 3) -> None:
        """Take the method's settings."""
        super().__init__(context)
        self.published = rule == "published"
        self.start_step = 0 if self.published else start_epoch * context.epoch_steps

    def lesson(self, net: torch.nn.Module, logits: torch.Tensor, batch: Batch) -> Lesson:
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

    def loss(
        self, net: torch.nn.Module, logits: torch.Tensor, lesson: Lesson, batch: Batch
    ) -> torch.Tensor:
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


def averaging_one(weights: torch.Tensor, label: torch.Tensor, classes: int) -> torch.Tensor:
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


def helpfulness(net: torch.nn.Module, batch: Batch, loss: Loss) -> torch.Tensor:
    """Return (B, Z, Y, X) >= 0: how fast a step on each voxel lowers `loss` on `batch.clean`.

    Up to a factor common to all voxels; 0 where the label is `IGNORE`. The network is left as it
    was. Raises InputError for a batch without trusted patches.
    """
    clean = batch.clean
    if clean is None:
        raise InputError("reweight: the batch brings no trusted patches; set `trusted:`")
    weights = {name: value.detach() for name, value in net.named_parameters()}

    def clean_loss(weights: dict[str, torch.Tensor]) -> torch.Tensor:
        return loss(functional_call(net, weights, (clean.image,)), clean.label).mean()

    def costs(weights: dict[str, torch.Tensor]) -> torch.Tensor:
        return voxel_entropy(functional_call(net, weights, (batch.image,)), batch.label)

    with unmoved_statistics(net), torch.enable_grad():
        uphill = grad(clean_loss)(weights)
        rising = jvp(costs, (weights,), (uphill,))[1]  # of each voxel's cost, along `uphill`
    return torch.where(batch.label == IGNORE, 0.0, rising.detach().clamp(min=0))


def _voters(params: ReweightParams) -> Voters:
    hook = HookSpec.of(
        "reweight",
        rule=params.rule,
        start_epoch=params.start_epoch,
    )
    return Voters(members=params.members, hook=hook)


def _policy(evidence: ArchiveEvidence, params: ReweightParams) -> Verdict:
    policy = PolicyParams(least_confidence=params.confidence or 0.0)
    return Verdict.of(decide(evidence.scores, policy, trusted=evidence.trusted))


def _retrains(params: ReweightParams) -> bool:
    return params.retrain


def _corrects(params: Any) -> bool:  # noqa: ARG001
    return True


REWEIGHT = Method(
    "reweight",
    ReweightParams,
    _voters,
    _policy,
    _retrains,
    _corrects,
    needs_trusted=True,
)
