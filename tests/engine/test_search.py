"""A search is a few whole runs side by side: what it chose is frozen, nothing is tried twice."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from raysegclean.cluster.connection import connect, shutdown_if_ours
from raysegclean.cluster.local_executor import local_executor
from raysegclean.config.settings import Config
from raysegclean.errors import RunConflict
from raysegclean.events import Events, Lines
from raysegclean.runs.begin import begin
from raysegclean.runs.pipeline import clean
from raysegclean.runs.preflight import prepare
from raysegclean.runs.search import _adopt_equal, _learn_alike, _trials
from raysegclean.store.archive import Archive
from raysegclean.store.run import RunFolder

from .scenes import LABEL, Scene, config_for, lend_networks, outputs, write_archive

DEADLINE_S = 400.0
SPACE = {"alpha": [0.6, 0.95], "start_epoch": [1, 3]}
SAMPLES = 3
EXPERT = "expert"

pytestmark = pytest.mark.timeout(2 * DEADLINE_S)


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return write_archive(tmp_path / "archive", [Scene(f"case{n}", (8, 32, 36)) for n in range(6)])


def searching(archive: Archive, run: Path, **changes: object) -> Config:
    settings = {
        "method": "coseg",
        "params": {"retrain": False},
        "search": {"samples": SAMPLES, "space": SPACE},
        "relabel__max_change": 1.0,
        **changes,
    }
    return config_for(archive, run, **settings)


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return time and bytes of every file below a folder."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_trials_whose_losses_mean_other_things_are_not_stopped_for_them(
    archive: Archive, tmp_path: Path
) -> None:
    forgets = searching(archive, tmp_path / "run")
    assert not _learn_alike(forgets, _trials(forgets))
    asks = searching(
        archive,
        tmp_path / "run",
        method="uncertainty",
        params={"rule": "safe"},
        search={"samples": SAMPLES, "space": {"delta": [0.1, 0.2]}},
    )
    assert len(_trials(asks)) == SAMPLES
    assert _learn_alike(asks, _trials(asks))


def test_trials_that_differ_after_training_share_one_training(
    archive: Archive, tmp_path: Path
) -> None:
    config = config_for(archive, tmp_path / "a", method="uncertainty")
    done = lend_networks(config, tmp_path / "a")
    begun = lend_networks(config, tmp_path / "b")
    lacking = next(RunFolder(begun).store.list("models")).key
    RunFolder(begun).store.delete(lacking)
    said: list[str] = []
    here = config.with_settings({"run": str(tmp_path / "c")})
    job = (0, lambda: None, Events(Lines(said.append)))
    session = begin(here, RunFolder(here.run), prepare(here), local_executor(), job)
    _adopt_equal(session, [session.run.uri, begun, str(tmp_path / "none")])
    assert not said
    _adopt_equal(session, [session.run.uri, begun, done])
    assert len(said) == 1
    theirs = {info.key for info in RunFolder(done).store.list("models")}
    assert {info.key for info in session.run.store.list("models")} == theirs


@pytest.mark.slow
def test_a_search_on_trusted_cases_ends_on_two_cores_and_freezes_what_it_chose(
    archive: Archive, tmp_path: Path
) -> None:
    for case in archive.case_ids()[:4]:
        archive.add_label(case, EXPERT, archive.label(case, LABEL).read_all(), {})
    config = searching(archive, tmp_path / "run", trusted={"label": EXPERT})
    facts = connect()
    try:
        assert facts.started_here
        assert facts.cpus == max(4, 2 * len(os.sched_getaffinity(0)))
        said: list[str] = []
        report = clean(config, Events(Lines(said.append)))
        assert report.exit_code == 0
        run = RunFolder(config.run)
        chosen = run.read_json("search.json")
        trials = chosen["trials"]
        assert len(trials) == SAMPLES
        assert [trial["error"] for trial in trials] == [None] * SAMPLES
        whole = [trial for trial in trials if not trial["stopped"]]
        best = max(whole, key=lambda trial: trial["score"])
        assert chosen["best"] == best["params"]
        assert all(0 <= trial["score"] <= 1 for trial in whole)
        assert all(0.6 <= trial["params"]["alpha"] <= 0.95 for trial in trials)
        assert {trial["params"]["start_epoch"] for trial in trials} <= {1, 2, 3}

        frozen = run.resolved() or {}
        assert {name: frozen["config"]["params"][name] for name in SPACE} == best["params"]
        hook = dict(frozen["plan"]["voters"]["hook"]["params"])
        assert hook == {
            "keep": best["params"]["alpha"],
            "start_epoch": best["params"]["start_epoch"],
        }
        assert not [line for line in said if line.startswith("train")], "networks are adopted"
        if not run.read_json("actions.json")["held"]:
            rows = run.read_table("cases.parquet")
            by_case = [
                np.mean([r["trusted_dice"] for r in rows if r["case"] == case])
                for case in archive.case_ids()[:4]
            ]
            assert chosen["score"] == pytest.approx(np.mean(by_case))

        before, published = contents(tmp_path / "run" / "search"), outputs(config)
        began = time.monotonic()
        assert clean(config).exit_code == 0
        assert time.monotonic() - began < DEADLINE_S / 2
        assert contents(tmp_path / "run" / "search") == before, "a second start searches nothing"
        assert outputs(config) == published

        wider = config.with_settings({"search.samples": SAMPLES + 1})
        with pytest.raises(RunConflict, match=r"search\.samples was 3, is 4"):
            clean(wider)
        assert contents(tmp_path / "run" / "search") == before
    finally:
        shutdown_if_ours(facts)


@pytest.mark.slow
def test_a_killed_search_goes_on_without_repeating_a_finished_trial(
    archive: Archive, tmp_path: Path
) -> None:
    config = searching(archive, tmp_path / "run")
    path = tmp_path / "clean.yaml"
    path.write_text(json.dumps(config.resolved()))
    command = [sys.executable, "-m", "raysegclean", "clean", str(path)]
    search = tmp_path / "run" / "search"
    with (tmp_path / "log").open("ab") as log:
        driver = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_for(lambda: list(search.glob("trial-*.json")), driver, tmp_path / "log")
        finally:
            driver.send_signal(signal.SIGKILL)
            driver.wait(timeout=30)
        finished = [json.loads(trial.read_bytes()) for trial in search.glob("trial-*.json")]
        assert 1 <= len(finished) < SAMPLES
        folders = {f.parent for f in search.glob("run-*/resolved.json") if is_of(f, finished)}
        assert len(folders) == len(finished)
        kept = {trial: trial.read_bytes() for trial in search.glob("trial-*.json")}
        before = {folder: contents(folder) for folder in folders}

        again = subprocess.run(command, stdout=log, stderr=log, timeout=DEADLINE_S, check=False)
    assert again.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    assert {trial: trial.read_bytes() for trial in kept} == kept
    assert {folder: contents(folder) for folder in folders} == before
    trials = RunFolder(config.run).read_json("search.json")["trials"]
    assert len(trials) == SAMPLES
    assert [trial["error"] for trial in trials] == [None] * SAMPLES
    assert RunFolder(config.run).state()["status"] == "complete"
    assert set(outputs(config)) == set(archive.case_ids())


def is_of(resolved: Path, trials: list[dict[str, object]]) -> bool:
    """Tell whether a trial's folder is that of one of these results."""
    params = json.loads(resolved.read_bytes())["config"]["params"]
    return any({name: params[name] for name in SPACE} == trial["params"] for trial in trials)


def wait_for(
    happened: Callable[[], object],
    driver: "subprocess.Popen[bytes]",
    log: Path,
    deadline_s: float = DEADLINE_S,
) -> None:
    deadline = time.monotonic() + deadline_s
    while not happened():
        assert driver.poll() is None, f"ended too early:\n{log.read_text()[-3000:]}"
        assert time.monotonic() < deadline, f"nothing in time:\n{log.read_text()[-3000:]}"
        time.sleep(0.05)
