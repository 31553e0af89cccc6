"""Training groups of networks: folds and members, each to the end, whatever happens on the way.

Every fold is a training of its own (Ray Train), so that losing one does not stop the others, and
as many as fit run at once; `trainings` says how networks are put together. The weights are the same
either way (on CPU, bit for bit).

Finished networks are kept in the run folder and never trained again. A worker that dies is started
again from its checkpoint; a fold is given up when it died three times without getting further.
Ray Train keeps nothing for us: its own checkpoints and reports are not used (see `train_loop`).
"""

import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

import ray
import ray.train
from ray.train.backend import BackendConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from raysegclean.cluster.connection import can_grow, cluster_share
from raysegclean.cluster.patch_feed import LabelView, PatchSource
from raysegclean.cluster.train_jobs import (
    Training,
    TrainJob,
    at_once,
    check_fits,
    missing_networks,
    trainings_of,
)
from raysegclean.cluster.train_worker import WorkerPlan, common_step, model_key, run_worker
from raysegclean.cluster.training_progress import Fault, Progress, start_board
from raysegclean.errors import ConfigError, InputError, RaysegcleanError, RunOver
from raysegclean.events import Events, Lines, Stage
from raysegclean.evidence.cases import CaseInfo
from raysegclean.nets.sampling import build_table
from raysegclean.nets.trainer import TrainingDiverged, member_seed
from raysegclean.store.lock import check_term
from raysegclean.store.objects import Store

__all__ = ["TrainingFailed", "train_group"]

_POLL_S = 0.5
_CHECK_S = 5.0
_RESTARTS = 2
_KINDS: dict[str, type[RaysegcleanError]] = {
    "ConfigError": ConfigError,
    "RunOver": RunOver,
    "TrainingDiverged": TrainingDiverged,
}
_TRAINED_ON = "trained_on.json"
_SPARED = frozenset({"DatasetsCallback", "PlacementGroupCleanerCallback"})


class TrainingFailed(RaysegcleanError):
    """A fold could not be trained: its worker died again and again."""


@dataclass
class _Group:
    """One call of `train_group` under way."""

    job: TrainJob
    store: Store
    board: Any
    folder: str
    lean: bool
    sources: dict[int, Any]
    todo: "SimpleQueue[Training]" = field(default_factory=SimpleQueue)
    running: dict[int, Training] = field(default_factory=dict)
    errors: list[tuple[Training, BaseException]] = field(default_factory=list)


def train_group(
    job: TrainJob,
    events: Events | None = None,
    *,
    stage: str = "train",
    on_note: Callable[[Progress], None] | None = None,
) -> list[list[str]]:
    """Train all networks of `job` that are not finished; return their keys by fold and member.

    events: told how far `stage` is, in steps of all networks, and each of its trainings. on_note:
    takes every note of the workers. Needs a Ray that is connected.

    Raises TrainingFailed, TrainingDiverged or InputError when a fold cannot be trained
    (the others are finished first), UnfitEnvironment when the cluster is too small.
    """
    store = Store.open(job.run_uri)
    keys = [
        [model_key(job.key, f, m) for m in range(job.train.peers)] for f in range(len(job.folds))
    ]
    if any(store.head(name) is None for names in keys for name in names):
        _drop_changed(job, store, keys)
        missing = {fold: missing_networks(job, store, names) for fold, names in enumerate(keys)}
        _train_missing(job, store, missing, (stage, events or Events(Lines()), on_note))
        lost = [name for names in keys for name in names if store.head(name) is None]
        if lost:
            raise TrainingFailed(f"training ended, but {job.run_uri} lacks {', '.join(lost)}")
        check_term(store, job.term)
        store.delete_all(f"train/{job.key}")
    return keys


def _drop_changed(job: TrainJob, store: Store, keys: Sequence[Sequence[str]]) -> None:
    """Drop finished networks that learnt from other labels than the rest would.

    Folds of one group must not differ by when a crash came.
    """
    place, now = f"train/{job.key}/{_TRAINED_ON}", job.checkpoints
    before = store.get_json(place) if store.head(place) is not None else now
    if before != now:
        for name in (name for names in keys for name in names):
            store.delete(name)
    store.put_json(place, now)


def _train_missing(
    job: TrainJob,
    store: Store,
    missing: Mapping[int, tuple[int, ...]],
    told: tuple[str, Events, Callable[[Progress], None] | None],
) -> None:
    name, events, on_note = told
    units = trainings_of(job, store, missing, cluster_share()[1])
    check_fits(job, units[0])
    group = _Group(
        job=job,
        store=store,
        board=start_board(),
        folder=tempfile.mkdtemp(prefix="raysegclean-train-"),
        lean=not can_grow(),
        sources={fold: ray.put(_source(job, fold)) for fold in {unit.fold for unit in units}},
    )
    for unit in units:
        group.todo.put(unit)
    with events.stage(name, len(units) * job.train.steps, "steps") as stage:
        try:
            with events.watched(name, partial(_waiting, group)) as heard:
                for note in _notes(group, units, partial(events.warn, name)):
                    heard()
                    _tell(note, stage, on_note)
        finally:
            ray.kill(group.board)
            shutil.rmtree(group.folder, ignore_errors=True)
        if group.errors:
            raise min(group.errors, key=lambda failed: (failed[0].fold, failed[0].members))[1]


def _tell(note: Progress, stage: Stage, on_note: Callable[[Progress], None] | None) -> None:
    if on_note is not None:
        on_note(note)
    stage.at(note.step, part=note.part, total=note.steps, loss=note.loss)


def _source(job: TrainJob, fold: int) -> PatchSource:
    chosen = set(job.folds[fold])
    infos = [info for info in job.cases if info.case in chosen]
    view = LabelView(job.archive_uri, job.label, job.label_uri)
    given = _source_of(job, infos, view, member_seed(job.train.seed, fold))
    if not job.train.needs_trusted:
        return given
    name = job.trusted_label
    trusted = [info for info in infos if any(label.name == name for label in info.labels)]
    if name is None or not trusted:
        raise InputError(
            f"training fold {fold}: none of its {len(infos)} training cases has a trusted label "
            f"({name!r}), and hook {job.train.hook.name} learns from one. Give more cases an "
            "expert label."
        )
    view = LabelView(job.archive_uri, name)
    clean = _source_of(job, trusted, view, member_seed(job.train.seed, fold, 1))
    return replace(given, clean=clean)


def _source_of(job: TrainJob, infos: Sequence[CaseInfo], view: LabelView, seed: int) -> PatchSource:
    return PatchSource(
        view=view,
        table=build_table(infos, view.label, job.classes),
        intensities={info.case: info.intensity for info in infos},
        spacing_mm={info.case: info.spacing_mm for info in infos},
        normaliser=job.normaliser,
        classes=job.classes,
        patch_zyx=job.patch_zyx,
        channels=job.network.in_channels,
        batch=job.train.batch,
        seed=seed,
        flip_axes=job.flips,
    )


def _work(group: _Group, number: int) -> None:
    """Take units until none is left; runs in a thread, because `fit` waits."""
    while True:
        try:
            unit = group.todo.get_nowait()
        except Empty:
            return
        group.running[number] = unit
        try:
            _train_unit(group, unit)
        except BaseException as error:  # noqa: BLE001  (raised by the main thread at the end)
            group.errors.append((unit, error))
        finally:
            del group.running[number]


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
    fault: Fault | None = ray.get(group.board.fault.remote(unit.fold))
    if fault is not None:
        raise _KINDS.get(fault.kind, InputError)(fault.message)


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
    plan = WorkerPlan(
        key=job.key,
        checkpoints=job.checkpoints,
        term=job.term,
        run_uri=job.run_uri,
        fold=unit.fold,
        members=unit.members,
        split=unit.split,
        network=job.network,
        config=job.train,
        gpus=job.gpus,
        readers=None if job.gpus else 1,  # a reader outruns training on CPU many times over
        facts={"seed": job.train.seed, "steps": job.train.steps, "classes": list(job.classes)},
    )
    resources = {"CPU": job.cpus} | ({"GPU": job.gpus} if job.gpus else {})
    arguments: dict[str, Any] = {
        # References, so that Ray's controller process need not import torch to read them.
        "train_loop_config": {
            "plan": ray.put(plan),
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


def _notes(
    group: _Group, units: Sequence[Training], warn: Callable[[str], None]
) -> Iterator[Progress]:
    """Start units as they fit, and yield what their workers note, until all are done."""
    threads: list[threading.Thread] = []
    checked = time.monotonic()
    while True:
        _start_fitting(group, units, threads)
        alive = any(thread.is_alive() for thread in threads)
        notes, warnings = ray.get(group.board.drain.remote())
        for warning in warnings:
            warn(warning)
        yield from notes
        if (now := time.monotonic()) - checked > _CHECK_S:
            checked = now
            check_term(group.store, group.job.term)
        if not alive:
            return
        threads[-1].join(_POLL_S)


def _start_fitting(
    group: _Group, units: Sequence[Training], threads: list[threading.Thread]
) -> None:
    """Start threads that take units, as many as the cluster has room for now."""
    if len(threads) == len(units):
        return
    room = at_once(group.job, units[0], cluster_share(), can_grow())
    for number in range(len(threads), min(room, len(units))):
        # A daemon: when the driver is stopped, nothing waits for it, and Ray ends its workers.
        thread = threading.Thread(target=_work, args=(group, number), daemon=True)
        thread.start()
        threads.append(thread)


def _waiting(group: _Group) -> str:
    folds = ", ".join(str(unit.fold) for unit in list(group.running.values()))
    free = ray.available_resources()  # type: ignore[no-untyped-call]  # no types in Ray
    return (
        f"Fold {folds} waits for nodes, for CPU slots to read with, or for a slow store; free now: "
        f"{free.get('CPU', 0):g} CPU, {free.get('GPU', 0):g} GPU"
    )
