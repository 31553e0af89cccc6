"""Check: what the given labels break of the archive's own rules, before anything is trained.

The checks of `raysegclean check`, as a pass of the run: what its ledger holds is not read again.
"""

from collections.abc import Iterable

from raysegclean.cluster.check import CheckJob, CheckStage
from raysegclean.evidence.records import CheckRecord
from raysegclean.identity import ALGORITHM_VERSIONS, digest
from raysegclean.qc.collect import about_case
from raysegclean.qc.findings import IntegrityParams
from raysegclean.qc.integrity import Examination, examine
from raysegclean.qc.label_statistics import BlockStatistics, LabelStatistics, label_statistics
from raysegclean.runs.propose import relabel_resources
from raysegclean.runs.session import Session

__all__ = ["check", "check_notes"]


def check(session: Session) -> Examination:
    """Return what is wrong or odd with the cases of the run that have not failed.

    By the thresholds of the method, where it has some (`integrity`), else by those of
    `raysegclean check`.
    """
    plan, version = session.plan, ALGORITHM_VERSIONS["check"]
    keys = {
        case.case: digest(version, plan.label, case.version, plan.shard_vox)
        for case in plan.cases
        if case.case not in session.failed
    }
    resources = relabel_resources(session, "labels")
    job = CheckJob(plan, keys)
    records = session.run_stage("check", CheckRecord, CheckStage, job, keys, resources)
    params = session.params if isinstance(session.params, IntegrityParams) else None
    statistics = _statistics(session, records.values())
    found = examine(statistics, params, names=plan.names)
    if found.findings:
        cases = len({finding.case for finding in found.findings})
        grave = sum(finding.grave for finding in found.findings)
        said = f"{cases} of {len(keys)} cases have something odd, {grave} findings are grave"
        session.events.say("check", said)
    return found


def check_notes(session: Session, found: Examination) -> tuple[str, ...]:
    """Return what the checks, and the default policy, could not judge."""
    few, cases = session.config.policy.min_cases, len(session.plan.cases)
    notes = tuple(f"Checks: {note}." for note in found.notes)
    if cases >= few:
        return notes
    return (f"Only {cases} cases: below {few} no label is usual or odd.", *notes)


def _statistics(session: Session, records: Iterable[CheckRecord]) -> tuple[LabelStatistics, ...]:
    """Return the facts of each given label from the records of its shards."""
    affines: dict[str, tuple[tuple[float, ...], ...] | None] = {}
    blocks: dict[str, list[BlockStatistics]] = {}
    for record in records:
        blocks.setdefault(record.case, []).append(BlockStatistics.from_text(record.facts))
        affines[record.case] = record.affine or affines.get(record.case)
    alive = set(session.alive())
    return tuple(
        label_statistics(
            facts, about_case(session.plan.case(case), affines[case]), session.plan.label_ignore
        )
        for case, facts in blocks.items()
        if case in alive
    )
