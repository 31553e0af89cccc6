"""Gather, on the driver: from the records of all shards to the evidence of the archive."""

import math
from collections.abc import Iterable, Iterator, Mapping

from raysegclean.evidence.case_scores import CaseScore
from raysegclean.evidence.records import ProposeRecord
from raysegclean.evidence.stats import CaseStats, case_score
from raysegclean.methods.base import ArchiveEvidence
from raysegclean.nets.inference import Seams
from raysegclean.planning.network_plan import network_notes
from raysegclean.planning.plan import RunPlan
from raysegclean.planning.spacing import spacing_notes
from raysegclean.runs.propose import Proposals
from raysegclean.runs.session import Session
from raysegclean.runs.train import hook_reports
from raysegclean.voxels.offset_sums import OffsetSums

__all__ = ["StatsByCase", "case_offsets", "gather", "voter_notes"]


def gather(session: Session, proposals: Proposals) -> ArchiveEvidence:
    """Merge the records of shards into scores per case and stats of the archive."""
    classes = len(session.plan.classes)
    proposed = list(proposals.records.values())
    measured = [(r.case, r.offsets) for r in proposed if r.offsets]
    measured += [(r.case, r.offsets) for r in proposals.measured.values()]
    stats = StatsByCase(((r.case, r.stats) for r in proposed), classes)
    offsets = case_offsets(((case, one.given) for case, one in measured), classes)
    scores, totals = _scores(session, stats, offsets)
    trusted_stats = StatsByCase(((r.case, r.trusted_stats) for r in proposed), classes)
    offsets = case_offsets(((case, one.trusted) for case, one in measured), classes)
    trusted, _ = _scores(session, trusted_stats, offsets)
    return ArchiveEvidence(
        scores=scores,
        trusted=trusted,
        totals=totals,
        stats=stats,
        spacing_mm={case.case: case.metric_mm for case in session.plan.cases},
        reports=hook_reports(session, proposals.job.models),
        classes=session.plan.classes,
        policy=session.config.policy,
    )


class StatsByCase(Mapping[str, CaseStats]):
    """The stats of each case, unpacked when they are asked for and not kept.

    With a hundred classes they take megabytes, and as the text of the ledger kilobytes.
    """

    def __init__(self, texts: Iterable[tuple[str, str | None]], classes: int) -> None:
        """`texts`: case and stats as text of each shard that has some."""
        self._classes = classes
        self._texts: dict[str, list[str]] = {}
        for case, text in texts:
            if text is not None:
                self._texts.setdefault(case, []).append(text)

    def __getitem__(self, case: str) -> CaseStats:
        """Return the merged stats of a case's shards."""
        merged = CaseStats.zero(self._classes)
        for text in self._texts[case]:
            merged = merged.merge(CaseStats.from_text(text))
        return merged

    def __contains__(self, case: object) -> bool:
        """Tell whether the case has stats, without unpacking them."""
        return case in self._texts

    def __iter__(self) -> Iterator[str]:
        """Yield the cases."""
        return iter(self._texts)

    def __len__(self) -> int:
        """Return the number of cases."""
        return len(self._texts)


def voter_notes(plan: RunPlan, records: Iterable[ProposeRecord]) -> tuple[str, ...]:
    """Return what must be known of the voters to judge a result, in sentences.

    `records` are those of the propose stage; the seams that they measured are in the notes.
    """
    notes = network_notes(plan.network, averaged=plan.averaged)
    if plan.voters.members:
        notes += spacing_notes(plan.cases, plan.spacing_mm)
    seams = [record.seams for record in records if record.seams]
    square, shared = (sum(one[i] for one in seams) for i in (0, 1))
    if shared:
        error = math.sqrt(square / Seams.SCALE / shared)
        notes += (f"Windows differ by {error:.4f} in probability, on {shared} shared voxels.",)
    return notes


def case_offsets(
    found: Iterable[tuple[str, OffsetSums | None]], classes: int
) -> dict[str, OffsetSums]:
    """Return the merged boundary offsets of each case from those of its shards that have some."""
    merged: dict[str, OffsetSums] = {}
    for case, sums in found:
        if sums is not None:
            merged[case] = merged.get(case, OffsetSums.zero(range(1, classes))).merge(sums)
    return merged


def _scores(
    session: Session, stats: Mapping[str, CaseStats], offsets: Mapping[str, OffsetSums]
) -> tuple[tuple[CaseScore, ...], CaseStats]:
    """Return the scores of each case that has not failed, and the stats of all of them."""
    totals, scores = CaseStats.zero(len(session.plan.classes)), []
    for case in session.plan.cases:
        if case.case not in session.failed and case.case in stats and case.case in offsets:
            one = stats[case.case]
            totals = totals.merge(one)
            scores.append(case_score(case.case, one, offsets[case.case], case.fold))
    return tuple(scores), totals
