"""How far a run is, as another process reads it: in training, when killed, at the end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from raysegclean.events import Event, Events
from raysegclean.runs.metrics import read_metrics
from raysegclean.runs.pipeline import clean
from raysegclean.runs.status import status
from raysegclean.store.run import RunFolder

from .scenes import LABEL, Scene, config_for, write_archive

SCENES = [Scene(f"c{n}", (8, 20, 20)) for n in range(4)]


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_tells_its_stages_in_order_and_counts_cases_to_the_last(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "archive", SCENES)
    for name in ("one", "two"):
        for case in archive.case_ids():
            archive.add_label(case, name, archive.label(case, LABEL).read_all(), {})
    config = config_for(archive, tmp_path / "run", method="combine", params={"labels": "one two"})
    seen: list[Event] = []
    clean(config, Events(seen.append))
    kinds = [(event.stage, event.kind) for event in seen if event.kind in ("start", "end")]
    stages = [stage for stage, kind in kinds if kind == "start"]
    assert [one for one in stages if one in ("propose", "gather", "judge", "publish")] == [
        "propose", "gather", "judge", "publish"
    ]  # fmt: skip
    assert sorted(kinds) == sorted((s, k) for s in stages for k in ("start", "end"))
    cases = [event for event in seen if event.stage == "propose" and event.kind == "progress"]
    assert (cases[-1].done, cases[-1].total, cases[-1].unit) == (4, 4, "cases")
    kept = read_metrics(RunFolder(config.run).store)
    assert [(r["stage"], r["kind"]) for r in kept if r["kind"] in ("start", "end")] == kinds


@pytest.mark.slow
def test_status_tells_step_and_loss_while_training_and_that_a_killed_driver_is_gone(
    tmp_path: Path,
) -> None:
    archive = write_archive(tmp_path / "archive", SCENES)
    config = config_for(archive, tmp_path / "run", train__steps=100_000)
    path = tmp_path / "clean.json"
    path.write_text(json.dumps(config.resolved()))
    command = [sys.executable, "-m", "raysegclean", "clean", str(path)]
    with (tmp_path / "log").open("wb") as log:
        driver = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        now: dict[str, Any] = {}
        deadline = time.monotonic() + 240
        while not any(row.get("part") for row in now.get("progress", [])):
            assert driver.poll() is None, (tmp_path / "log").read_text()[-3000:]
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()[-3000:]
            time.sleep(1)
            now = status(config.run) if RunFolder(config.run).state() else {}
        assert now["status"] == "running"
        assert now["now"].startswith("train: ")
        whole, network = now["progress"][:2]
        assert 0 < whole["done"] < whole["total"]
        assert network["unit"] == "steps"
        assert network["loss"] > 0
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    asked = [sys.executable, "-m", "raysegclean", "status", config.run, "--json"]
    gone = json.loads(subprocess.run(asked, capture_output=True, check=True).stdout)
    assert gone["status"] == "died"
    assert "Start the same config again: it resumes" in gone["error"]
    assert gone["progress"][0]["stage"] == "train"
