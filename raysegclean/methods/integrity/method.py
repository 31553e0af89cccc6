"""Integrity: no network, no change; cases that break the archive's own rules go to a person.

The checks are those of `raysegclean check` (`qc.integrity`), run on the cluster. The label that
is published equals the given one; `cases.parquet` says which classes of which cases to look at,
and why. Real archives hold gross errors (a heart in the abdomen, sides swapped, a level left out)
that no learned method models, and that this finds at the cost of reading the archive once.
"""

from raysegclean.evidence.case_scores import CaseScore
from raysegclean.methods.base import ArchiveEvidence, Method, Verdict, Voters
from raysegclean.policy.decisions import CaseDecision, Decision
from raysegclean.policy.edits import Keep, Review
from raysegclean.qc.findings import Finding, IntegrityParams
from raysegclean.qc.integrity import examine

__all__ = ["INTEGRITY"]

SHOWN = 3


def _voters(params: IntegrityParams) -> Voters:  # noqa: ARG001
    return Voters(members=0, facts=True)


def _policy(evidence: ArchiveEvidence, params: IntegrityParams) -> Verdict:
    found = examine(tuple(evidence.facts.values()), params)
    by_case: dict[str, list[Finding]] = {}
    for finding in found.findings:
        by_case.setdefault(finding.case, []).append(finding)
    decisions = {
        score.case: _decide(score, by_case.get(score.case, []), evidence.classes)
        for score in evidence.scores
    }
    grave = {finding.case for finding in found.findings if finding.grave}
    return Verdict(decisions, chosen={"grave_cases": float(len(grave))})


def _decide(score: CaseScore, findings: list[Finding], values: tuple[int, ...]) -> CaseDecision:
    classes = {}
    for channel in score.classes:
        mine = [f for f in findings if f.label_value in (None, values[channel])]
        words = "; ".join(f"{f.what} ({f.score:.1f})" for f in mine[:SHOWN])
        classes[channel] = (
            Decision(Review(), words) if mine else Decision(Keep(), "like most cases")
        )
    return CaseDecision(classes)


INTEGRITY = Method("integrity", IntegrityParams, _voters, _policy)
