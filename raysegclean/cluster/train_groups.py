"""Training groups of networks: folds and members, each to the end, whatever happens on the way.

Finished networks are kept in the run folder and never trained again. How the others are put
together, and where they are trained, changes no weight (on CPU, bit for bit).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from raysegclean.cluster.executor import Executor
from raysegclean.cluster.patches import LabelView, PatchSource
from raysegclean.cluster.train_jobs import Training, TrainJob, missing_networks
from raysegclean.cluster.train_loop import WorkerPlan, common_step, model_key, stable_folder
from raysegclean.cluster.training_progress import Progress, Told
from raysegclean.errors import InputError, RaysegcleanError
from raysegclean.events import Events, Lines
from raysegclean.evidence.cases import CaseInfo
from raysegclean.nets.sampling import build_table
from raysegclean.nets.schedule import Course
from raysegclean.nets.trainer import member_seed
from raysegclean.nets.weights import load_facts
from raysegclean.store.lock import check_term
from raysegclean.store.objects import Store

__all__ = ["TrainingFailed", "patch_source", "train_group", "worker_plan"]

_TRAINED_ON = "trained_on.json"


class TrainingFailed(RaysegcleanError):
    """A fold could not be trained: its worker died again and again."""


def train_group(
    job: TrainJob,
    executor: Executor,
    events: Events | None = None,
    *,
    stage: str = "train",
    on_note: Callable[[Progress], None] | None = None,
) -> list[list[str]]:
    """Train all networks of `job` that are not finished; return their keys by fold and member.

    events: told how far `stage` is, in steps of all networks, and each of its trainings. on_note:
    takes every note of the workers.

    Raises TrainingFailed, TrainingDiverged or InputError when a fold cannot be trained
    (the others are finished first), UnfitEnvironment when the cluster is too small.
    """
    store = Store.open(job.run_uri)
    keys = [
        [model_key(job.key, f, m) for m in range(job.train.peers)] for f in range(len(job.folds))
    ]
    _drop_bounded(job, store, keys)
    if any(store.head(name) is None for names in keys for name in names):
        _drop_changed(job, store, keys)
        missing = {fold: missing_networks(job, store, names) for fold, names in enumerate(keys)}
        executor.train(job, missing, Told(stage, events or Events(Lines()), on_note))
        lost = [name for names in keys for name in names if store.head(name) is None]
        if lost:
            raise TrainingFailed(f"training ended, but {job.run_uri} lacks {', '.join(lost)}")
        check_term(store, job.term)
        store.delete_all(f"train/{job.key}")
    return keys


def _drop_bounded(job: TrainJob, store: Store, keys: Sequence[Sequence[str]]) -> None:
    """Drop finished networks that a bound ended which is higher now: they go on from there."""
    lengths = job.train.steps, job.train.max_steps, job.train.budget_minutes
    if job.train.max_steps is None:
        return
    kept, course = stable_folder(job.checkpoints), Course.planned(*lengths[:2])
    for fold, names in enumerate(keys):
        for net, name in enumerate(names):
            if store.head(name) is None or not common_step(store, kept, fold, (net,)):
                continue
            facts = load_facts(store.get(name))
            if course.gone_on(facts["course"], facts["steps"]).may_go_on(*lengths):
                check_term(store, job.term)
                store.delete(name)


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


def worker_plan(job: TrainJob, unit: Training) -> WorkerPlan:
    """Return what each worker of a training is told."""
    return WorkerPlan(
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
        facts={
            "seed": job.train.seed,
            "classes": list(job.classes),
            "spacing_mm": job.spacing_mm,  # whoever uses the network elsewhere needs it
        },
    )


def patch_source(job: TrainJob, fold: int) -> PatchSource:
    """Return what the networks of a fold learn from; InputError where it lacks trusted cases."""
    chosen = set(job.folds[fold])
    infos = [info for info in job.cases if info.case in chosen]
    view = LabelView(job.archive_uri, job.label, job.label_uri)
    given = replace(
        _source_of(job, infos, view, member_seed(job.train.seed, fold)),
        judged=_judged(job, fold, view),
    )
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


def _judged(job: TrainJob, fold: int, view: LabelView) -> PatchSource:
    """Return the source of the cases that the networks of a fold judge: where all, of their own."""
    known, learnt = set().union(*job.folds), set(job.folds[fold])
    chosen = known - learnt or learnt
    infos = [info for info in job.cases if info.case in chosen]
    source = _source_of(job, infos, view, member_seed(job.train.seed, fold, 2))
    return replace(source, flip_axes=())


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
        working_mm=job.spacing_mm,
    )
