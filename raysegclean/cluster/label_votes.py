"""Propose without networks: labels of the archive vote, and facts of given labels are counted.

The same shards, proposals and records as those of `cluster.propose`, so all that follows is the
same.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from raysegclean.cluster.predict import Channels, Reader, VoteJob
from raysegclean.cluster.proposal_folder import ProposalFolder, record_of
from raysegclean.cluster.propose import Proposed, labels_of, offset_fields
from raysegclean.evidence.stats import block_stats
from raysegclean.methods.combine.votes import count_votes
from raysegclean.planning.items import ShardTask
from raysegclean.planning.plan import CasePlan
from raysegclean.qc.collect import read_affine, read_block_statistics
from raysegclean.qc.label_statistics import BlockStatistics
from raysegclean.store.archive import Archive
from raysegclean.store.objects import Store
from raysegclean.voxels.geometry import Box

__all__ = ["LabelVoteStage"]


@dataclass(frozen=True)
class Loaded:
    """What one shard is proposed from; labels are channel indices."""

    given_zyx: Channels
    trusted_zyx: Channels | None
    votes_zyx: list[Channels]
    facts: BlockStatistics | None
    about: dict[str, Any]
    """What the first shard of a case records about its geometry, for the facts."""


class LabelVoteStage:
    """Proposes shards from labels; one per worker."""

    def __init__(self, job: VoteJob) -> None:
        self._job = job
        self._plan = job.plan
        self._cases = {case.case: case for case in job.plan.cases}
        self._store = Store.open(job.run)
        self._archive = Archive.open(job.plan.archive)
        self._reader = Reader(job.plan)
        self._given = lru_cache(maxsize=64)(
            lambda case: self._archive.label(case, self._plan.label)
        )
        self._folder = lru_cache(maxsize=256)(self._create_folder)

    def load(self, task: ShardTask) -> Loaded:
        """Read the labels; count the facts where they are wanted."""
        case = self._cases[task.case]
        box = case.grid(self._plan.shard_vox).box(task.index_zyx)
        given, trusted = labels_of(self._reader, self._plan, case, box)
        names = self._plan.voters.labels
        votes = [self._reader.channels(case.case, name, box) for name in names]
        if not self._plan.voters.facts:
            return Loaded(given, trusted, votes, None, {})
        image = self._reader.image(case.case)
        facts = read_block_statistics(self._given(case.case), image, case, box)
        first = task.index_zyx == (0, 0, 0)
        return Loaded(given, trusted, votes, facts, self._about(case) if first else {})

    def compute(self, task: ShardTask, loaded: Loaded) -> Proposed:
        """Count the votes; return the shard's proposal and counts."""
        case, classes = self._cases[task.case], len(self._plan.classes)
        given, truth = loaded.given_zyx, loaded.trusted_zyx
        ballot = count_votes(given, loaded.votes_zyx, classes)
        proposal = ballot.proposal()
        if not self._plan.voters.score:
            proposal = replace(proposal, score_zyx=None)
        stats = block_stats(ballot.evidence(), proposal, given, classes, truth)
        fields: dict[str, Any] = {"stats": stats.to_text(), **loaded.about}
        if truth is not None:
            against = count_votes(truth, loaded.votes_zyx, classes)
            of_truth = block_stats(against.evidence(), against.proposal(), truth, classes, truth)
            fields["trusted_stats"] = of_truth.to_text()
        if loaded.facts is not None:
            fields["facts"] = loaded.facts.to_text()
        if len(case.grid(self._plan.shard_vox)) == 1:
            whole = Box.whole(case.shape_zyx)
            fields |= offset_fields(case, (given, truth), proposal, classes, whole)
        return Proposed(proposal, fields)

    def write(self, task: ShardTask, result: Proposed) -> dict[str, Any]:
        """Write the proposal's shard; return the ledger's record."""
        objects = self._folder(task.case).write(task.index_zyx, result.proposal)
        return record_of(task, self._job.keys[task.case], objects) | result.fields

    def _about(self, case: CasePlan) -> dict[str, Any]:
        return {
            "affine": read_affine(self._archive, case.case),
            "label_spacing_mm": self._archive.label_spacing_mm(case.case, self._plan.label),
        }

    def _create_folder(self, case: str) -> ProposalFolder:
        folder = ProposalFolder.of(self._store, self._plan, self._cases[case], self._job.keys[case])
        folder.create()
        return folder
