"""Judge: from the evidence of the archive to the verdict that is applied, second passes and all.

First the method's policy, with the looks that it asks for; then the voxel corrector where there are
trusted cases enough, else the blending of noisy outlines. A run and a search's trial judge alike.
"""

from raysegclean.methods.base import ArchiveEvidence, Verdict
from raysegclean.runs.blend import blend
from raysegclean.runs.correct import correct
from raysegclean.runs.propose import Proposals
from raysegclean.runs.second_pass import answered
from raysegclean.runs.session import Session

__all__ = ["judge"]


def judge(
    session: Session, proposals: Proposals, evidence: ArchiveEvidence
) -> tuple[Proposals, Verdict]:
    """Return the verdict, and the proposals with the labels that were revised for it."""
    policy = session.method.policy(evidence, session.params)
    proposals, verdict = answered(session, proposals, policy)
    proposals, verdict = correct(session, proposals, evidence, verdict)
    return blend(session, proposals, evidence, verdict)
