"""Trainings with an open end: told, interrupted, and gone on with under a higher bound."""

import time
from dataclasses import replace

import pytest
import ray
import torch

from raysegclean.cluster import train_groups as module
from raysegclean.cluster.agreement_sample import AgreementSample, batches_of
from raysegclean.cluster.connection import connect
from raysegclean.cluster.executor import ray_executor
from raysegclean.cluster.local_executor import local_executor
from raysegclean.errors import InputError
from raysegclean.events import Events
from raysegclean.nets import schedule
from raysegclean.nets.hooks import HookSpec
from raysegclean.nets.trainer import TrainConfig
from raysegclean.nets.weights import load_facts, load_network
from raysegclean.store.objects import Store

OPEN = TrainConfig(steps=40, max_steps=120, batch=2, checkpoint_every=15, seed=5)
PEERS = replace(OPEN, peers=2, epoch_steps=4, hook=HookSpec.of("coseg", keep=0.7, start_epoch=1))


@pytest.fixture
def job(small_job):
    return replace(small_job, train=OPEN)


def train(job, on_note=None, listeners=()):
    """Train in this process; return the weights and the facts of each network."""
    executor = local_executor()
    try:
        keys = module.train_group(job, executor, Events(*listeners), on_note=on_note)
    finally:
        executor.close()
    store = Store.open(job.run_uri)
    data = [store.get(key) for names in keys for key in names]
    return [load_network(one)[0].state_dict() for one in data], [load_facts(one) for one in data]


def assert_equal(one, other):
    for mine, theirs in zip(one, other, strict=True):
        for name, value in mine.items():
            assert torch.equal(value, theirs[name]), name


def ending_at(monkeypatch, step):
    """Say that agreement has stopped rising at `step`."""
    monkeypatch.setattr(schedule, "ending", lambda seen: "plateau" if seen[-1][0] >= step else "")


class Killed(InputError):
    """Stands for the end of the process."""


def killed_at(step):
    def note(progress):
        if progress.fold == 0 and progress.step == step:
            raise Killed

    return note


@pytest.mark.parametrize("config", [OPEN, PEERS], ids=["plain", "coseg"])
@pytest.mark.parametrize("step", [50, 67], ids=["as it ends", "in its decay"])
def test_a_training_that_is_killed_round_its_end_ends_where_it_would(
    job, tmp_path, monkeypatch, config, step
):
    ending_at(monkeypatch, 50)
    monkeypatch.setattr("raysegclean.cluster.train_loop.NOTE_S", 0.0)
    job = replace(job, train=config)
    straight, facts = train(replace(job, run_uri=str(tmp_path / "straight")))
    assert {one["steps"] for one in facts} == {67}
    assert {one["course"]["by"] for one in facts} == {"plateau"}
    with pytest.raises(Killed):
        train(job, on_note=killed_at(step))
    ending_at(monkeypatch, 50 if step == 50 else 10**9)  # what was decided is not asked again
    weights, facts = train(job)
    assert_equal(weights, straight)


def test_under_a_higher_bound_it_goes_on_from_the_end_of_its_stable_phase(
    job, tmp_path, monkeypatch
):
    ending_at(monkeypatch, 10**9)
    monkeypatch.setattr("raysegclean.cluster.train_loop.NOTE_S", 0.0)
    raised = replace(job, train=replace(OPEN, max_steps=160))
    straight, _ = train(replace(raised, run_uri=str(tmp_path / "straight")))
    first, facts = train(job)
    assert {one["steps"] for one in facts} == {120}
    steps = []
    again, _ = train(job, on_note=lambda note: steps.append(note.step))
    assert steps == [], "nothing is trained twice"
    assert_equal(again, first)
    weights, facts = train(raised, on_note=lambda note: steps.append(note.step))
    assert min(steps) == 91
    assert {one["steps"] for one in facts} == {160}
    assert_equal(weights, straight)


def test_a_network_that_stopped_rising_stays_as_it_is_under_any_bound(job, monkeypatch):
    ending_at(monkeypatch, 50)
    first, _ = train(job)
    steps = []
    raised = replace(job, train=replace(OPEN, max_steps=1600))
    again, _ = train(raised, on_note=lambda note: steps.append(note.step))
    assert steps == []
    assert_equal(again, first)


def test_a_budget_of_minutes_ends_it_and_without_it_it_goes_on(job, monkeypatch):
    ending_at(monkeypatch, 10**9)
    _, facts = train(replace(job, train=replace(OPEN, budget_minutes=1e-6)))
    assert {(one["steps"], one["course"]["by"]) for one in facts} == {(34, "time")}
    _, facts = train(job)
    assert {(one["steps"], one["course"]["by"]) for one in facts} == {(120, "")}


@pytest.mark.slow
def test_workers_stop_where_it_ends_and_read_no_patch_of_the_steps_that_do_not_come(job, cluster):
    job = replace(job, train=replace(OPEN, max_steps=50_000, budget_minutes=1e-6))
    keys = module.train_group(job, ray_executor(connect()))
    store = Store.open(job.run_uri)
    facts = [load_facts(store.get(key)) for names in keys for key in names]
    assert {(one["steps"], one["course"]["by"]) for one in facts} == {(34, "time")}
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline, "readers go on"
        time.sleep(1)


def test_agreement_is_told_by_class_and_the_total_as_far_as_it_is_known(job, monkeypatch):
    ending_at(monkeypatch, 50)
    seen = []
    train(job, listeners=[seen.append])
    told = [event for event in seen if event.kind == "agreement"]
    assert [event.done for event in told if "fold 0" in event.part] == [25, 50, 67]
    assert all(set(event.agreement) == {"3"} for event in told)
    first = next(event for event in seen if event.kind == "progress" and not event.part)
    assert (first.total, first.is_open) == (240, True)
    assert (seen[-1].done, seen[-1].total) == (134, 134)


def test_the_sample_is_of_cases_that_are_judged_and_holds_every_class(job):
    sources = [module.patch_source(job, fold).judged for fold in (0, 1)]
    assert [source.table.cases for source in sources] == [job.folds[1], job.folds[0]]
    alone = replace(job, folds=(tuple(info.case for info in job.cases),))
    assert module.patch_source(alone, 0).judged.table.cases == alone.folds[0]
    sample = AgreementSample.cut(sources[0])
    assert sample.every == 25
    assert all((batch.label == 1).any() for batch in sample)
    halves = [AgreementSample.cut(sources[0], rank, 2) for rank in (0, 1)]
    for whole, *parts in zip(sample, *halves, strict=True):
        assert torch.equal(whole.image[0::2], parts[0].image)
        assert torch.equal(whole.image[1::2], parts[1].image)


@pytest.mark.parametrize(
    ("classes", "batch", "edge", "expected"),
    [(2, 4, 40, 4), (17, 4, 40, 8), (17, 2, 40, 16), (105, 4, 40, 16), (17, 4, 256, 1)],
)
def test_the_sample_grows_with_the_classes_and_is_bounded_in_memory(
    job, classes, batch, edge, expected
):
    source = module.patch_source(job, 0).judged
    source = replace(
        source, classes=tuple(range(classes)), batch=batch, patch_zyx=(edge, edge, edge)
    )
    assert batches_of(source) == expected


def test_patches_changed_at_random_are_changed_alike_after_a_kill(job, tmp_path, monkeypatch):
    monkeypatch.setattr("raysegclean.cluster.train_loop.NOTE_S", 0.0)
    plain = TrainConfig(steps=12, batch=2, checkpoint_every=5, seed=5)
    as_given, _ = train(replace(job, train=plain, run_uri=str(tmp_path / "plain")))
    job = replace(job, train=replace(plain, augment=True))
    straight, _ = train(replace(job, run_uri=str(tmp_path / "straight")))
    assert any(not torch.equal(v, as_given[0][name]) for name, v in straight[0].items())
    with pytest.raises(Killed):
        train(job, on_note=killed_at(8))
    assert_equal(train(job)[0], straight)
