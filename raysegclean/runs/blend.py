"""Blend: draw the outlines of noisy groups towards the networks', where the corrector did not act.

Which, and by how much, `policy.blend_groups` says; one revision of the flagged cases carries it
out.
"""

from dataclasses import replace

from raysegclean.evidence.second_pass import Revision
from raysegclean.methods.base import ArchiveEvidence, Verdict
from raysegclean.policy.blend_groups import with_blends
from raysegclean.policy.blending import BlendReviser
from raysegclean.runs.propose import Proposals
from raysegclean.runs.second_pass import answered
from raysegclean.runs.session import Session

__all__ = ["blend", "blended"]


def blend(
    session: Session, proposals: Proposals, evidence: ArchiveEvidence, verdict: Verdict
) -> tuple[Proposals, Verdict]:
    """Return the verdict with blended outlines in the cases of noisy groups.

    Both come back unchanged where the method wants no second pass of its default policy, or the
    labels are revised already.
    """
    if not session.method.corrects(session.params) or verdict.revision is not None:
        return proposals, verdict
    return answered(session, proposals, blended(evidence, verdict))


def blended(evidence: ArchiveEvidence, verdict: Verdict) -> Verdict:
    """Return the verdict whose noisy groups are blended; a pure function."""
    decisions, blends = with_blends(evidence.scores, verdict.decisions, evidence.policy)
    if not blends:
        return verdict
    values = {case: BlendReviser.values(mine) for case, mine in blends.items()}
    return replace(
        verdict,
        decisions=decisions,
        chosen={**verdict.chosen, "blended": len(blends)},
        revision=Revision(BlendReviser(), values),
    )
