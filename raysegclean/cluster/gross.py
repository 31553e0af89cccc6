"""Looks at whole cases: the given label against the networks', error by error, on CPUs.

A case is one task, because nothing of a label that was mirrored or displaced can be told from one
of its shards. Memory: label, prediction and confidence of the case, a byte a voxel each, and a few
bytes a voxel more while one class is looked at.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raysegclean.cluster.predict import Channels, Reader, VoteJob
from raysegclean.evidence.proposals import Proposal
from raysegclean.evidence.records import GrossRecord
from raysegclean.planning.items import ShardTask
from raysegclean.policy.gross_look import GrossLook, look_at
from raysegclean.voxels.geometry import Box

__all__ = ["GrossJob", "GrossStage"]


@dataclass(frozen=True)
class GrossJob:
    """What a look needs to know."""

    votes: VoteJob
    classes: Mapping[str, Sequence[int]]
    """Case -> channels that the networks which judged it have learnt."""
    keys: Mapping[str, str]
    """Case -> key of this look; recorded with it."""


class GrossStage:
    """Looks at cases; one per worker."""

    def __init__(self, job: GrossJob) -> None:
        self._job = job
        self._reader = Reader(job.votes)

    def load(self, task: ShardTask) -> tuple[Channels, Proposal]:
        """Read label and proposal of the whole case."""
        case = self._reader.cases[task.case]
        whole = Box.whole(case.shape_zyx)
        given = self._reader.channels(task.case, self._reader.plan.label, whole)
        return given, self._reader.folder(task.case).read(whole)

    def compute(self, task: ShardTask, loaded: tuple[Channels, Proposal]) -> GrossLook:
        """Return what is seen."""
        given, proposal = loaded
        return look_at(
            given,
            proposal.predicted_zyx(given),
            self._job.classes[task.case],
            confidence_zyx=proposal.confidence_zyx,
            spacing_mm=self._reader.cases[task.case].metric_mm,
        )

    def write(self, task: ShardTask, result: GrossLook) -> GrossRecord:
        """Return the ledger's record; there is nothing to write."""
        key = self._job.keys[task.case]
        return GrossRecord(task.name, task.case, key, look=result.to_text())
