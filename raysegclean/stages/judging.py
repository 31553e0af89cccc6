"""Judge: from the evidence of the archive to the verdict that is settled, second passes and all.

First the method's policy, with the looks that it asks for; then the voxel corrector where there are
trusted cases enough, else the blending of noisy outlines. A run and a search's trial judge alike.
"""

from raysegclean.methods.base import ArchiveEvidence, Verdict
from raysegclean.stages.asking import answered
from raysegclean.stages.blending import blend
from raysegclean.stages.correcting import correct
from raysegclean.stages.proposing import Proposals
from raysegclean.stages.session import Session

__all__ = ["judge"]


def judge(
    session: Session, proposals: Proposals, evidence: ArchiveEvidence
) -> tuple[Proposals, Verdict]:
    """Return the verdict, and the proposals with the labels that were revised for it."""
    policy = session.method.policy(evidence, session.params)
    proposals, verdict = answered(session, proposals, policy)
    proposals, verdict = correct(session, proposals, evidence, verdict)
    return blend(session, proposals, evidence, verdict)
