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
wrong, and how (`policy.default.decide`). Not guaranteed: that weights are small where labels are
wrong in a way that no trusted case resembles. The public code passes trusted masks where images
belong.
"""

from typing import Literal

from pydantic.dataclasses import dataclass

from raysegclean.methods.base import ArchiveEvidence, Method, Verdict, Voters
from raysegclean.methods.params import STRICT, Epoch, NetworkParams
from raysegclean.nets.hooks import HookSpec

__all__ = ["REWEIGHT", "ReweightParams"]


@dataclass(frozen=True, config=STRICT)
class ReweightParams(NetworkParams):
    """Settings of reweighting."""

    rule: Literal["default", "published"] = "default"
    """How weights are shared out, and from when on."""
    start_epoch: Epoch = 3
    """Epoch, a tenth of the steps, from which voxels have weights (default rule)."""


def _voters(params: ReweightParams) -> Voters:
    hook = HookSpec.of("reweight", rule=params.rule, start_epoch=params.start_epoch)
    return Voters(members=params.members, hook=hook)


def _policy(evidence: ArchiveEvidence, params: ReweightParams) -> Verdict:
    return Verdict(evidence.judged(params.confidence))


REWEIGHT = Method(
    "reweight", ReweightParams, _voters, _policy, corrects=lambda _: True, needs_trusted=True
)
