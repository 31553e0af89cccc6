"""Proving a published run: every object by its checksum, some shards by computing them again."""

import random
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from raysegclean.cluster.apply import APPLY, ApplyJob, ApplyStage, load_job
from raysegclean.errors import MissingObject, RaysegcleanError
from raysegclean.evidence.records import ApplyRecord
from raysegclean.planning.items import ShardTask
from raysegclean.store.archive import Archive
from raysegclean.store.run import RunFolder, existing_run
from raysegclean.store.shards import stored

__all__ = ["VerifyReport", "verify"]

READERS = 16
RECOMPUTED = 5


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
    run = existing_run(run_uri)
    job = load_job(run)
    records = [r for r in run.ledger(APPLY, ApplyRecord).records() if job.keys.get(r.case) == r.key]
    archive = Archive.open(job.plan.archive)
    with ThreadPoolExecutor(READERS) as pool:
        checks = pool.map(lambda record: _check_objects(archive, record), records)
        wrong = [text for texts in checks for text in texts]
    wrong += _unpublished(run, job, archive, records)
    chosen = random.Random(seed).sample(records, min(recompute, len(records)))
    wrong += [text for record in chosen for text in _check_again(job, archive, record)]
    objects = sum(len(record.objects) for record in records)
    return VerifyReport(run.uri, objects, len(chosen), tuple(wrong))


def _unpublished(
    run: RunFolder, job: ApplyJob, archive: Archive, records: Iterable[ApplyRecord]
) -> list[str]:
    """Return what is missing of cases that were applied and did not fail."""
    have = Counter(record.case for record in records)
    failed = {one.case for one in run.failed()}
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


def _check_objects(archive: Archive, record: ApplyRecord) -> list[str]:
    store = archive.at(record.case)
    wrong = []
    for entry in record.objects:
        where = f"{store.uri}/{entry.key}"
        try:
            data = store.get(entry.key)
        except MissingObject:
            if not entry.empty:
                wrong.append(f"{where}: is gone; undo the run or restore the object")
            continue
        if entry.empty:
            wrong.append(f"{where}: should not exist, the shard is all background")
        elif stored(entry.key, data) != entry:
            wrong.append(
                f"{where}: its bytes changed after they were committed; restore the object"
            )
    return wrong


def _check_again(job: ApplyJob, archive: Archive, record: ApplyRecord) -> list[str]:
    stage = ApplyStage(job)
    case = job.plan.case(record.case)
    z, y, x = (int(part) for part in record.task.rsplit("/", 1)[1].split("."))
    task = ShardTask(record.case, (z, y, x))
    try:
        applied, _ = stage.compute(task, stage.load(task))
        stored = archive.label(case.case, job.output_label).read(
            case.grid(job.plan.shard_vox).box((z, y, x))
        )
    except RaysegcleanError as error:
        return [f"{record.task}: {error}"]
    again = stage.values(case, applied)
    if np.array_equal(again, stored):
        return []
    differing = int((again != stored).sum())
    return [f"{record.task}: {differing} voxels differ when the shard is made again"]
