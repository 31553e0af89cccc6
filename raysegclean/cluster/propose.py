"""Propose: the only stage that runs networks over the archive, once.

A shard is read with its halo, predicted tile by tile, folded into evidence, and left as a sparse
proposal plus counts; probabilities never leave the device's tile. Cases of several shards are
measured afterwards, because the distance of a boundary needs a halo of predictions that only the
neighbouring shards hold.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from raysegclean.cluster.predict import Channels, Predictor, Reader, VoteJob, Window
from raysegclean.evidence.proposals import Proposal, propose
from raysegclean.evidence.records import MeasureRecord, Offsets, ProposeRecord
from raysegclean.evidence.stats import CaseStats, block_stats
from raysegclean.evidence.voxel_evidence import Evidence, EvidenceSum
from raysegclean.nets.inference import Seams
from raysegclean.planning.items import ShardTask
from raysegclean.planning.plan import CasePlan, RunPlan
from raysegclean.voxels.contour_offset import boundary_sums, offset_halo_vox
from raysegclean.voxels.geometry import Box
from raysegclean.voxels.offset_sums import OffsetSums

__all__ = [
    "MeasureStage",
    "ProposeStage",
    "Proposing",
    "boundary_offsets",
    "whole_offsets",
]


@dataclass(frozen=True)
class Loaded:
    """What one shard is proposed from."""

    image: Window
    given_zyx: Channels
    trusted_zyx: Channels | None


class Proposing:
    """What stages share that write proposals."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._job, self._plan, self._cases = reader.job, reader.plan, reader.cases
        self._created = lru_cache(maxsize=256)(lambda case: reader.folder(case).create())

    def write(self, task: ShardTask, result: tuple[Proposal, ProposeRecord]) -> ProposeRecord:
        """Write the proposal's shard; return the ledger's record."""
        proposal, record = result
        return replace(record, objects=self._created(task.case).write(task.index_zyx, proposal))


class ProposeStage(Proposing):
    """Proposes shards; one per worker."""

    def __init__(self, job: VoteJob) -> None:
        self._predictor = Predictor(job)
        super().__init__(self._predictor)

    def load(self, task: ShardTask) -> Loaded:
        """Read the image with the network's halo, and the labels."""
        case = self._cases[task.case]
        box = case.grid(self._plan.shard_vox).box(task.index_zyx)
        image = self._predictor.read(case, box)
        return Loaded(image, *self._reader.labels(case, box))

    def compute(self, task: ShardTask, loaded: Loaded) -> tuple[Proposal, ProposeRecord]:
        """Predict the shard tile by tile; return its proposal and the record, without objects."""
        case = self._cases[task.case]
        classes = len(self._plan.classes)
        box = loaded.image.box
        proposal = _empty_proposal(box, bool(self._plan.voters.score))
        stats = trusted_stats = CaseStats.zero(classes)
        seams = Seams() if self._plan.averaged else None
        for tile, passes in self._predictor.tiles(case, loaded.image, seams):
            sums = EvidenceSum()
            for prob_czyx in passes:
                sums.add(prob_czyx)
            part = tile.core.relative_to(box).slices
            given = loaded.given_zyx[part]
            truth = None if loaded.trusted_zyx is None else loaded.trusted_zyx[part]
            evidence = sums.finish(given)
            proposed = self._propose(evidence, given)
            _place(proposal, proposed, part)
            stats = stats.merge(block_stats(evidence, proposed, given, classes, truth))
            if truth is not None:
                against = sums.finish(truth)
                proposed = self._propose(against, truth)
                trusted_stats = trusted_stats.merge(block_stats(against, proposed, truth, classes))
        labels = (loaded.given_zyx, loaded.trusted_zyx)
        record = ProposeRecord(
            task.name,
            task.case,
            self._job.keys[task.case],
            stats=stats.to_text(),
            trusted_stats=None if loaded.trusted_zyx is None else trusted_stats.to_text(),
            offsets=whole_offsets(self._plan, case, labels, proposal),
            seams=None if seams is None else (seams.square, seams.count),
        )
        return proposal, record

    def _propose(self, evidence: Evidence, given: Channels) -> Proposal:
        voters = self._plan.voters
        return propose(evidence, given, needs_agreement=voters.needs_agreement, score=voters.score)


class MeasureStage:
    """Measures boundary offsets of cases of several shards, from label and proposal, on CPU."""

    def __init__(self, job: VoteJob) -> None:
        self._reader = Reader(job)

    def load(self, task: ShardTask) -> tuple[Box, Channels, Channels | None, Proposal]:
        """Read label and proposal with the halo of the distances."""
        case = self._reader.cases[task.case]
        core = case.grid(self._reader.plan.shard_vox).box(task.index_zyx)
        halo = offset_halo_vox(case.metric_mm)
        window = core.grown(halo).clipped(Box.whole(case.shape_zyx))
        proposal = self._reader.folder(task.case).read(window)
        return core.relative_to(window), *self._reader.labels(case, window), proposal

    def compute(
        self, task: ShardTask, loaded: tuple[Box, Channels, Channels | None, Proposal]
    ) -> Offsets:
        """Return the offsets of the shard's core."""
        core, given, trusted, proposal = loaded
        case, classes = self._reader.cases[task.case], len(self._reader.plan.classes)
        return boundary_offsets(case, (given, trusted), proposal, classes, core)

    def write(self, task: ShardTask, result: Offsets) -> MeasureRecord:
        """Return the ledger's record; there is nothing to write."""
        key = self._reader.job.keys[task.case]
        return MeasureRecord(task.name, task.case, key, offsets=result)


def _empty_proposal(box: Box, with_score: bool) -> Proposal:
    blank = [np.zeros(box.shape_zyx, np.uint8) for _ in range(3 if with_score else 2)]
    return Proposal(blank[0], blank[1], blank[2] if with_score else None)


def _place(whole: Proposal, tile: Proposal, part: tuple[slice, slice, slice]) -> None:
    whole.candidate_zyx[part] = tile.candidate_zyx
    whole.confidence_zyx[part] = tile.confidence_zyx
    if whole.score_zyx is not None and tile.score_zyx is not None:
        whole.score_zyx[part] = tile.score_zyx


def whole_offsets(
    plan: RunPlan, case: CasePlan, labels: tuple[Channels, Channels | None], proposal: Proposal
) -> Offsets | None:
    """Return the offsets of a case of one shard; None for others, which are measured later."""
    if len(case.grid(plan.shard_vox)) > 1:
        return None
    return boundary_offsets(case, labels, proposal, len(plan.classes), Box.whole(case.shape_zyx))


def boundary_offsets(
    case: CasePlan,
    labels: tuple[Channels, Channels | None],
    proposal: Proposal,
    classes: int,
    core: Box,
) -> Offsets:
    """Return the boundary offsets of the given and of the trusted label against the prediction."""
    given, trusted = labels
    predicted = proposal.predicted_zyx(given)

    def sums(label: Channels) -> OffsetSums:
        return boundary_sums(
            label, predicted, classes=range(1, classes), core=core, spacing_mm=case.metric_mm
        )

    return Offsets(sums(given), None if trusted is None else sums(trusted))
