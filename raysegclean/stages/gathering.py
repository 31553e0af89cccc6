"""Gather, on the driver: from the records of all shards to the evidence of the archive."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from raysegclean.core.boundary import OffsetSums
from raysegclean.core.casescore import CaseScore
from raysegclean.core.facts import BlockFacts, LabelFacts, label_facts
from raysegclean.core.scores import case_score
from raysegclean.core.stats import CaseStats
from raysegclean.methods.base import ArchiveEvidence
from raysegclean.netplan import network_notes
from raysegclean.nets.inference import Seams
from raysegclean.plan import RunPlan
from raysegclean.stages.proposing import Proposals
from raysegclean.stages.session import Session
from raysegclean.stages.training import hook_reports
from raysegclean.store.facts import about_case

__all__ = ["case_offsets", "case_stats", "gather", "voter_notes"]


def gather(session: Session, proposals: Proposals) -> ArchiveEvidence:
    """Merge the records of shards into scores per case and stats of the archive."""
    classes = len(session.plan.classes)
    proposed = list(proposals.records.values())
    measured = [*proposed, *proposals.measured.values()]
    stats = case_stats(proposed, classes, "stats")
    trusted_stats = case_stats(proposed, classes, "trusted_stats")
    offsets = case_offsets(measured, classes, "offsets")
    trusted = case_offsets(measured, classes, "trusted_offsets")
    totals = CaseStats.zero(classes)
    for one in stats.values():
        totals = totals.merge(one)
    return ArchiveEvidence(
        scores=_scores(session, stats, offsets),
        trusted=_scores(session, trusted_stats, trusted),
        totals=totals,
        stats=stats,
        spacing_mm={case.case: case.metric_mm for case in session.plan.cases},
        reports=hook_reports(session, proposals.job.models),
        classes=session.plan.classes,
        facts=_facts(session, proposed) if session.plan.voters.facts else {},
    )


def _facts(session: Session, records: Iterable[Mapping[str, Any]]) -> dict[str, LabelFacts]:
    """Return the facts of each given label from the records of its shards."""
    about: dict[str, LabelFacts] = {}
    blocks: dict[str, list[BlockFacts]] = {}
    for record in records:
        case = session.plan.case(record["case"])
        blocks.setdefault(case.case, []).append(BlockFacts.from_text(record["facts"]))
        if "affine" in record:
            about[case.case] = about_case(case, record["affine"], record["label_spacing_mm"])
    return {
        case: label_facts(blocks[case], one)
        for case, one in about.items()
        if case not in session.failed
    }


def voter_notes(plan: RunPlan, records: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Return what must be known of the voters to judge a result, in sentences.

    `records` are those of the propose stage; the seams that they measured are in the notes.
    """
    notes = network_notes(plan.network, blended=plan.blended)
    square = sum(record["seams"][0] for record in records.values() if "seams" in record)
    shared = sum(record["seams"][1] for record in records.values() if "seams" in record)
    if shared:
        error = math.sqrt(square / Seams.SCALE / shared)
        notes += (f"Windows differ by {error:.4f} in probability, on {shared} shared voxels.",)
    return notes


def case_stats(
    records: Iterable[Mapping[str, Any]], classes: int, part: str
) -> dict[str, CaseStats]:
    """Return the merged stats of each case from the records' field `part`."""
    merged: dict[str, CaseStats] = {}
    for record in records:
        if record.get(part) is not None:
            stats = CaseStats.from_text(record[part])
            before = merged.get(record["case"], CaseStats.zero(classes))
            merged[record["case"]] = before.merge(stats)
    return merged


def case_offsets(
    records: Iterable[Mapping[str, Any]], classes: int, part: str
) -> dict[str, OffsetSums]:
    """Return the merged boundary offsets of each case from the records' field `part`."""
    merged: dict[str, OffsetSums] = {}
    for record in records:
        if record.get(part) is not None:
            sums = OffsetSums({int(c): tuple(v) for c, v in record[part].items()})
            before = merged.get(record["case"], OffsetSums.zero(range(1, classes)))
            merged[record["case"]] = before.merge(sums)
    return merged


def _scores(
    session: Session, stats: Mapping[str, CaseStats], offsets: Mapping[str, OffsetSums]
) -> tuple[CaseScore, ...]:
    return tuple(
        case_score(case.case, stats[case.case], offsets[case.case], case.fold)
        for case in session.plan.cases
        if case.case not in session.failed and case.case in stats and case.case in offsets
    )
