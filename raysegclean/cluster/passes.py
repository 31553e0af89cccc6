"""One pass over the archive on Ray Data: items in, one small report per item out.

Rows are items, one row per block, so that each is scheduled alone; voxels never travel through the
object store. A worker that dies is replaced by Ray and its item starts again; what it had committed
is skipped, because the item is cut down to what the ledger lacks.

On CPUs the items are tasks, because Ray keeps the processes of tasks for the next pass: importing
torch takes longer than a pass over a small archive. A process keeps the stage of its last pass. On
GPUs they go to actors, which give the device's memory back at the end of the pass.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import ray
from ray.data import ActorPoolStrategy, TaskPoolStrategy

from raysegclean import errors
from raysegclean.cluster.attempts import RayAttempts
from raysegclean.cluster.connection import can_grow, live_nodes
from raysegclean.cluster.executor import PassJob, PassResources, StageFactory
from raysegclean.cluster.predict import device_numerics
from raysegclean.cluster.worker import ItemReport, ShardStage, run_item
from raysegclean.errors import InputError, RaysegcleanError, UnfitEnvironment
from raysegclean.events import Events
from raysegclean.evidence.records import ShardRecord
from raysegclean.nets.voters import Precision
from raysegclean.planning.items import Item
from raysegclean.store.run import RunFolder

__all__ = ["ask_worker", "run_pass"]


@dataclass(frozen=True)
class _Work:
    """What every worker of a pass is told; `job` lies in the object store."""

    factory: StageFactory
    job: Any
    ledger: tuple[str, str, int]
    attempts: RayAttempts


class _Worker:
    """Does items one after the other.

    It builds its stage with the first item, where an error is told as what it is.
    """

    def __init__(self, work: _Work) -> None:
        uri, stage_name, term = work.ledger
        self._ledger = RunFolder(uri).ledger(stage_name, ShardRecord, term)
        self._work = work

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"report": [self._report(Item.from_json(str(row))) for row in batch["item"]]}

    def _report(self, item: Item) -> str:
        try:
            stage, keys = self._stage, self._job.keys
            report = run_item(stage, item, self._ledger, self._work.attempts, keys)
        except RaysegcleanError as error:
            # As a value, because Ray Data keeps no more of an exception than its text.
            report = ItemReport(item.name, stopped=(type(error).__name__, str(error)))
        return report.to_json()

    @cached_property
    def _stage(self) -> ShardStage[Any, Any]:
        with self._work.attempts.starting():
            return self._work.factory(self._job)

    @cached_property
    def _job(self) -> PassJob:
        job: PassJob = ray.get(self._work.job)
        return job


_kept: dict[str, _Worker] = {}
"""The worker of this process's last pass, under the id of the pass's job."""


def _work_here(batch: dict[str, Any], work: _Work) -> dict[str, Any]:
    """Do a batch in a task, with the worker that this process keeps for the pass."""
    name = work.job.hex()
    if name not in _kept:
        _kept.clear()
        _kept[name] = _Worker(work)
    return _kept[name](batch)


def run_pass(
    factory: StageFactory,
    job: PassJob,
    items: Sequence[Item],
    ledger: tuple[str, str, int],
    resources: PassResources,
    events: Events,
) -> Generator[ItemReport, None, None]:
    """Do all items and yield each one's report as it comes in.

    `factory(job)` builds the stage in each worker; `ledger` is (run URI, stage, term); `events` are
    told when nothing comes back, because Ray waits for ever for what cannot come. Raises what
    stopped a worker as a whole: a stage that cannot be built, a ledger that cannot be written; and
    UnfitEnvironment where no worker could start.
    """
    if not items:
        return
    _check_fits(resources)
    rows = [item.to_json() for item in items]
    source = ray.data.from_items(rows, override_num_blocks=len(rows))
    size = max(1, min(resources.actors, len(items)))
    work = _Work(factory, ray.put(job), ledger, RayAttempts.start())
    stream = source.map_batches(batch_size=1, **_workers(work, size, resources))
    waiting = partial(_waiting, resources)
    try:
        with events.watched(ledger[1], waiting) as heard:
            for row in stream.iter_rows():
                heard()
                report = ItemReport.from_json(row["report"])
                if report.stopped is not None:
                    kind, text = report.stopped
                    raise getattr(errors, kind, InputError)(text)
                yield report
    finally:
        work.attempts.stop()


def _waiting(resources: PassResources) -> str:
    free = ray.available_resources()  # type: ignore[no-untyped-call]  # no types in Ray
    return (
        f"Shards may be large, or it waits for nodes: a worker takes {_wants(resources)}; free "
        f"now: {free.get('CPU', 0):g} CPU, {free.get('GPU', 0):g} GPU and "
        f"{free.get('memory', 0) / 2**30:.1f} GiB in all."
    )


def _wants(resources: PassResources) -> str:
    return (
        f"{resources.cpus:g} CPU, {resources.gpus:g} GPU and "
        f"{(resources.memory_bytes or 0) / 2**30:.1f} GiB"
    )


def _check_fits(resources: PassResources) -> None:
    """Refuse what no node can hold, where none will come: it would wait for ever.

    Labels are not looked at, because a Ray that was started here has none.
    """
    needed = {"CPU": resources.cpus, "GPU": resources.gpus, "memory": resources.memory_bytes or 0}
    nodes = [node["Resources"] for node in live_nodes()]
    if can_grow() or any(all(n.get(k, 0) >= v for k, v in needed.items()) for n in nodes):
        return
    most = {name: max((node.get(name, 0) for node in nodes), default=0) for name in needed}
    raise UnfitEnvironment(
        f"resources.relabel: a worker takes {_wants(resources)}, this machine has "
        f"{most['CPU']:g}, {most['GPU']:g} and {most['memory'] / 2**30:.1f} GiB to give. "
        "Lower cpus, gpus or memory_gb there, or use a larger machine."
    )


def _workers(work: _Work, size: int, resources: PassResources) -> dict[str, Any]:
    """Return what Ray Data is told of who does the items."""
    options: dict[str, Any] = {"num_cpus": resources.cpus, **_where(resources)}
    if resources.gpus:
        pool = ActorPoolStrategy(min_size=min(resources.at_least, size), max_size=size)
        actors = {"compute": pool, "num_gpus": resources.gpus}
        return {"fn": _Worker, "fn_constructor_args": (work,)} | actors | options
    tasks = TaskPoolStrategy(size=size)
    return {"fn": _work_here, "fn_kwargs": {"work": work}, "compute": tasks} | options


def _where(resources: PassResources) -> dict[str, Any]:
    """Return what Ray is told of the nodes that workers need."""
    options: dict[str, Any] = {}
    if resources.memory_bytes:
        options["memory"] = resources.memory_bytes
    if resources.labels:
        options["label_selector"] = dict(resources.labels)
    return options


def ask_worker(resources: PassResources, threads: int, precision: Precision) -> dict[str, str]:
    """Return the numeric class of a worker with these resources; raise UnfitEnvironment."""
    _check_fits(resources)
    # Not inside the group of a search trial, whose share is a hundredth of a slot.
    options: dict[str, Any] = {"num_cpus": resources.cpus, "num_gpus": resources.gpus}
    place = ray.remote(**options, **_where(resources), scheduling_strategy="DEFAULT", max_retries=3)
    asked = place(device_numerics).remote(threads, precision, resources.gpus > 0)
    found: dict[str, str] = ray.get(asked)
    return found
