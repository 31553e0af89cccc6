"""One item on one worker: what is committed stays, and what a dead worker left does not matter."""

import os
import shutil
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest

from raysegclean.cluster import passes
from raysegclean.cluster.attempts import RayAttempts
from raysegclean.cluster.executor import PassResources
from raysegclean.cluster.local_executor import _OneWorker
from raysegclean.cluster.passes import run_pass
from raysegclean.cluster.proposal_folder import ProposalFolder
from raysegclean.cluster.worker import run_item
from raysegclean.errors import RunOver, UnfitEnvironment
from raysegclean.events import Events
from raysegclean.evidence.proposals import Proposal
from raysegclean.evidence.records import ShardRecord
from raysegclean.planning.items import Item, ShardTask
from raysegclean.store.lock import RunLock
from raysegclean.store.objects import Store
from raysegclean.store.run import RunFolder
from raysegclean.voxels.geometry import Box

KEYS = {"a": "now"}
TASKS = tuple(ShardTask("a", (0, 0, x)) for x in range(3))


@dataclass
class Stage:
    """Writes its shards into a list; `before` happens while a shard is computed."""

    before: dict[str, object] = field(default_factory=dict)
    written: list[str] = field(default_factory=list)

    def load(self, task):
        return task

    def compute(self, task, loaded):
        if task.name in self.before:
            self.before[task.name]()
        return loaded

    def write(self, task, result):
        self.written.append(task.name)
        return ShardRecord(task.name, task.case, KEYS[task.case])


@pytest.fixture
def attempts(cluster):
    started = RayAttempts.start()
    yield started
    started.stop()


def test_a_shard_that_another_worker_committed_meanwhile_is_not_written(tmp_path, attempts):
    late = TASKS[1].name
    stage = Stage({late: lambda: attempts.end([late], committed=True)})
    ledger = RunFolder(str(tmp_path)).ledger("propose", ShardRecord)
    report = run_item(stage, Item("item", TASKS), ledger, attempts, KEYS)
    others = [task.name for task in TASKS if task.name != late]
    assert stage.written == others
    assert [record.task for record in ledger.records()] == others
    assert sorted(report.done) == [task.name for task in TASKS]
    assert not report.failed


def test_a_shard_whose_worker_died_between_its_commit_and_telling_of_it_is_not_done_again(
    tmp_path, attempts
):
    ledger = RunFolder(str(tmp_path)).ledger("propose", ShardRecord)
    first = TASKS[0]
    attempts.begin(first.name)
    record = ShardRecord(first.name, first.case, KEYS["a"])
    ledger.commit("item", 7, 0, [record])
    ledger.commit("item", 8, 0, [replace(record, task=TASKS[2].name, key="of an earlier round")])
    ledger.commit("item-of-another", 7, 0, [replace(record, task=TASKS[1].name)])
    stage = Stage()
    report = run_item(stage, Item("item", TASKS), ledger, attempts, KEYS)
    assert stage.written == [task.name for task in TASKS[1:]]
    assert sorted(report.done) == [task.name for task in TASKS]
    assert attempts.past([first.name]) == ({first.name}, set())


def test_a_worker_of_a_driver_that_was_replaced_writes_nothing_more(tmp_path, attempts):
    run = RunFolder(str(tmp_path))
    first, second = (RunLock(run.store, name) for name in ("first", "second"))
    first.acquire()

    def replaced():
        first.release()
        second.acquire()

    stage = Stage({TASKS[1].name: replaced})
    with pytest.raises(RunOver, match="term 1 of this run is over; job second"):
        run_item(stage, Item("item", TASKS), run.ledger("propose", ShardRecord, 1), attempts, KEYS)
    second.release()
    assert TASKS[1].name not in stage.written


def test_nothing_is_committed_in_a_run_folder_that_was_deleted(tmp_path):
    run = RunFolder(str(tmp_path / "run"))
    lock = RunLock(run.store, "job")
    lock.acquire()

    @dataclass
    class Deleted(Stage):
        def write(self, task, result):
            shutil.rmtree(tmp_path / "run")
            return super().write(task, result)

    ledger = run.ledger("propose", ShardRecord, 1)
    with pytest.raises(RunOver, match="term 1 of this run is over; job nobody: it was deleted"):
        run_item(Deleted(), Item("item", TASKS[:1]), ledger, _OneWorker(), KEYS)
    lock.release()
    assert ledger.records() == []


def test_a_worker_whose_gpu_is_broken_ends_and_blames_no_case(tmp_path, attempts, monkeypatch):
    class Ended(BaseException):
        """What os._exit does here."""

    def end(code):
        raise Ended

    def broken():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(os, "_exit", end)
    ledger = RunFolder(str(tmp_path)).ledger("propose", ShardRecord)
    with pytest.raises(Ended):
        run_item(Stage({TASKS[0].name: broken}), Item("item", TASKS), ledger, attempts, KEYS)
    ((name,), begun) = (TASKS[:1], attempts.past([TASKS[0].name])[1])
    assert begun == {name.name}, "it must be on record, or it is tried for ever"


@pytest.mark.parametrize("wanted", [{"cpus": 5000}, {"gpus": 900}, {"memory_bytes": 2**60}])
def test_workers_that_no_machine_here_could_hold_are_refused_and_not_waited_for(
    cluster, tmp_path, wanted
):
    resources = replace(PassResources(1), **wanted)
    with pytest.raises(UnfitEnvironment, match=r"resources.relabel: a worker takes .* Lower cpus"):
        next(
            run_pass(
                Stage,
                SimpleNamespace(keys=KEYS),
                [Item("item", TASKS)],
                (str(tmp_path), "propose", 0),
                resources,
                Events(),
            )
        )


def test_a_pass_that_waits_for_what_may_never_come_says_what_it_waits_for(cluster):
    told = passes._waiting(PassResources(1, gpus=1.0, memory_bytes=3 << 30))
    assert "a worker takes 1 CPU, 1 GPU and 3.0 GiB; free now:" in told


def test_what_was_left_uncommitted_is_replaced_by_another_answer(tmp_path):
    folder = ProposalFolder(Store.open(tmp_path), "key", "a", (4, 4, 4), 64, False)
    folder.create()
    given = np.zeros((4, 4, 4), np.uint8)
    for level in (200, 0, 201):
        full = np.full_like(given, level)
        folder.write((0, 0, 0), Proposal((full > 0) * np.uint8(2), full, None))
        assert np.array_equal(folder.read(Box.whole(given.shape)).confidence_zyx, full)
