"""Judge: from the evidence of the archive to the verdict that is applied, second passes and all.

First what is grossly wrong, which says nothing of how outlines are drawn: those cases are left out
of the archive that the others are judged by. Then the method's policy, with the looks that it asks
for; then the voxel corrector where there are trusted cases enough, else the blending of noisy
outlines. A run and a search's trial judge alike.
"""

from dataclasses import replace

from raysegclean.methods.base import ArchiveEvidence, Verdict
from raysegclean.policy.gross import with_gross
from raysegclean.policy.kept import agreeing, in_doubt, judged_kept, least_agreements, usual_labels
from raysegclean.policy.quality import qualities
from raysegclean.qc.integrity import Examination
from raysegclean.runs.blend import blend
from raysegclean.runs.correct import correct
from raysegclean.runs.gross import find_gross, without_gross
from raysegclean.runs.propose import Proposals
from raysegclean.runs.second_pass import answered
from raysegclean.runs.session import Session

__all__ = ["judge", "with_doubts"]


def judge(
    session: Session, proposals: Proposals, evidence: ArchiveEvidence
) -> tuple[Proposals, Verdict]:
    """Return the verdict, and the proposals with the labels that were revised for it."""
    gross = find_gross(session, proposals, evidence)
    evidence = without_gross(evidence, gross)
    policy = session.method.policy(evidence, session.params)
    proposals, verdict = answered(session, proposals, policy)
    proposals, verdict = correct(session, proposals, evidence, verdict)
    proposals, verdict = blend(session, proposals, evidence, verdict)
    return proposals, replace(verdict, decisions=with_gross(verdict.decisions, gross))


def with_doubts(
    session: Session, evidence: ArchiveEvidence, verdict: Verdict, found: Examination
) -> Verdict:
    """Return the verdict that says of each class that stays as given whether it was found right.

    What the checks found joins what the networks see. Nothing that changes is changed here.
    """
    decisions = dict(verdict.decisions)
    least: dict[int, float] = {}
    agree: dict[str, frozenset[int]] = {}
    if session.plan.voters.members:
        usual = usual_labels(evidence.scores, evidence.trusted, evidence.policy)
        decisions = judged_kept(decisions, evidence.scores, usual)
        least, agree = least_agreements(usual), agreeing(evidence.scores, usual)
    said = found.said(session.plan.classes)
    words = {case: {c: one.words for c, one in mine.items()} for case, mine in said.items()}
    grave = {case: {c for c, one in mine.items() if one.grave} for case, mine in said.items()}
    overruled = {case: mine - grave.get(case, set()) for case, mine in agree.items()}
    decisions = in_doubt(decisions, words, overruled)
    quality = qualities(decisions, evidence.scores, sorted(least))
    return replace(verdict, decisions=decisions, least_agreement=least, quality=quality)
