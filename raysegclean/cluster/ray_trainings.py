"""Trainings on Ray Train: as many at once as fit, each to its end.

Every fold is a training of its own, so that losing one does not stop the others; `train_jobs` says
how networks are put together. A worker that dies is started again from its checkpoint; a fold is
given up when it died three times without getting further. Ray Train keeps nothing for us: its own
checkpoints and reports are not used (see `train_loop`).
"""

import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray
import ray.train
from ray.train.backend import BackendConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from raysegclean.cluster.connection import actor_here, can_grow, cluster_share
from raysegclean.cluster.train_groups import TrainingFailed, patch_source, worker_plan
from raysegclean.cluster.train_jobs import Training, TrainJob, at_once, check_fits, trainings_of
from raysegclean.cluster.train_loop import common_step
from raysegclean.cluster.train_worker import run_worker
from raysegclean.cluster.training_progress import Board, Progress, Told
from raysegclean.errors import ConfigError, InputError, RaysegcleanError, RunOver
from raysegclean.nets.trainer import TrainingDiverged
from raysegclean.store.lock import check_term
from raysegclean.store.objects import Store

__all__ = ["train_missing"]

_POLL_S = 0.5
_CHECK_S = 5.0
_RESTARTS = 2
_KINDS: dict[str, type[RaysegcleanError]] = {
    "ConfigError": ConfigError,
    "RunOver": RunOver,
    "TrainingDiverged": TrainingDiverged,
}
_SPARED = frozenset({"DatasetsCallback", "PlacementGroupCleanerCallback"})


@dataclass
class _Group:
    """One call of `train_group` under way."""

    job: TrainJob
    store: Store
    board: Any
    folder: str
    lean: bool
    sources: dict[int, Any]
    todo: list[Training]
    running: dict[threading.Thread, Training] = field(default_factory=dict)
    errors: list[tuple[Training, BaseException]] = field(default_factory=list)


def train_missing(job: TrainJob, missing: Mapping[int, tuple[int, ...]], told: Told) -> None:
    """Train the missing networks of each fold; the first error is raised when all have ended."""
    store = Store.open(job.run_uri)
    units = trainings_of(job, store, missing, cluster_share()[1])
    if not can_grow():
        check_fits(job, units[0], cluster_share())
    sources = {fold: ray.put(patch_source(job, fold)) for fold in {u.fold for u in units}}
    with (
        tempfile.TemporaryDirectory(prefix="raysegclean-train-", ignore_cleanup_errors=True) as at,
        told.under_way(len(units), job.train.bound) as take,
    ):
        group = _Group(
            job=job,
            store=store,
            board=actor_here(Board),
            folder=at,
            lean=not can_grow(),
            sources=sources,
            todo=units,
        )
        try:
            with told.events.watched(told.stage, partial(_waiting, group)) as heard:
                for note in _notes(group, told):
                    heard()
                    take(note)
        finally:
            ray.kill(group.board)
        if group.errors:
            raise min(group.errors, key=lambda failed: (failed[0].fold, failed[0].members))[1]


def _work(group: _Group, unit: Training) -> None:
    """Train a unit; runs in a thread, because `fit` waits."""
    try:
        _train_unit(group, unit)
    except BaseException as error:  # noqa: BLE001  (raised by the main thread at the end)
        group.errors.append((unit, error))


def _train_unit(group: _Group, unit: Training) -> None:
    """Fit, and fit again as long as each try gets further than the one before."""
    reached = common_step(group.store, group.job.checkpoints, unit.fold, unit.members)
    while True:
        before = reached
        try:
            _trainer(group, unit).fit()
        except ray.train.TrainingFailedError as error:
            _raise_fault(group, unit)
            reached = common_step(group.store, group.job.checkpoints, unit.fold, unit.members)
            if reached > before:
                continue
            raise TrainingFailed(_gave_up(unit, reached, error)) from error
        _raise_fault(group, unit)
        return


def _raise_fault(group: _Group, unit: Training) -> None:
    """Raise what the worker could not get over as the error that it was."""
    fault: tuple[str, str] | None = ray.get(group.board.fault.remote(unit.fold))
    if fault is not None:
        kind, message = fault
        raise _KINDS.get(kind, InputError)(message)


def _gave_up(unit: Training, reached: int, error: Exception) -> str:
    causes = getattr(error, "worker_failures", None) or {0: error}
    last = str(next(iter(causes.values()))).strip().splitlines() or ["no reason given"]
    return (
        f"training fold {unit.fold}: the worker failed {_RESTARTS + 1} times without getting past "
        f"step {reached}. Last: {last[-1]} If it was killed, it may lack memory: lower "
        "train.batch, train.patch_zyx or network.widths. Finished folds are kept."
    )


def _trainer(group: _Group, unit: Training) -> DataParallelTrainer | TorchTrainer:
    job, world = group.job, unit.world(group.job)
    resources = {"CPU": job.cpus} | ({"GPU": job.gpus} if job.gpus else {})
    arguments: dict[str, Any] = {
        # References, so that Ray's controller process need not import torch to read them.
        "train_loop_config": {
            "plan": ray.put(worker_plan(job, unit)),
            "source": group.sources[unit.fold],
            "board": group.board,
        },
        "scaling_config": ray.train.ScalingConfig(
            num_workers=world, use_gpu=job.gpus > 0, resources_per_worker=resources
        ),
        # A fresh name each time: with a known one Ray would look for checkpoints of its own.
        "run_config": ray.train.RunConfig(
            name=f"fold{unit.fold}-{uuid.uuid4().hex[:8]}",
            storage_path=group.folder,
            failure_config=ray.train.FailureConfig(max_failures=_RESTARTS),
        ),
    }
    if world > 1:
        return (_LeanTorch if group.lean else TorchTrainer)(run_worker, **arguments)
    # One worker needs no process group, and without TorchConfig the controller needs no torch.
    single = _LeanSingle if group.lean else DataParallelTrainer
    return single(run_worker, backend_config=BackendConfig(), **arguments)


class _Lean:
    """Leave out helpers of Ray Train that one machine has no use for.

    Each is a process that costs two seconds of CPU to start: one hands out datasets (we pass
    none), one removes the reservation of a controller that died (the job's end does it too). The
    hook is private; in a Ray without it, only the start takes longer.
    """

    def _create_default_callbacks(self) -> list[Any]:
        made: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]  # mixed in
        return [callback for callback in made if type(callback).__name__ not in _SPARED]


class _LeanSingle(_Lean, DataParallelTrainer):
    """One worker, on one machine."""


class _LeanTorch(_Lean, TorchTrainer):
    """Several workers, on one machine."""


def _notes(group: _Group, told: Told) -> Iterator[Progress]:
    """Start units as they fit, and yield what their workers note, until all are done."""
    checked = time.monotonic()
    while True:
        _start_fitting(group)
        notes, warnings = ray.get(group.board.drain.remote())
        for warning in warnings:
            told.warn(*warning)
        yield from notes
        if (now := time.monotonic()) - checked > _CHECK_S:
            checked = now
            check_term(group.store, group.job.term)
        if not group.running:
            return
        next(iter(group.running)).join(_POLL_S)


def _start_fitting(group: _Group) -> None:
    """Forget the threads that have ended; start as many as the cluster has room for now."""
    for thread in [thread for thread in group.running if not thread.is_alive()]:
        del group.running[thread]
    while group.todo:
        room = at_once(group.job, group.todo[0], cluster_share(), can_grow())
        if len(group.running) >= room:
            return
        unit = group.todo.pop(0)
        # A daemon: when the driver is stopped, nothing waits for it, and Ray ends its workers.
        thread = threading.Thread(target=_work, args=(group, unit), daemon=True)
        group.running[thread] = unit
        thread.start()


def _waiting(group: _Group) -> str:
    folds = ", ".join(str(unit.fold) for unit in list(group.running.values()))
    free = ray.available_resources()  # type: ignore[no-untyped-call]  # no types in Ray
    return (
        f"Fold {folds} waits for nodes, for CPU slots to read with, or for a slow store; free now: "
        f"{free.get('CPU', 0):g} CPU, {free.get('GPU', 0):g} GPU"
    )
