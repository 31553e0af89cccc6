"""The thin wrapper that turns work on one shard into work on one item.

A stage says how to load, compute and write one shard; everything that a cluster adds is here, once:
the next shard is read and the last one written while the present one is computed, every shard is
begun in the records of attempts, an error costs its own shard and no other, and what was written is
committed to the ledger every few seconds, after the objects and never before. After a worker died,
what it had begun is done first, each shard alone.
"""

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from pydantic import TypeAdapter

from raysegclean.errors import InputError, RunOver, UnfitEnvironment, told
from raysegclean.evidence.records import FailedShard, ShardRecord
from raysegclean.planning.items import Item, ShardTask
from raysegclean.store.ledger import Ledger
from raysegclean.store.lock import check_term

__all__ = ["MAX_BEGINS", "Attempts", "ItemReport", "ShardStage", "run_item"]

Loaded = TypeVar("Loaded")
Result = TypeVar("Result")

FLUSH_S = 5.0
MAX_BEGINS = 3


class ShardStage(Protocol[Loaded, Result]):
    """What a stage does with one shard; `load` and `write` run in threads beside `compute`."""

    def load(self, task: ShardTask) -> Loaded:
        """Read what the shard needs."""

    def compute(self, task: ShardTask, loaded: Loaded) -> Result:
        """Do the work; no I/O."""

    def write(self, task: ShardTask, result: Result) -> ShardRecord:
        """Write whole objects and return the ledger's record, of the stage's kind."""


class Attempts(Protocol):
    """Whom a worker tells what it begins and ends, because it may die in between."""

    def begin(self, shard: str) -> int:
        """Record a begin of `shard`; return which begin without an end this is."""

    def end(self, shards: list[str], *, committed: bool) -> None:
        """Close shards that were committed, or that failed with an error of their own."""

    def past(self, shards: list[str]) -> tuple[set[str], set[str]]:
        """Return which of `shards` this pass has committed, and which it began without an end."""

    def broken(self, error: Exception) -> None:
        """Leave, because the GPU is broken and every later shard would fail of it; no return."""


class _Quarantined(InputError):
    """The shard killed its worker too often."""


@dataclass
class ItemReport:
    """What came of one item; a few hundred bytes that travel back to the driver."""

    item: str
    done: list[str] = field(default_factory=list)
    failed: list[FailedShard] = field(default_factory=list)
    stopped: tuple[str, str] | None = None
    """Class and message of the error that concerns all items, where there was one."""
    compute_s: float = 0.0
    wall_s: float = 0.0

    def to_json(self) -> str:
        """Return the report as one line of JSON."""
        return _REPORT.dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str) -> "ItemReport":
        """Read what `to_json` wrote."""
        return _REPORT.validate_json(text)


_REPORT = TypeAdapter(ItemReport)


@dataclass
class _Commits:
    """Collects records and puts them into the ledger, one object per few seconds of work."""

    ledger: Ledger[ShardRecord]
    item: str
    report: ItemReport
    attempts: Attempts
    records: list[ShardRecord] = field(default_factory=list)
    part: int = 0
    attempt: int = field(default_factory=lambda: secrets.randbelow(1 << 31))
    last_s: float = field(default_factory=time.monotonic)

    def add(self, record: ShardRecord) -> None:
        self.records.append(record)
        if time.monotonic() - self.last_s > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        if self.records:
            check_term(self.ledger.store, self.ledger.term)
            self.ledger.commit(self.item, self.attempt, self.part, self.records)
            names = [record.task for record in self.records]
            self.report.done.extend(names)
            self.attempts.end(names, committed=True)
            self.part, self.records = self.part + 1, []
        self.last_s = time.monotonic()


def run_item(
    stage: ShardStage[Any, Any],
    item: Item,
    ledger: Ledger[ShardRecord],
    attempts: Attempts,
    keys: Mapping[str, str],
) -> ItemReport:
    """Do all shards of `item`, commit what was written, and report what failed and why.

    keys: case -> the key of this pass. A stage may run again with other keys and the same names.
    """
    started = time.perf_counter()
    report = ItemReport(item.name)
    # After a crash Ray hands out the whole item again, with what is committed of it.
    names = [task.name for task in item.tasks]
    committed, suspects = attempts.past(names)
    if suspects:  # a worker may have died between its commit and telling of it
        found = {
            record.task
            for record in ledger.of_item(item.name)
            if record.key == keys[record.case] and record.task in names
        }
        attempts.end(sorted(found), committed=True)
        committed, suspects = committed | found, suspects - found
    report.done.extend(name for name in names if name in committed)

    work = _Work(stage, attempts, _Commits(ledger, item.name, report, attempts))
    left = item.without(committed).tasks
    for task in left:
        if task.name in suspects:
            work.run([task])
    work.run([task for task in left if task.name not in suspects])
    report.wall_s = time.perf_counter() - started
    return report


def _breaks_device(error: Exception) -> bool:
    return type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error)


class _Work:
    """One item under way."""

    def __init__(self, stage: ShardStage[Any, Any], attempts: Attempts, commits: _Commits) -> None:
        self._stage, self._attempts, self._commits = stage, attempts, commits

    def run(self, tasks: Sequence[ShardTask]) -> None:
        """Load, compute and write the shards side by side; commit all of them at the end."""
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
            writing: tuple[ShardTask, Future[ShardRecord | None]] | None = None
            for task, loading in self._prefetched(tasks, reader):
                try:
                    loaded = loading.result()
                    before = time.perf_counter()
                    result = self._stage.compute(task, loaded)
                    self._commits.report.compute_s += time.perf_counter() - before
                except Exception as error:  # noqa: BLE001  (one bad case never stops the others)
                    if _breaks_device(error):
                        self._attempts.broken(error)
                    self._fail(task, error)
                    continue
                self._collect(writing)
                writing = task, writer.submit(self._write, task, result)
            self._collect(writing)
        self._commits.flush()

    def _prefetched(
        self, tasks: Sequence[ShardTask], reader: ThreadPoolExecutor
    ) -> Iterator[tuple[ShardTask, Future[Any]]]:
        """Yield each task with its load under way, one task ahead of the caller."""
        loads = [reader.submit(self._load, task) for task in tasks[:1]]
        for position, task in enumerate(tasks):
            current = loads.pop()
            if position + 1 < len(tasks):
                loads.append(reader.submit(self._load, tasks[position + 1]))
            yield task, current

    def _load(self, task: ShardTask) -> Any:
        """Begin the shard, then read it: what kills the worker from here on is on record."""
        if self._attempts.begin(task.name) > MAX_BEGINS:
            raise _Quarantined(
                f"shard {task.name}: the worker died {MAX_BEGINS} times while it worked on this "
                "shard (out of memory, or a crash in a library). Lower relabel.tile_zyx, look at "
                "this case's files, or leave it out with `cases:`, then run again."
            )
        return self._stage.load(task)

    def _write(self, task: ShardTask, result: Any) -> ShardRecord | None:
        """Write the shard, unless another worker was faster: what it committed must stay.

        Raises RunOver when another driver has taken the run over.
        """
        committed, _ = self._attempts.past([task.name])
        if task.name in committed:
            return None
        check_term(self._commits.ledger.store, self._commits.ledger.term)
        return self._stage.write(task, result)

    def _collect(self, writing: tuple[ShardTask, Future[ShardRecord | None]] | None) -> None:
        if writing is None:
            return
        task, future = writing
        try:
            record = future.result()
        except RunOver:
            raise
        except Exception as error:  # noqa: BLE001  (one bad case never stops the others)
            self._fail(task, error)
            return
        # A ledger that cannot be written concerns every shard, so that error is let through.
        if record is None:
            self._commits.report.done.append(task.name)
        else:
            self._commits.add(record)

    def _fail(self, task: ShardTask, error: Exception) -> None:
        self._commits.report.failed.append(
            FailedShard(task.case, told(error), task.name, isinstance(error, UnfitEnvironment))
        )
        # A quarantined shard stays begun, so that no later worker tries it again.
        if not isinstance(error, _Quarantined):
            self._attempts.end([task.name], committed=False)
