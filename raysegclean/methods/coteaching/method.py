"""Co-teaching (Han et al., NeurIPS 2018), voxel by voxel: two peers drop each other's worst voxels.

Each network ranks the voxels of a batch by its cross-entropy and passes on those that it explains
best, R(t) = 1 - forget x min(t / ramp, 1) of them at epoch t; its peer learns from these alone.
What is dropped is not relabelled: Co-teaching makes voters, and the policy decides which cases are
wrong, and how (`policy.default.decide`), under either rule.

`rule: published` ranks all voxels of a batch together. Background is explained best, so small
organs are dropped first. `rule: default` repairs that: voxels are ranked within their given class.
Background loses no more voxels than the foreground does, because a label that is wrong by some
voxels of an organ is wrong by about as many of background; a fifth of all background would be a
wide shell round every organ, and without it an outline cannot be learnt.

Not guaranteed: that dropped voxels are wrong. `forget` is the noise rate, which Co-teaching takes
as known. The published loss is divided twice by the number of kept voxels; here it is once.
"""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from raysegclean.methods.base import ArchiveEvidence, Method, Verdict, Voters
from raysegclean.methods.params import STRICT, EditParams, NotNegative
from raysegclean.nets.hooks import HookSpec

__all__ = ["COTEACHING", "CoteachingParams"]


@dataclass(frozen=True, config=STRICT)
class CoteachingParams(EditParams):
    """Settings of Co-teaching."""

    forget: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of the voxels of a class that is dropped in the end (tau, the noise rate)."""
    ramp_epochs: NotNegative = 3.0
    """Epochs, each a tenth of the steps, over which that share grows from 0 (T_k)."""
    rule: Literal["default", "published"] = "default"
    """Which voxels are ranked together: those of one class, or all of a batch."""


def _voters(params: CoteachingParams) -> Voters:
    hook = HookSpec.of(
        "coteaching",
        forget=params.forget,
        ramp_epochs=params.ramp_epochs,
        by_class=params.rule == "default",
    )
    return Voters(members=2, hook=hook)


def _policy(evidence: ArchiveEvidence, params: CoteachingParams) -> Verdict:
    return Verdict(evidence.judged(params.confidence))


COTEACHING = Method("coteaching", CoteachingParams, _voters, _policy, corrects=lambda _: True)
