"""Co-Seg (Huang et al., arXiv 2102.00523): two peers that choose each other's samples.

Published form (`alpha` given, the share of clean cases): the 1 - alpha worst cases by corruption
score are noisy; in them a voxel changes where both peers agree against the label. Repaired here:
the score is divided by the labelled voxels, so that large organs do not rank higher, and the peers
that judge a case never trained on it.

Default (`alpha: null`, the noise level is not known): the peers are the voters and the policy
finds out which cases are wrong, and how (`policy.default.decide`).
"""

from pydantic.dataclasses import dataclass

from raysegclean.methods.base import ArchiveEvidence, Method, Verdict, Voters
from raysegclean.methods.params import STRICT, EditParams, Epoch, Share
from raysegclean.nets.hooks import HookSpec
from raysegclean.policy.default import decide_worst

__all__ = ["COSEG", "CosegParams"]


@dataclass(frozen=True, config=STRICT)
class CosegParams(EditParams):
    """Settings of Co-Seg."""

    alpha: Share | None = None
    """Share of cases that are clean (1 - noise level); null: found by the policy."""
    keep: Share = 0.8
    """Share of cases whose samples a peer passes on while training; `alpha` overrides it."""
    start_epoch: Epoch = 3
    """Epoch, a tenth of the steps, at which the peers begin to choose."""
    retrain: bool = True


def _voters(params: CosegParams) -> Voters:
    keep = params.keep if params.alpha is None else params.alpha
    return Voters(
        members=2,
        hook=HookSpec.of("coseg", keep=keep, start_epoch=params.start_epoch),
        # The default solves its thresholds from the archive, which weighs disagreement better.
        needs_agreement=params.alpha is not None,
    )


def _policy(evidence: ArchiveEvidence, params: CosegParams) -> Verdict:
    if params.alpha is not None:
        return Verdict(decide_worst(evidence.scores, alpha=params.alpha, min_confidence=1 / 256))
    return Verdict(evidence.judged(params.confidence))


COSEG = Method("coseg", CosegParams, _voters, _policy, corrects=lambda params: params.alpha is None)
