"""Looking at a run, and taking changes back: plan, status, verify, undo. None of them trains."""

import random
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import google_crc32c
import numpy as np

from raysegclean.cluster.apply import ApplyJob, ApplyStage
from raysegclean.config.settings import Config, make_config
from raysegclean.errors import ConfigError, InputError, MissingObject, RaysegcleanError
from raysegclean.planning.items import ShardTask
from raysegclean.planning.network_plan import network_notes, seam_error_of
from raysegclean.planning.plan import RunPlan
from raysegclean.planning.worker_memory import passes_of, worker_bytes
from raysegclean.policy.apply import TakenBack, reason_code, reason_names
from raysegclean.runs.apply import job_from_json
from raysegclean.runs.pipeline import RunReport, clean
from raysegclean.runs.preflight import LATEST, prepare
from raysegclean.store.archive import Archive
from raysegclean.store.run import RunFolder

__all__ = ["PlanReport", "VerifyReport", "plan", "status", "undo", "verify"]

READERS = 16
RECOMPUTED = 5


@dataclass(frozen=True)
class PlanReport:
    """What a run would do; nothing of it was run. Sizes are uncompressed unless they say so."""

    method: str
    params: dict[str, Any]
    """All of the method's, those that the config leaves alone included."""
    trials: int
    """Of a search; 0 without one."""
    cases: int
    unusable: dict[str, str]
    classes: tuple[int, ...]
    shards: int
    items: int
    voxels: int
    input_bytes: int
    networks: int
    train_steps: int
    patch_zyx: tuple[int, int, int]
    tile_zyx: tuple[int, int, int]
    halo_vox: tuple[int, int, int]
    peak_memory_bytes: int
    """Upper bound for one relabelling worker without a GPU; what Ray keeps free for it."""
    forward_voxels: int
    """Voxels of all windows of all passes, halos included."""
    averaged: bool
    """Whether windows overlap and are averaged, because the network looks at its whole window."""
    seam_error: float
    """How far such windows differ in probability, on noise and before training."""
    notes: tuple[str, ...]
    """What must be known of the voters to judge the result."""


def plan(config: Config) -> PlanReport:
    """Return what `config` would do; raise what is wrong with it."""
    from raysegclean.planning.items import plan_items

    prepared = prepare(config)
    whole = prepared.plan(config, gpu=False)
    grids = [(case.case, case.grid(whole.shard_vox)) for case in whole.cases]
    infos = {info.case: info for info in prepared.infos}
    voxels = [case.shape_zyx[0] * case.shape_zyx[1] * case.shape_zyx[2] for case in whole.cases]
    input_bytes = sum(
        count * (infos[case.case].channels * np.dtype(infos[case.case].image_dtype).itemsize + 1)
        for count, case in zip(voxels, whole.cases, strict=True)
    )
    final = 1 if prepared.method.retrains(prepared.params) else 0
    return PlanReport(
        method=config.method,
        params=asdict(prepared.params),
        trials=config.search.samples if config.search else 0,
        cases=len(whole.cases),
        unusable=prepared.unusable,
        classes=whole.classes,
        shards=sum(len(grid) for _, grid in grids),
        items=len(plan_items(grids)),
        voxels=sum(voxels),
        input_bytes=input_bytes,
        networks=0 if whole.network.script else whole.folds * whole.voters.members + final,
        train_steps=whole.train.steps,
        patch_zyx=whole.patch_zyx,
        tile_zyx=whole.tile_zyx,
        halo_vox=whole.halo_vox,
        peak_memory_bytes=worker_bytes(whole, "look"),
        forward_voxels=int(sum(voxels) * _overhead(whole) * passes_of(whole)),
        averaged=whole.averaged,
        seam_error=seam_error_of(config, whole.network, whole.tiling),
        notes=network_notes(whole.network, averaged=whole.averaged),
    )


def _overhead(plan: RunPlan) -> float:
    """Return voxels of a window over voxels of its tile, for a tile inside a large case."""
    ratio = 1.0
    for tile, halo, edge in zip(plan.tile_zyx, plan.halo_vox, plan.largest_zyx, strict=True):
        ratio *= min(tile + 2 * halo, edge) / min(tile, edge)
    return max(1.0, ratio)


def status(run_uri: str) -> dict[str, Any]:
    """Return the state of a run: run.json, its failed cases and what its stages committed."""
    run = _existing(run_uri)
    stages = Counter(info.key.split("/")[1] for info in run.store.list("ledger"))
    committed = {stage: len(run.ledger(stage).records()) for stage in sorted(stages)}
    state = run.state()
    for name in {"started", "updated", "finished"} & state.keys():
        state[name] = datetime.fromtimestamp(state[name], UTC).isoformat(timespec="seconds")
    return state | {"failed": run.failed(), "committed_shards": committed}


@dataclass(frozen=True)
class VerifyReport:
    """What was checked and what was wrong."""

    run: str
    objects: int
    recomputed_shards: int
    failed: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """1 when anything was wrong."""
        return 1 if self.failed else 0


def verify(run_uri: str, *, recompute: int = RECOMPUTED, seed: int = 0) -> VerifyReport:
    """Prove a published run: every object by its checksum, some shards by settling them again."""
    run = _existing(run_uri)
    job, stage = _settled_job(run)
    records = [r for r in run.ledger(stage).records() if job.keys.get(r["case"]) == r["key"]]
    archive = Archive.open(job.plan.archive)
    with ThreadPoolExecutor(READERS) as pool:
        checks = pool.map(lambda record: _check_objects(archive, record), records)
        wrong = [text for texts in checks for text in texts]
    wrong += _unpublished(run, job, archive, records)
    chosen = random.Random(seed).sample(records, min(recompute, len(records)))
    wrong += [text for record in chosen for text in _check_again(job, archive, record)]
    objects = sum(len(record["objects"]) for record in records)
    return VerifyReport(run.uri, objects, len(chosen), tuple(wrong))


def _unpublished(
    run: RunFolder, job: ApplyJob, archive: Archive, records: Iterable[Mapping[str, Any]]
) -> list[str]:
    """Return what is missing of cases that were applied and did not fail."""
    have = Counter(record["case"] for record in records)
    failed = {row["case"] for row in run.failed()}
    wrong = []
    for case in job.plan.cases:
        if case.case not in job.keys or case.case in failed:
            continue
        whole = len(case.grid(job.plan.shard_vox))
        if have[case.case] != whole:
            wrong.append(
                f"{case.case}: the ledger lists {have[case.case]} of {whole} shards; run again"
            )
        else:
            wrong += _not_shown(archive, case.case, job.output_label)
    return wrong


def _not_shown(archive: Archive, case: str, label: str) -> list[str]:
    try:
        if label in archive.label_names(case):
            _ = archive.label(case, label).shape_zyx  # opens it: its metadata is there
            return []
    except RaysegcleanError as error:
        return [str(error)]
    return [f"{case}: label {label!r} is not published; run again"]


def _check_objects(archive: Archive, record: dict[str, Any]) -> list[str]:
    store = archive.at(record["case"])
    wrong = []
    for entry in record["objects"]:
        where = f"{store.uri}/{entry['key']}"
        try:
            data = store.get(entry["key"])
        except MissingObject:
            if not entry["empty"]:
                wrong.append(f"{where}: is gone; undo the run or restore the object")
            continue
        if entry["empty"]:
            wrong.append(f"{where}: should not exist, the shard is all background")
        elif int(google_crc32c.value(data)) != entry["crc32c"]:
            wrong.append(
                f"{where}: its bytes changed after they were committed; restore the object"
            )
    return wrong


def _check_again(job: ApplyJob, archive: Archive, record: dict[str, Any]) -> list[str]:
    stage = ApplyStage(job)
    case = job.plan.case(record["case"])
    z, y, x = (int(part) for part in record["task"].rsplit("/", 1)[1].split("."))
    task = ShardTask(record["case"], (z, y, x))
    try:
        applied, _ = stage.compute(task, stage.load(task))
        stored = archive.label(case.case, job.output_label).read(
            case.grid(job.plan.shard_vox).box((z, y, x))
        )
    except RaysegcleanError as error:
        return [f"{record['task']}: {error}"]
    again = np.asarray(job.plan.classes, dtype=case.dtype)[applied.label_zyx]
    if np.array_equal(again, stored):
        return []
    differing = int((again != stored).sum())
    return [f"{record['task']}: {differing} voxels differ when the shard is made again"]


def undo(
    run_uri: str, case: str | None = None, cls: int | None = None, reason: str | None = None
) -> RunReport:
    """Take changes back, all or those of a case, a class and a reason, and publish again.

    No network is trained, and none runs where the archive is as it was: the label is made again
    from the proposals, with the given label in place of the changes. What was undone stays undone
    when the run is resumed.
    """
    run = _existing(run_uri)
    job, _ = _settled_job(run)
    entry = TakenBack(case, _channel(job.plan, cls), _reason(job.plan, reason))
    if case is not None:
        job.plan.case(case)
    # Of the last start: cases and thresholds may have changed since the first.
    latest = run.read_json(LATEST) or (run.resolved() or {})["config"]
    config = make_config(latest | {"run": run.uri, "archive": job.plan.archive})
    return clean(config, take_back=entry)


def _channel(plan: RunPlan, cls: int | None) -> int | None:
    if cls is None:
        return None
    if cls not in plan.classes[1:]:
        raise ConfigError(f"--class {cls}: this run has the classes {list(plan.classes[1:])}.")
    return plan.classes.index(cls)


def _reason(plan: RunPlan, name: str | None) -> int | None:
    if name is None:
        return None
    code = reason_code(name, plan.voters.labels)
    if code is None:
        known = [one for code, one in reason_names(plan.voters.labels).items() if code]
        raise ConfigError(f"--reason {name}: expected one of {', '.join(known)}.")
    return code


def _existing(run_uri: str) -> RunFolder:
    run = RunFolder(run_uri)
    if run.resolved() is None:
        raise InputError(
            f"{run.uri}: no run here, resolved.json is missing. Give the `run:` folder of a config "
            "that was started."
        )
    return run


def _settled_job(run: RunFolder) -> tuple[ApplyJob, str]:
    value = run.read_json("apply_job.json")
    if value is None:
        raise InputError(f"{run.uri}: this run has not applied yet; run its config again first.")
    return job_from_json(value)
