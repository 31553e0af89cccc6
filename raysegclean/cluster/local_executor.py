"""The work of a run in this process, without Ray: for small archives, tests and a debugger.

Items and trainings come one after the other, so `resources` says no more than whether there is a
GPU. What is no fault of a case is raised where it happens. A process that dies takes its start
with it; the next one, with either executor, goes on from what is committed and saved.
"""

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import NoReturn

import torch

from raysegclean.cluster.driver import ClusterFacts, end_on_sigterm
from raysegclean.cluster.executor import Executor, PassJob, PassResources, StageFactory
from raysegclean.cluster.predict import device_numerics
from raysegclean.cluster.train_groups import patch_source, worker_plan
from raysegclean.cluster.train_jobs import Training, TrainJob, trainings_of
from raysegclean.cluster.train_loop import Host, TrainLoop
from raysegclean.cluster.training_progress import Progress, Told
from raysegclean.cluster.worker import ItemReport, run_item
from raysegclean.errors import ConfigError, InputError, RaysegcleanError, UnfitEnvironment
from raysegclean.events import Events
from raysegclean.evidence.records import ShardRecord
from raysegclean.nets.numerics import fix_numerics, numerics_put_back, usable_gpu
from raysegclean.nets.trainer import TrainingDiverged
from raysegclean.nets.voters import Precision
from raysegclean.planning.items import Item
from raysegclean.store.lock import check_term
from raysegclean.store.objects import Store
from raysegclean.store.run import RunFolder

__all__ = ["local_executor"]

_BF16_FROM = (8, 0)
"""Compute capability of the GPUs that do not just emulate bf16."""


def local_executor(gpus_needed: float = 0.0) -> Executor:
    """Return the executor that works in this process; raise UnfitEnvironment without the GPUs.

    `close` puts back what the work sets in torch.
    """
    facts = _facts()
    if gpus_needed > facts.gpus:
        raise UnfitEnvironment(
            f"resources: {gpus_needed:g} GPUs are demanded, torch can use {facts.gpus:g} here. Set "
            "resources.train.gpus and resources.relabel.gpus to 0, or use a machine with GPUs."
        )
    end_on_sigterm()
    put_back = ExitStack()
    put_back.enter_context(numerics_put_back())
    return Executor(facts, _run_pass, _ask, _train_missing, put_back.close)


def _run_pass(
    factory: StageFactory,
    job: PassJob,
    items: Sequence[Item],
    ledger: tuple[str, str, int],
    resources: PassResources,  # noqa: ARG001
    events: Events,  # noqa: ARG001
) -> Generator[ItemReport, None, None]:
    uri, stage_name, term = ledger
    committed, stage = RunFolder(uri).ledger(stage_name, ShardRecord, term), factory(job)
    for item in items:
        yield run_item(stage, item, committed, _OneWorker(), job.keys)


def _ask(resources: PassResources, threads: int, precision: Precision) -> dict[str, str]:
    return device_numerics(threads, precision, resources.gpus > 0)


def _train_missing(job: TrainJob, missing: Mapping[int, tuple[int, ...]], told: Told) -> None:
    """Train fold after fold, the networks of each side by side."""
    store, failed = Store.open(job.run_uri), list[RaysegcleanError]()
    units = trainings_of(replace(job, placement="process"), store, missing, gpus=0.0)
    with told.under_way(len(units), job.train.bound) as take:

        def note(one: Progress) -> None:
            check_term(store, job.term)
            take(one)

        for unit in units:
            try:
                _train(job, unit, note, partial(told.warn, unit.fold))
            except (ConfigError, InputError, TrainingDiverged) as error:
                failed.append(error)
        if failed:
            raise failed[0]


def _train(
    job: TrainJob, unit: Training, note: Callable[[Progress], None], warn: Callable[[str], None]
) -> None:
    fix_numerics(job.train.threads)
    source = patch_source(job, unit.fold)
    host = Host(
        rows=lambda steps, rank, ranks: (source.cut(step, rank, ranks) for step in steps),
        note=note,
        warn=warn,
        device=torch.device(usable_gpu() if job.gpus else "cpu"),
    )
    TrainLoop(worker_plan(job, unit), source, host).run()


class _OneWorker:
    """Attempts of a pass that hands each shard out once: there is nothing to remember."""

    def begin(self, shard: str) -> int:  # noqa: ARG002
        return 1

    def end(self, shards: list[str], *, committed: bool) -> None:
        pass

    def past(self, shards: list[str]) -> tuple[set[str], set[str]]:  # noqa: ARG002
        return set(), set()

    def broken(self, error: Exception) -> NoReturn:
        raise UnfitEnvironment(
            f"the GPU of this process is broken, because of the shard under way or by itself: "
            f"{error}. The same command again resumes."
        ) from error


def _facts() -> ClusterFacts:
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    capable = [torch.cuda.get_device_capability(gpu) >= _BF16_FROM for gpu in range(gpus)]
    return ClusterFacts(
        cpus=float(os.cpu_count() or 1),
        gpus=float(gpus),
        nodes=1,
        node_memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        has_bf16=bool(capable) and all(capable),
        started_here=True,
    )
