"""Training groups: the same weights wherever the networks sit and whatever dies on the way."""

import os
import queue
import signal
import threading
import time
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import ray.train
import torch

from raysegclean.cluster import exchange, train_loop, train_worker
from raysegclean.cluster import train_groups as module
from raysegclean.cluster.connection import connect
from raysegclean.cluster.exchange import PeerMesh
from raysegclean.cluster.executor import ray_executor
from raysegclean.cluster.local_executor import local_executor
from raysegclean.cluster.train_jobs import at_once, missing_networks, trainings_of
from raysegclean.cluster.train_loop import common_step
from raysegclean.errors import ConfigError, InputError, RunOver, UnfitEnvironment
from raysegclean.events import Events, Lines
from raysegclean.nets.batch import Batch
from raysegclean.nets.hooks import PLAIN_HOOK, HookSpec
from raysegclean.nets.numerics import fix_numerics
from raysegclean.nets.place import LocalExchange, Place
from raysegclean.nets.schedule import Course
from raysegclean.nets.trainer import TrainConfig, Trainer, TrainingDiverged
from raysegclean.nets.weights import load_network
from raysegclean.store.archive import Archive, write_case
from raysegclean.store.index import build_index
from raysegclean.store.lock import RunLock
from raysegclean.store.objects import Store

FOLDS = (("case0", "case1", "case2"), ("case3", "case4", "case5"))
COSEG = TrainConfig(
    steps=120,
    batch=3,
    peers=2,
    hook=HookSpec.of("coseg", keep=0.7, start_epoch=1),
    epoch_steps=12,
    checkpoint_every=10,
    seed=5,
)
MEMBERS = replace(COSEG, hook=PLAIN_HOOK)


def train_group(job, events=None, **options):
    return module.train_group(job, ray_executor(connect()), events, **options)


@pytest.fixture
def job(small_job):
    return replace(small_job, folds=FOLDS, train=COSEG, patch_zyx=(16, 24, 24), flips=(2,))


def batch_of(source, step, rank=0, ranks=1):
    rows = source.cut(step, rank, ranks)
    own = len(range(rank, source.batch, ranks))
    return Batch(
        image=torch.tensor(rows["image"][:own]),
        label=torch.tensor(rows["label"][:own]).long(),
        case=[source.table.cases[number] for number in rows["case"][:own]],
        step=step,
        uniform=[bool(flag) for flag in rows["uniform"][:own]],
        clean=batch_of(source.clean, step, rank, ranks) if source.clean else None,
    )


def undisturbed(job, fold):
    """The weights of each network, trained here: no Ray, no stream, no checkpoint."""
    fix_numerics(job.train.threads)
    source = module.patch_source(job, fold)
    trainer = Trainer(job.network, job.train, fold=fold)
    for step in range(job.train.steps):
        trainer.step(batch_of(source, step))
    return {peer: net.state_dict() for peer, net in trainer.nets.items()}


class Averaged:
    """Two replicas in two threads, averaged in plain sight."""

    def __init__(self):
        self.barrier = threading.Barrier(2, timeout=120)
        self.given = {}

    def of(self, rank):
        return SimpleNamespace(mean_=partial(self.mean_, rank))

    def mean_(self, rank, tensors):
        self.given[rank] = [tensor.clone() for tensor in tensors]
        self.barrier.wait()
        for place, tensor in enumerate(tensors):
            tensor.copy_((self.given[0][place] + self.given[1][place]) / 2)
        self.barrier.wait()


def averaged_by_hand(job):
    """The weights of each network, as two data-parallel ranks train it."""
    fix_numerics(job.train.threads)
    source, averaged = module.patch_source(job, 0), Averaged()
    # Built one after the other: fresh weights come from torch's global generator.
    peers = tuple(range(job.train.peers))
    local = LocalExchange(len(peers))
    places = [Place(peers, local, averaged.of(rank), rank) for rank in range(2)]
    trainers = [Trainer(job.network, job.train, place=place) for place in places]

    def train(rank):
        for step in range(job.train.steps):
            trainers[rank].step(batch_of(source, step, rank, 2))

    threads = [threading.Thread(target=train, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [trainers[0].nets[peer].state_dict() for peer in peers]


def assert_bit_equal(job, fold, keys):
    expected = undisturbed(job, fold)
    assert len(keys) == len(expected) == job.train.peers
    for peer, key in enumerate(keys):
        net, spec, extra = load_network(Store.open(job.run_uri).get(key))
        assert spec == job.network
        assert (extra["fold"], extra["member"]) == (fold, peer)
        for name, value in net.state_dict().items():
            assert torch.equal(value, expected[peer][name]), f"fold {fold}, net {peer}: {name}"


@dataclass
class Notice:
    deadline_ms: int | None


class KillsTheWorker:
    """Kills the worker of fold 0 once, as soon as it has a checkpoint, and keeps all notes."""

    def __init__(self, job):
        self.store, self.folder = Store.open(job.run_uri), job.checkpoints
        self.notes = []
        self.killed = None

    def __call__(self, note):
        self.notes.append(note)
        if note.fold == 0 and self.killed is None:
            self.killed = note.pid
            threading.Thread(target=self.kill, daemon=True).start()

    def kill(self):
        members = self.notes[-1].members
        while common_step(self.store, self.folder, 0, members) == 0:
            time.sleep(0.01)
        os.kill(self.killed, signal.SIGKILL)


def test_a_killed_worker_changes_no_bit_and_the_other_fold_does_not_notice(job, cluster):
    witness, lines = KillsTheWorker(job), []
    keys = train_group(job, Events(Lines(lines.append, every_s=0)), on_note=witness)

    pids = {
        fold: list(dict.fromkeys(n.pid for n in witness.notes if n.fold == fold)) for fold in (0, 1)
    }
    assert len(pids[0]) == 2, "the worker of fold 0 was not started again"
    assert len(pids[1]) == 1
    resumed = next(n.step for n in witness.notes if n.pid == pids[0][1])
    assert resumed > 10, "it began from the start, not from its checkpoint"
    for fold in (0, 1):
        assert_bit_equal(job, fold, keys[fold])

    assert any("steps/s" in line and "left" in line and "loss" in line for line in lines)
    assert lines[0].startswith("train: 0/")
    assert lines[-1].startswith(f"train: {2 * job.train.steps}/{2 * job.train.steps} steps")
    store = Store.open(job.run_uri)
    assert not list(store.list("train")), "checkpoints of a finished training are left over"
    written = {info.key: info for info in store.list("models")}
    began = time.monotonic()
    assert train_group(job) == keys
    assert time.monotonic() - began < 5, "finished networks were trained again"
    assert {info.key: info for info in store.list("models")} == written


def test_networks_that_teach_each_other_learn_the_same_in_this_process(job):
    """Without the `cluster` of the others."""
    lines, executor = [], local_executor()
    job = replace(job, train=replace(COSEG, steps=40), placement="ranks")
    keys = module.train_group(job, executor, Events(Lines(lines.append, every_s=0)))
    executor.close()
    for fold in (0, 1):
        assert_bit_equal(job, fold, keys[fold])
    assert lines[-1].startswith("train: 80/80 steps")


def test_a_fold_that_cannot_be_trained_in_this_process_does_not_keep_the_others(job):
    executor = local_executor()
    lost = tuple(replace(info, case=f"lost{n}") for n, info in enumerate(job.cases[:3]))
    cases, folds = (*lost, *job.cases[3:]), (("lost0", "lost1", "lost2"), FOLDS[1])
    config = replace(COSEG, peers=1, hook=HookSpec(), steps=4)
    with pytest.raises(InputError, match="fold 0: no case is left"):
        module.train_group(replace(job, cases=cases, folds=folds, train=config), executor)
    executor.close()
    assert [info.key for info in Store.open(job.run_uri).list("models")] == [
        "models/abc/fold1-net0.pt"
    ]


@pytest.mark.slow
def test_peers_in_two_ranks_are_the_peers_of_one_process_even_when_one_is_killed(job, cluster):
    job = replace(job, folds=FOLDS[:1], placement="ranks")
    witness = KillsTheWorker(job)
    keys = train_group(job, on_note=witness)
    assert witness.notes[0].members == (0, 1)
    assert len({note.pid for note in witness.notes}) == 2
    assert_bit_equal(job, 0, keys[0])


@pytest.mark.slow
def test_independent_members_are_trainings_of_their_own_with_the_same_weights(job, cluster):
    config = replace(COSEG, hook=HookSpec(), steps=40)
    notes = []
    job = replace(job, folds=FOLDS[:1], placement="ranks", train=config)
    keys = train_group(job, on_note=notes.append)
    assert {note.members for note in notes} == {(0,), (1,)}
    assert_bit_equal(job, 0, keys[0])


@pytest.mark.slow
def test_two_data_parallel_workers_average_the_gradients_of_their_halves_of_the_batch(job, cluster):
    config = replace(COSEG, peers=1, hook=HookSpec(), steps=30, batch=4)
    job = replace(job, folds=FOLDS[:1], train=config, workers=2)
    ((key,),) = train_group(job)
    net, _, _ = load_network(Store.open(job.run_uri).get(key))
    (expected,) = averaged_by_hand(job)
    for name, value in net.state_dict().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.slow
def test_every_data_parallel_rank_gets_its_own_memory_back_after_one_is_killed(job, cluster):
    config = replace(COSEG, batch=4, steps=60)
    job = replace(job, folds=FOLDS[:1], placement="process", train=config, workers=2)
    witness = KillsTheWorker(job)
    (keys,) = train_group(job, on_note=witness)
    assert len({note.pid for note in witness.notes}) == 2, "no rank was started again"
    for key, expected in zip(keys, averaged_by_hand(job), strict=True):
        net, _, _ = load_network(Store.open(job.run_uri).get(key))
        for name, value in net.state_dict().items():
            assert torch.equal(value, expected[name]), f"{key}: {name}"


def test_checkpoints_of_other_labels_or_cases_are_not_gone_on_with(job):
    first, *others = job.cases
    drawn_again = replace(first, labels=tuple(replace(x, version="new") for x in first.labels))
    changed = replace(job, cases=(drawn_again, *others))
    fewer = replace(job, folds=(FOLDS[0][:2], FOLDS[1]))
    assert len({one.checkpoints for one in (job, replace(job, cpus=2), changed, fewer)}) == 3


def test_finished_folds_are_trained_again_where_the_others_find_other_labels(job):
    store, keys = Store.open(job.run_uri), [["models/abc/a.pt"], ["models/abc/b.pt"]]
    module._drop_changed(job, store, keys)
    store.put("models/abc/a.pt", b"finished")
    module._drop_changed(job, store, keys)
    assert store.head("models/abc/a.pt") is not None
    assert [missing_networks(job, store, names) for names in keys] == [(), (0,)]
    module._drop_changed(replace(job, folds=(FOLDS[0][:2], FOLDS[1])), store, keys)
    assert store.head("models/abc/a.pt") is None
    assert [missing_networks(job, store, names) for names in keys] == [(0,), (0,)]


def test_a_training_whose_run_was_taken_over_writes_nothing(job, cluster):
    store = Store.open(job.run_uri)
    with RunLock(store, "the successor"):
        config = replace(COSEG, steps=12)
        with pytest.raises(RunOver, match="job the successor"):
            train_group(replace(job, folds=FOLDS[:1], train=config, term=7))
    assert not list(store.list("models"))


REWEIGHT = TrainConfig(
    steps=20,
    batch=3,
    hook=HookSpec.of("reweight", start_epoch=1),
    epoch_steps=4,
    checkpoint_every=10,
    seed=5,
)


@pytest.fixture
def expert_job(job, balls, tmp_path):
    """The same archive, in which cases 1, 3 and 4 have a trusted label too, one that is shifted."""
    archive = Archive.open(tmp_path / "expert")
    for case, (image, label) in balls.arrays.items():
        labels = {"organs": label}
        if case in ("case1", "case3", "case4"):
            labels["expert"] = np.roll(label, 1, axis=1)
        write_case(archive, case, image, labels, spacing_mm=(2, 1, 1))
    return replace(
        job,
        archive_uri=archive.store.uri,
        cases=tuple(build_index(archive)),
        train=REWEIGHT,
        trusted_label="expert",
    )


def test_a_fold_learns_from_the_trusted_cases_of_its_own_training_side_alone(expert_job, balls):
    first, second = (module.patch_source(expert_job, fold) for fold in (0, 1))
    assert first.clean.table.cases == ("case1",)
    assert second.clean.table.cases == ("case3", "case4")
    assert first.clean.seed not in (first.seed, second.clean.seed, second.seed)
    rows = first.clean.cut(0, 0, 1)
    uniform = rows["uniform"].tolist().index(1)
    found = np.roll(balls.arrays["case1"][1], 1, axis=1) == 3
    patches = np.lib.stride_tricks.sliding_window_view(found, expert_job.patch_zyx)
    label = rows["label"][uniform] == 1
    turned = (label, label[:, :, ::-1])
    assert any((patches == one).all(axis=(3, 4, 5)).any() for one in turned)


def test_a_hook_that_asks_for_nothing_gets_no_trusted_patches(expert_job):
    assert module.patch_source(replace(expert_job, train=COSEG), 0).clean is None


def test_a_fold_without_trusted_cases_cannot_learn_from_them(expert_job):
    bare = replace(expert_job, folds=(("case0", "case2"), ("case3",)))
    with pytest.raises(InputError, match=r"fold 0: none of its 2 training cases has a trusted"):
        module.patch_source(bare, 0)
    with pytest.raises(InputError, match="trusted"):
        module.patch_source(replace(expert_job, trusted_label=None), 0)


@pytest.mark.slow
def test_a_training_with_trusted_patches_is_the_same_in_a_worker(expert_job, cluster):
    expert_job = replace(expert_job, folds=expert_job.folds[:1])
    ((key,),) = train_group(expert_job)
    assert_bit_equal(expert_job, 0, [key])


class TwoRanks:
    """Broadcasts between two threads, in place of torch.distributed."""

    def __init__(self):
        self.sent = queue.Queue()

    def broadcast(self, tensor, group, group_src):
        assert group_src == 0
        if group == 0:
            self.sent.put(tensor.clone())
        else:
            tensor.copy_(self.sent.get(timeout=10))


def test_the_trusted_patches_are_handed_over_with_the_batch(expert_job, monkeypatch):
    monkeypatch.setattr(exchange, "distributed", TwoRanks())
    source = module.patch_source(expert_job, 0)
    batch = batch_of(source, 7)
    meshes = [
        PeerMesh(SimpleNamespace(get_group=lambda _, peer=peer: peer), 2, 1) for peer in (0, 1)
    ]
    sent = meshes[0].hand_over(batch, source.cases)
    blank = train_loop._blank(source, 0, 1, torch.device("cpu"))
    got = meshes[1].hand_over(blank, source.cases)
    for mine, theirs in ((sent, got), (sent.clean, got.clean)):
        assert (mine.step, mine.case, mine.uniform) == (theirs.step, theirs.case, theirs.uniform)
        assert torch.equal(mine.image, theirs.image)
        assert torch.equal(mine.label, theirs.label)
    assert got.clean.case == batch.clean.case


@pytest.mark.slow
def test_a_diverged_training_is_told_as_such_and_is_not_tried_again(job, cluster):
    notes = []
    job = replace(job, folds=FOLDS[:1], train=replace(COSEG, lr=1e30))
    with pytest.raises(TrainingDiverged, match=r"fold 0, network .*lower train\.lr"):
        train_group(job, on_note=notes.append)
    assert len({note.pid for note in notes}) <= 1


@pytest.mark.slow
def test_a_damaged_case_is_named_and_training_goes_on(job, cluster, balls, tmp_path, caplog):
    archive = Archive.open(tmp_path / "damaged")
    for case, (image, label) in balls.arrays.items():
        write_case(archive, case, image, {"organs": label}, spacing_mm=(2, 1, 1))
    for shard in (tmp_path / "damaged" / "case1.ome.zarr" / "0" / "c").rglob("*"):
        if shard.is_file():
            shard.write_bytes(b"")
    config = replace(COSEG, peers=1, hook=HookSpec(), steps=20)
    job = replace(job, archive_uri=archive.store.uri, folds=FOLDS[:1], train=config)
    train_group(job)
    assert "goes on without case case1" in caplog.text


@pytest.mark.slow
def test_a_training_with_nothing_left_to_read_is_an_error_and_not_a_network(job, cluster, tmp_path):
    config = replace(COSEG, peers=1, hook=HookSpec(), steps=20)
    job = replace(job, archive_uri=str(tmp_path / "gone"), folds=FOLDS[:1], train=config)
    with pytest.raises(InputError, match="fold 0: no case is left"):
        train_group(job)
    assert not list(Store.open(job.run_uri).list("models"))


def test_a_notice_that_a_node_goes_away_saves_once_and_is_looked_for_now_and_then(monkeypatch):
    notices = iter([None, Notice(7), Notice(7), Notice(9), Notice(None), None])
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: next(notices))
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1")
    look = train_worker._Notice()
    came = [step for step in range(1, 301) if look.came(step)]
    assert came == [100, 200, 250]
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    assert not any(train_worker._Notice().came(step) for step in range(1, 301))


def test_a_training_that_leaves_no_slot_to_read_with_is_refused(job, cluster):
    with pytest.raises(UnfitEnvironment, match=r"do not fit into .* CPU .*Lower resources.train"):
        train_group(replace(job, cpus=cluster.cpus))


def test_more_workers_than_patches_are_refused(job):
    with pytest.raises(ConfigError, match="batch 3 cannot be split among 4 workers"):
        replace(job, workers=4)


@pytest.mark.parametrize("changes", [{"workers": 2}, {"placement": "ranks"}])
def test_ranks_that_would_share_a_gpu_are_refused(job, changes):
    with pytest.raises(ConfigError, match=r"0\.5 GPU each would share one"):
        replace(job, gpus=0.5, train=replace(COSEG, batch=4), **changes)


@pytest.mark.parametrize(
    ("ranks", "done", "differ"),
    [(1, 99, False), (2, 96, False), (2, 97, True), (2, 101, True), (2, 102, False)],
)
def test_no_checkpoint_is_written_while_ranks_measure_statistics_of_their_own(ranks, done, differ):
    course = Course.planned(120)
    assert (course.phases.recalibrate_at, course.phases.frozen_at) == (96, 102)
    trainer = SimpleNamespace(members={0: SimpleNamespace(course=course)})
    worker = SimpleNamespace(mesh=SimpleNamespace(ranks=ranks), trainer=trainer)
    assert train_loop.TrainLoop.ranks_differ(worker, done) is differ


def test_a_checkpoint_that_was_just_written_is_kept_and_later_ones_go(tmp_path):
    store = Store.open(tmp_path)
    plan = SimpleNamespace(checkpoints="train/k", fold=0, term=0)
    for step in (50, 400, 500):
        store.put(train_loop._checkpoint_key(plan, 0, step), b"")
    state = {"step": 100, "peers": {"0": {"hook": {}}}}
    worker = SimpleNamespace(
        trainer=SimpleNamespace(state=lambda: state, members={0: None}),
        store=store,
        plan=plan,
        saves=True,
        minutes=0.0,
        _memories=lambda mine: [mine],
    )
    train_loop.TrainLoop.save(worker)
    assert train_loop.common_step(store, plan.checkpoints, 0, (0,)) == 100
    assert train_loop._steps(store, plan.checkpoints, 0, 0) == {0, 50, 100}


@pytest.mark.parametrize(
    ("changes", "gpus", "expected"),
    [
        ({"gpus": 0.5}, 2, [(0, (0, 1), False), (1, (0, 1), False)]),
        ({}, 0, [(0, (0, 1), False), (1, (0, 1), False)]),
        ({"placement": "ranks"}, 0, [(0, (0, 1), True), (1, (0, 1), True)]),
        ({"gpus": 1}, 3, [(0, (0, 1), False), (1, (0, 1), False)]),
        ({"gpus": 1}, 4, [(0, (0, 1), True), (1, (0, 1), True)]),
        ({"gpus": 1, "placement": "process"}, 8, [(0, (0, 1), False), (1, (0, 1), False)]),
    ],
)
def test_peers_get_ranks_of_their_own_where_there_is_a_gpu_for_each(job, changes, gpus, expected):
    everything = {0: (0, 1), 1: (0, 1)}
    units = trainings_of(replace(job, **changes), Store.open(job.run_uri), everything, gpus)
    assert [(unit.fold, unit.members, unit.split) for unit in units] == expected


def test_a_member_that_is_finished_is_not_trained_again_with_one_that_is_not(job):
    store = Store.open(job.run_uri)
    store.put("models/abc/1.pt", b"finished")
    names = [f"models/abc/{net}.pt" for net in range(3)]
    assert missing_networks(replace(job, train=MEMBERS), store, names) == (0, 2)
    assert missing_networks(job, store, names) == (0, 1, 2), "peers learn from each other"
    assert missing_networks(job, store, names[1:2]) == ()


def test_members_that_drifted_apart_go_on_apart_and_do_not_begin_again(job):
    store, members = Store.open(job.run_uri), replace(job, train=MEMBERS)

    def together(**steps):
        store.delete_all(job.checkpoints)
        for net, its in steps.items():
            for step in its:
                store.put(f"{members.checkpoints}/fold0-{net}-step{step}.pt", b"state")
        return [one.members for one in trainings_of(members, store, {0: (0, 1)}, 0)]

    assert together() == [(0, 1)]
    assert together(net0=[50, 100], net1=[50, 100]) == [(0, 1)]
    assert together(net0=[50, 100], net1=[0, 50]) == [(0, 1)], "one was saved when both were killed"
    assert together(net0=[150, 200], net1=[50, 100]) == [(1,), (0,)]
    assert together(net0=[150, 200]) == [(1,), (0,)]


@pytest.mark.parametrize(
    ("cpus", "gpus", "per_worker", "growing", "expected"),
    [
        (4, 0, 0, False, 2),
        (3, 0, 0, False, 1),
        (40, 0, 0, False, 20),
        (64, 2, 1, False, 2),
        (64, 2, 0.5, False, 4),
        (0, 0, 1, True, 1),  # nothing there yet: one waits, and an autoscaler sees it
        (8, 1, 1, True, 2),  # one runs, one more asks for the next node
        (2, 0, 0, True, 1),  # one more would take the slot that the readers of the first need
    ],
)
def test_as_many_folds_run_at_once_as_fit_with_their_readers(
    job, cpus, gpus, per_worker, growing, expected
):
    job = replace(job, gpus=per_worker, placement="process")
    unit = trainings_of(job, Store.open(job.run_uri), {0: (0, 1)}, gpus)[0]
    assert at_once(job, unit, (cpus, gpus), growing) == expected
