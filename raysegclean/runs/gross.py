"""Gross errors: suspicious cases are looked at as a whole, before the archive is judged.

What is proved is repaired, what is likely goes to a person (`policy.gross`). Methods that judge
otherwise than by the default policy do without, and so do labels that vote in place of networks.
"""

from collections.abc import Mapping
from dataclasses import replace

from raysegclean.cluster.gross import GrossJob, GrossStage
from raysegclean.evidence.records import GrossRecord
from raysegclean.identity import ALGORITHM_VERSIONS, digest
from raysegclean.methods.base import ArchiveEvidence
from raysegclean.policy.decisions import CaseDecision
from raysegclean.policy.gross import all_explained, not_gross, suspects, usual_agreement
from raysegclean.policy.gross_look import GrossLook
from raysegclean.runs.propose import Proposals, relabel_resources
from raysegclean.runs.session import Session

__all__ = ["LOOKS", "find_gross", "without_gross"]

LOOKS = "looks.parquet"
"""What was seen of each case that was looked at as a whole; `replay` decides again from it."""


def find_gross(
    session: Session, proposals: Proposals, evidence: ArchiveEvidence
) -> dict[str, CaseDecision]:
    """Return what is proved or likely of the cases that agree with the networks badly."""
    if not session.method.corrects(session.params) or not session.plan.voters.members:
        return {}
    params = evidence.policy
    usual = usual_agreement(evidence.scores, params, evidence.trusted)
    fold_of = {score.case: score.fold for score in evidence.scores}
    chosen = suspects(evidence.scores, usual, params)
    alive = set(session.alive())
    classes = {case: sorted(usual[fold_of[case]]) for case in chosen if case in alive}
    keys = {
        case: digest(ALGORITHM_VERSIONS["gross"], proposals.keys[case], mine)
        for case, mine in classes.items()
    }
    job = GrossJob(proposals.job, classes, keys)
    resources = relabel_resources(session, "labels")
    records = session.run_stage(
        "gross", GrossRecord, GrossStage, job, keys, resources, whole_cases=True
    )
    texts = {one.case: one.look for one in records.values()}
    rows = [{"case": case, "look": texts[case]} for case in sorted(texts)]
    if rows:
        session.run.write_table(LOOKS, rows)
    looks = {case: GrossLook.from_text(text) for case, text in texts.items()}
    called = dict(enumerate(map(session.plan.called, session.plan.classes)))
    return all_explained(evidence.scores, looks, usual, params, called)


def without_gross(evidence: ArchiveEvidence, gross: Mapping[str, CaseDecision]) -> ArchiveEvidence:
    """Return the evidence without the cases in which a gross error is proved."""
    scores, trusted = (not_gross(part, gross) for part in (evidence.scores, evidence.trusted))
    return replace(evidence, scores=scores, trusted=trusted)
