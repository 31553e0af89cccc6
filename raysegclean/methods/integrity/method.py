"""Integrity: no network, no change; cases that break the archive's own rules go to a person.

The checks are those of `raysegclean check` (`qc.integrity`), which every run makes; this method
makes no more than them, with thresholds of its own. The label that is published equals the given
one; `cases.parquet` says which classes of which cases to look at, and why. Real archives hold gross
errors (a heart in the abdomen, sides swapped, a level left out) that no learned method models, and
that this finds at the cost of reading the archive once.
"""

from raysegclean.methods.base import ArchiveEvidence, Method, Verdict, Voters
from raysegclean.policy.decisions import CaseDecision, Decision
from raysegclean.policy.edits import NotJudged
from raysegclean.qc.findings import IntegrityParams

__all__ = ["INTEGRITY"]

_UNSEEN = Decision(NotJudged(), "no network judged it; the checks found nothing odd")


def _voters(params: IntegrityParams) -> Voters:  # noqa: ARG001
    return Voters(members=0)


def _policy(evidence: ArchiveEvidence, params: IntegrityParams) -> Verdict:  # noqa: ARG001
    return Verdict(
        {s.case: CaseDecision(dict.fromkeys(s.classes, _UNSEEN)) for s in evidence.scores}
    )


INTEGRITY = Method("integrity", IntegrityParams, _voters, _policy)
