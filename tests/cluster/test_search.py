"""The search: same candidates from the same seed, nothing tried twice, no deadlock when nested."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegclean.cluster import search as module
from raysegclean.cluster.connection import connect
from raysegclean.cluster.executor import ray_executor
from raysegclean.cluster.search import SearchFailed, candidates, search, trials_at_once
from raysegclean.cluster.train_groups import train_group
from raysegclean.cluster.train_jobs import TrainJob
from raysegclean.errors import ConfigError, RunOver
from raysegclean.nets.hooks import HookSpec
from raysegclean.nets.trainer import TrainConfig
from raysegclean.nets.unet import NetworkSpec

SPACE = {"alpha": [0.6, 0.95], "start_epoch": [1, 6], "loss": ["ce", "dice", "both"]}


@settings(max_examples=30, deadline=None)
@given(samples=st.integers(1, 40), seed=st.integers(0, 2**31))
def test_candidates_are_within_their_ranges_and_all_different(samples, seed):
    drawn = candidates(SPACE, samples, seed)
    assert 1 <= len(drawn) <= samples
    assert len({trial.key for trial in drawn}) == len(drawn)
    assert [trial.number for trial in drawn] == list(range(len(drawn)))
    for trial in drawn:
        assert 0.6 <= trial.params["alpha"] <= 0.95
        assert trial.params["start_epoch"] in range(1, 7)
        assert isinstance(trial.params["start_epoch"], int)
        assert trial.params["loss"] in SPACE["loss"]


@settings(max_examples=20, deadline=None)
@given(fewer=st.integers(1, 20), more=st.integers(0, 20), seed=st.integers(0, 99))
def test_a_longer_search_begins_with_the_shorter_one(fewer, more, seed):
    short, long = (candidates(SPACE, count, seed) for count in (fewer, fewer + more))
    assert long[: len(short)] == short


def test_whole_numbers_reach_both_ends_and_choices_are_all_tried():
    drawn = candidates({"n": [1, 3], "flag": [True, False], "s": ["a", "b"]}, 64, 0)
    assert {trial.params["n"] for trial in drawn} == {1, 2, 3}
    assert {trial.params["flag"] for trial in drawn} == {True, False}
    assert len(drawn) == 12, "each combination once"


def test_an_identity_keeps_trials_of_other_objectives_apart():
    keys = {candidates(SPACE, 1, 0, identity)[0].key for identity in ("", "a", "b")}
    assert len(keys) == 3


@pytest.mark.parametrize(
    ("share", "workers", "cpus", "gpus", "expected"),
    [
        ((8.0, 0.0), 1, 1, 0, 4),
        ((8.0, 1.0), 1, 1, 1, 1),
        ((64.0, 4.0), 2, 4, 1, 2),
        ((2.0, 0.0), 1, 2, 0, 1),
        ((64.0, 1.0), 1, 1, 0.5, 2),
    ],
)
def test_no_more_trials_run_at_once_than_find_room_for_their_workers(
    monkeypatch, share, workers, cpus, gpus, expected
):
    monkeypatch.setattr(module, "cluster_share", lambda: share)
    assert trials_at_once(workers, cpus, gpus) == expected


@pytest.mark.parametrize("space", [{}, {"alpha": []}])
def test_an_empty_space_is_refused(space):
    with pytest.raises(ConfigError, match="empty"):
        candidates(space, 4, 0)


class Marked:
    """An objective that leaves a file for each time it is begun and each time it is ended."""

    def __init__(self, folder, fail=(), rounds=0, pause_s=0.0):
        self.folder, self.fail, self.rounds, self.pause_s = Path(folder), fail, rounds, pause_s

    def __call__(self, params, report):
        name = f"{params['x']:.6f}"
        self.mark("begun", name)
        if params["x"] in self.fail:
            raise ValueError(f"x = {params['x']} is beyond me")
        for step in range(1, self.rounds + 1):
            report(params["x"] * step, step)
            time.sleep(self.pause_s)
        self.mark("ended", name)
        return params["x"]

    def mark(self, what, name):
        with (self.folder / f"{what}-{name}").open("a") as file:
            file.write("x")

    def times(self, what):
        return {p.name.split("-")[1]: len(p.read_text()) for p in self.folder.glob(f"{what}-*")}


def test_the_best_trial_wins_a_failed_one_costs_itself_and_nothing_is_tried_twice(
    cluster, tmp_path
):
    space, run = {"x": [0.0, 1.0]}, str(tmp_path / "run")
    drawn = [trial.params["x"] for trial in candidates(space, 3, 7)]
    objective = Marked(tmp_path, fail=[min(drawn)])
    result = search(candidates(space, 3, 7), run, objective)

    assert result.best == {"x": max(drawn)}
    assert result.score == max(drawn)
    assert [row["params"]["x"] for row in result.trials] == drawn
    failed = [row for row in result.trials if row["score"] is None]
    assert [row["params"]["x"] for row in failed] == [min(drawn)]
    assert "is beyond me" in failed[0]["error"]
    assert set(objective.times("ended").values()) == {1}

    again = search(candidates(space, 3, 7), run, Marked(tmp_path))  # the failed one alone is left
    assert again.best == result.best
    assert sorted(objective.times("begun").values()) == [1, 1, 2]
    assert all(row["score"] is not None for row in again.trials)


def test_when_every_trial_fails_the_reason_is_told(cluster, tmp_path):
    space = {"x": [0.5, 0.5]}
    with pytest.raises(SearchFailed, match="is beyond me"):
        search(candidates(space, 1, 0), str(tmp_path / "run"), Marked(tmp_path, fail=[0.5]))


def test_a_search_whose_run_was_taken_over_ends(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_ASK_S", 0.2)

    lock = threading.Lock()  # as a run's own lock has, which cannot be pickled

    def taken_over():
        with lock:
            if Marked(tmp_path).times("begun"):
                raise RunOver("another driver has it")

    objective = Marked(tmp_path, rounds=100, pause_s=0.2)
    with pytest.raises(RunOver, match="another driver has it"):
        search(
            candidates({"x": [0.0, 1.0]}, 2, 0),
            str(tmp_path / "run"),
            objective,
            stop_early=False,
            still_ours=taken_over,
        )
    assert not objective.times("ended")
    begun = objective.times("begun")
    time.sleep(1)
    assert objective.times("begun") == begun


@pytest.mark.slow
def test_a_trial_below_the_median_is_stopped_and_kept_as_such(cluster, tmp_path):
    space, run = {"x": [0.0, 1.0]}, str(tmp_path / "run")
    drawn = [trial.params["x"] for trial in candidates(space, 8, 3)]
    objective = Marked(tmp_path, rounds=6, pause_s=0.2)
    result = search(candidates(space, 8, 3), run, objective)
    stopped = [row["params"]["x"] for row in result.trials if row["stopped"]]
    assert stopped, "no trial was stopped early"
    assert result.best == {"x": max(drawn)}
    assert not {f"{x:.6f}" for x in stopped} & set(objective.times("ended"))
    assert search(candidates(space, 8, 3), run, objective) == result
    assert set(objective.times("begun").values()) == {1}, "a stopped trial was tried again"


DRIVER = """
import sys
from raysegclean.cluster.connection import connect
from raysegclean.cluster.search import candidates, search
from tests.dist.test_search import Marked
connect()
trials = candidates({"x": [0.0, 1.0]}, 4, 1)
search(trials, sys.argv[1], Marked(sys.argv[2], rounds=4, pause_s=0.5), stop_early=False)
"""


def signalled_after_one_trial(run, signum):
    """Start a search of four trials, send the signal once one is finished; return the exit code."""
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-c", DRIVER, str(run), str(run.parent)]
    environment = os.environ | {"PYTHONPATH": root}
    with subprocess.Popen(command, env=environment, start_new_session=True, cwd=root) as driver:
        deadline = time.monotonic() + 200
        while not list(run.glob("search/trial-*.json")):
            assert driver.poll() is None and time.monotonic() < deadline, "the search did not start"
            time.sleep(0.05)
        os.kill(driver.pid, signum)
    return driver.returncode


@pytest.mark.slow
def test_a_search_that_is_interrupted_stops_and_takes_no_half_of_the_trials_for_all(tmp_path):
    run = tmp_path / "run"
    assert signalled_after_one_trial(run, signal.SIGINT) != 0
    assert 1 <= len(list(run.glob("search/trial-*.json"))) < 4


@pytest.mark.slow
def test_a_killed_search_repeats_no_finished_trial(cluster, tmp_path):
    run = tmp_path / "run"
    signalled_after_one_trial(run, signal.SIGKILL)
    finished = {path: path.read_bytes() for path in run.glob("search/trial-*.json")}
    assert 1 <= len(finished) < 4
    objective = Marked(tmp_path, rounds=4, pause_s=0.05)
    result = search(candidates({"x": [0.0, 1.0]}, 4, 1), str(run), objective, stop_early=False)
    assert all(row["score"] is not None for row in result.trials)
    for path, data in finished.items():
        assert path.read_bytes() == data
        assert objective.times("begun")[f"{json.loads(data)['params']['x']:.6f}"] == 1


class Trains:
    """An objective that trains two folds through Ray Train and Ray Data."""

    def __init__(self, job):
        self.job = job

    def __call__(self, params, report):
        config = replace(self.job.train, hook=HookSpec.of("coseg", keep=params["keep"]))
        keys = train_group(
            replace(self.job, key=f"keep{params['keep']}", train=config), ray_executor(connect())
        )
        report(params["keep"], 1)
        return params["keep"] + len(keys)


@pytest.mark.slow
def test_trials_that_train_at_the_same_time_do_not_starve_each_other(cluster, balls, tmp_path):
    config = TrainConfig(steps=12, batch=2, peers=2, hook=HookSpec.of("coseg", keep=0.5))
    job = TrainJob(
        key="",
        run_uri=str(tmp_path / "run"),
        archive_uri=balls.uri,
        label="organs",
        cases=balls.infos,
        folds=(("case0", "case1"), ("case2", "case3")),
        network=NetworkSpec(widths=(4, 8), strides=((1, 2, 2),)),
        normaliser=balls.normaliser,
        classes=(0, 3),
        train=config,
        patch_zyx=(8, 16, 16),
    )
    trials = candidates({"keep": [0.5, 0.9]}, 3, 0)
    result = search(trials, job.run_uri, Trains(job), max_concurrent=3, stop_early=False)
    assert [row["error"] for row in result.trials] == [None] * 3
    assert len(list((tmp_path / "run").glob("models/*/*.pt"))) == 12
