"""The thin wrapper that turns work on one shard into work on one item.

A stage says how to load, compute and write one shard; everything that a cluster adds is here, once:
the next shard is read and the last one written while the present one is computed, every shard is
begun at the attempts actor, an error costs its own shard and no other, and what was written is
committed to the ledger every few seconds, after the objects and never before.
"""

import json
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import ray

from raysegclean.core.items import Item, ShardTask
from raysegclean.dist.attempts import MAX_BEGINS
from raysegclean.errors import InputError, RaysegcleanError
from raysegclean.store.ledger import Ledger

__all__ = ["ItemReport", "ShardStage", "run_item"]

Loaded = TypeVar("Loaded")
Result = TypeVar("Result")
Record = dict[str, Any]

FLUSH_S = 5.0


class ShardStage(Protocol[Loaded, Result]):
    """What a stage does with one shard; `load` and `write` run in threads beside `compute`."""

    def load(self, task: ShardTask) -> Loaded:
        """Read what the shard needs."""
        ...

    def compute(self, task: ShardTask, loaded: Loaded) -> Result:
        """Do the work; no I/O."""
        ...

    def write(self, task: ShardTask, result: Result) -> Record:
        """Write whole objects and return the ledger's record."""
        ...


@dataclass
class ItemReport:
    """What came of one item; a few hundred bytes that travel back to the driver."""

    item: str
    done: list[str] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    compute_s: float = 0.0
    wall_s: float = 0.0

    def to_json(self) -> str:
        """Return the report as one line of JSON."""
        return json.dumps(self.__dict__)

    @classmethod
    def from_json(cls, text: str) -> "ItemReport":
        """Read what `to_json` wrote."""
        return cls(**json.loads(text))


@dataclass
class _Commits:
    """Collects records and puts them into the ledger, one object per few seconds of work."""

    ledger: Ledger
    item: str
    report: ItemReport
    on_done: Callable[[list[str]], None]
    records: list[Record] = field(default_factory=list)
    part: int = 0
    attempt: int = field(default_factory=lambda: secrets.randbelow(1 << 31))
    last_s: float = field(default_factory=time.monotonic)

    def add(self, record: Record) -> None:
        self.records.append(record)
        if time.monotonic() - self.last_s > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        if self.records:
            self.ledger.commit(self.item, self.attempt, self.part, self.records)
            names = [record["task"] for record in self.records]
            self.report.done.extend(names)
            self.on_done(names)
            self.part, self.records = self.part + 1, []
        self.last_s = time.monotonic()


def run_item(stage: ShardStage[Any, Any], item: Item, ledger: Ledger, attempts: Any) -> ItemReport:
    """Do all shards of `item`, commit what was written, and report what failed and why."""
    started = time.perf_counter()
    report = ItemReport(item.name)
    node = ray.get_runtime_context().get_node_id()
    # After a crash Ray hands out the whole item again, with what is committed of it.
    report.done.extend(ray.get(attempts.committed.remote([task.name for task in item.tasks])))
    item = item.without(set(report.done))

    def committed(shards: list[str]) -> None:
        ray.get(attempts.end.remote(shards, True))

    commits = _Commits(ledger, item.name, report, committed)
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        writing: tuple[ShardTask, Future[Record]] | None = None
        for task, loading in _prefetched(stage, item.tasks, reader):
            try:
                _begin(attempts, task, node)
                loaded = loading.result()
                before = time.perf_counter()
                result = stage.compute(task, loaded)
                report.compute_s += time.perf_counter() - before
            except Exception as error:  # noqa: BLE001  (one bad case never stops the others)
                _fail(report, attempts, task, error)
                continue
            _collect(writing, commits, attempts)
            writing = task, writer.submit(stage.write, task, result)
        _collect(writing, commits, attempts)
    commits.flush()
    report.wall_s = time.perf_counter() - started
    return report


def _prefetched(
    stage: ShardStage[Any, Any], tasks: Sequence[ShardTask], reader: ThreadPoolExecutor
) -> Iterator[tuple[ShardTask, Future[Any]]]:
    """Yield each task with its load under way, one task ahead of the caller."""
    loads = [reader.submit(stage.load, task) for task in tasks[:1]]
    for position, task in enumerate(tasks):
        current = loads.pop()
        if position + 1 < len(tasks):
            loads.append(reader.submit(stage.load, tasks[position + 1]))
        yield task, current


def _begin(attempts: Any, task: ShardTask, node: str) -> None:
    begins = ray.get(attempts.begin.remote(task.name, node))
    if begins > MAX_BEGINS:
        raise InputError(
            f"{task.name}: the worker died {MAX_BEGINS} times while it worked on this shard (out of "
            "memory, or a crash in a library); look at this case's size and files, then run again"
        )


def _collect(
    writing: tuple[ShardTask, Future[Record]] | None, commits: _Commits, attempts: Any
) -> None:
    if writing is None:
        return
    task, future = writing
    try:
        record = future.result()
    except Exception as error:  # noqa: BLE001  (as above)
        _fail(commits.report, attempts, task, error)
        return
    # A ledger that cannot be written concerns every shard, so that error is let through.
    commits.add(record)


def _fail(report: ItemReport, attempts: Any, task: ShardTask, error: Exception) -> None:
    text = str(error) if isinstance(error, RaysegcleanError) else f"{type(error).__name__}: {error}"
    report.failed.append({"case": task.case, "shard": task.name, "error": text})
    ray.get(attempts.end.remote([task.name], False))
