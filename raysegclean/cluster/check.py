"""The model-free checks on workers: the facts of every shard of the given labels, counted once.

No network runs and nothing is written but the ledger's records, which `qc.integrity` judges.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from raysegclean.evidence.records import CheckRecord
from raysegclean.planning.items import ShardTask
from raysegclean.planning.plan import RunPlan
from raysegclean.qc.collect import read_affine, read_block_statistics
from raysegclean.qc.label_statistics import BlockStatistics
from raysegclean.store.archive import Archive

__all__ = ["CheckJob", "CheckStage"]


@dataclass(frozen=True)
class CheckJob:
    """What a worker needs to know; the same for all workers."""

    plan: RunPlan
    keys: Mapping[str, str]
    """Case -> key of its check; recorded with every shard."""


class CheckStage:
    """Counts the facts of shards; one per worker."""

    def __init__(self, job: CheckJob) -> None:
        self._job = job
        self._cases = {case.case: case for case in job.plan.cases}
        self._archive = archive = Archive.open(job.plan.archive)
        self._image = lru_cache(maxsize=64)(archive.image)
        self._given = lru_cache(maxsize=64)(lambda case: archive.label(case, job.plan.label))

    def load(self, task: ShardTask) -> BlockStatistics:
        """Read label and image, and count, so that no more than one shard is held."""
        case = self._cases[task.case]
        core = case.grid(self._job.plan.shard_vox).box(task.index_zyx)
        label, image = self._given(case.case), self._image(case.case)
        return read_block_statistics(label, image, case, core)

    def compute(self, task: ShardTask, loaded: BlockStatistics) -> CheckRecord:
        """Return the ledger's record."""
        first = task.index_zyx == (0, 0, 0)
        return CheckRecord(
            task.name,
            task.case,
            self._job.keys[task.case],
            facts=loaded.to_text(),
            affine=read_affine(self._archive, task.case) if first else None,
        )

    def write(self, task: ShardTask, result: CheckRecord) -> CheckRecord:  # noqa: ARG002
        """Return the record; there is nothing to write."""
        return result
