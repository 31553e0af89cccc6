"""The training feed: patches cut anywhere on the cluster, in the order of the steps.

What comes at a step is fixed, see `patches`; how it gets there is not. A Ray Data source emits one
read task per few steps; the task cuts the patches where it runs and only finished patches of one
fixed shape travel. So reading scales apart from training, and a resumed training starts at any
step with exactly the patches it would have had.

Guaranteed: rows in the order of steps and samples, each step whole. A store that cannot be reached
is an error of the task, which the training retries.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pyarrow as pa
import ray
from ray.data import Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask
from ray.data.extensions import ArrowTensorArray

from raysegclean.cluster.connection import data_rules, node_memory_bytes
from raysegclean.cluster.patches import PatchSource, Rows

__all__ = ["StepSource", "stream_rows"]

_BLOCK_BYTES = 32 << 20
_BLOCK_STEPS = 64
_BLOCKS_PER_DATASET = 2000
_READER_CPUS = 0.5
_READER_BYTES = 700 << 20
"""Heap of a reader: the chunk cache of 256 MB, a block being built, and the interpreter."""


@dataclass(frozen=True)
class _CutBlock:
    """What a read task runs: cut the steps [first, stop) of one rank into one block."""

    source: "ray.ObjectRef[PatchSource]"
    first: int
    stop: int
    rank: int
    ranks: int

    def __call__(self) -> Iterator[pa.Table]:
        source = _fetched(self.source)
        steps = [source.cut(step, self.rank, self.ranks) for step in range(self.first, self.stop)]
        rows = {name: np.concatenate([step[name] for step in steps]) for name in steps[0]}
        tensors = {name: ArrowTensorArray.from_numpy(rows[name]) for name in ("image", "label")}
        plain = {name: pa.array(rows[name]) for name in ("step", "case", "uniform", "trusted")}
        yield pa.table({**tensors, **plain, "fault": pa.array(rows["fault"], pa.string())})


@lru_cache(maxsize=2)
def _fetched(source: "ray.ObjectRef[PatchSource]") -> PatchSource:
    return ray.get(source)


@dataclass(eq=False)
class StepSource(Datasource):
    """Ray Data's view of a stretch of training: a read task per `steps_per_block` steps."""

    source: "ray.ObjectRef[PatchSource]"
    steps: range
    rank: int
    ranks: int
    rows_per_step: int
    patch_bytes: int
    bounds: list[int] = field(init=False)

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # no types in Ray
        size = _steps_per_block(self.patch_bytes * self.rows_per_step)
        self.bounds = [*range(self.steps.start, self.steps.stop, size), self.steps.stop]

    def __len__(self) -> int:
        """Return the number of blocks."""
        return len(self.bounds) - 1

    def get_read_tasks(
        self,
        parallelism: int,  # noqa: ARG002  (the blocks follow from the steps)
        per_task_row_limit: int | None = None,
        data_context: ray.data.DataContext | None = None,  # noqa: ARG002
    ) -> list[ReadTask]:
        """Return one task per block, in the order of the steps."""
        return [
            ReadTask(
                _CutBlock(self.source, first, stop, self.rank, self.ranks),
                BlockMetadata(
                    num_rows=(stop - first) * self.rows_per_step,
                    size_bytes=(stop - first) * self.rows_per_step * self.patch_bytes,
                    input_files=None,
                    exec_stats=None,
                ),
                per_task_row_limit=per_task_row_limit,
            )
            for first, stop in pairwise(self.bounds)
        ]

    def estimate_inmemory_data_size(self) -> int:
        """Return the bytes of all patches."""
        return len(self.steps) * self.rows_per_step * self.patch_bytes


def stream_rows(
    source: "ray.ObjectRef[PatchSource]",
    steps: range,
    *,
    rank: int = 0,
    ranks: int = 1,
    readers: int | None = None,
) -> Iterator[Rows]:
    """Yield the columns of one step after the other, as `PatchSource.cut` returns them.

    `readers` limits how many tasks read at once for this stream; by default Ray Data uses what
    is free. Raises RuntimeError when rows come out of order, which Ray Data rules out while
    `preserve_order` is set.
    """
    known = _fetched(source)
    rows = known.rows(rank, ranks)
    data_rules(ordered=True)
    for stretch in _stretches(steps, known.patch_bytes * rows):
        stream = StepSource(source, stretch, rank, ranks, rows, known.patch_bytes)
        data = ray.data.read_datasource(
            stream,
            num_cpus=_READER_CPUS,
            memory=min(_READER_BYTES, node_memory_bytes()),
            concurrency=readers,
            override_num_blocks=len(stream),
        )
        ahead = len(stretch) // len(stream) + 1
        batches = data.iter_batches(
            batch_size=rows, batch_format="numpy", prefetch_batches=ahead, drop_last=False
        )
        for step, batch in zip(stretch, batches, strict=True):
            if len(batch["step"]) != rows or (batch["step"] != step).any():
                raise RuntimeError(
                    f"training feed: expected {rows} rows of step {step}, got {batch['step']}"
                )
            yield batch


def _steps_per_block(step_bytes: int) -> int:
    return max(1, min(_BLOCK_STEPS, _BLOCK_BYTES // step_bytes))


def _stretches(steps: range, step_bytes: int) -> Sequence[range]:
    """Split a long training into datasets whose planning stays small."""
    size = _steps_per_block(step_bytes) * _BLOCKS_PER_DATASET
    starts = range(steps.start, steps.stop, size)
    return [range(start, min(start + size, steps.stop)) for start in starts]
