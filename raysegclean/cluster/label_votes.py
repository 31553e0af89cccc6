"""Propose without networks: labels of the archive vote.

The same shards, proposals and records as those of `cluster.propose`, so all that follows is the
same.
"""

from dataclasses import dataclass, replace

from raysegclean.cluster.predict import Channels, Reader, VoteJob
from raysegclean.cluster.propose import Proposing, whole_offsets
from raysegclean.evidence.proposals import Proposal
from raysegclean.evidence.records import ProposeRecord
from raysegclean.evidence.stats import block_stats
from raysegclean.methods.combine.votes import count_votes
from raysegclean.planning.items import ShardTask

__all__ = ["LabelVoteStage"]


@dataclass(frozen=True)
class Loaded:
    """What one shard is proposed from; labels are channel indices."""

    given_zyx: Channels
    trusted_zyx: Channels | None
    votes_zyx: list[Channels]


class LabelVoteStage(Proposing):
    """Proposes shards from labels; one per worker."""

    def __init__(self, job: VoteJob) -> None:
        super().__init__(Reader(job))

    def load(self, task: ShardTask) -> Loaded:
        """Read the labels."""
        case = self._cases[task.case]
        box = case.grid(self._plan.shard_vox).box(task.index_zyx)
        given, trusted = self._reader.labels(case, box)
        names = self._plan.voters.labels
        votes = [self._reader.channels(case.case, name, box) for name in names]
        return Loaded(given, trusted, votes)

    def compute(self, task: ShardTask, loaded: Loaded) -> tuple[Proposal, ProposeRecord]:
        """Count the votes; return its proposal and the record, without objects."""
        case, classes = self._cases[task.case], len(self._plan.classes)
        given, truth = loaded.given_zyx, loaded.trusted_zyx
        ballot = count_votes(given, loaded.votes_zyx, classes)
        proposal = ballot.proposal()
        if not self._plan.voters.score:
            proposal = replace(proposal, score_zyx=None)
        stats = block_stats(ballot.evidence(), proposal, given, classes, truth)
        record = ProposeRecord(
            task.name,
            task.case,
            self._job.keys[task.case],
            stats=stats.to_text(),
            trusted_stats=None if truth is None else self._trusted_stats(truth, loaded.votes_zyx),
            offsets=whole_offsets(self._plan, case, (given, truth), proposal),
        )
        return proposal, record

    def _trusted_stats(self, truth: Channels, votes_zyx: list[Channels]) -> str:
        classes = len(self._plan.classes)
        against = count_votes(truth, votes_zyx, classes)
        return block_stats(against.evidence(), against.proposal(), truth, classes, truth).to_text()
