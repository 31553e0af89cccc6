"""An unlucky run ends with the bytes of an undisturbed one, and redoes nothing that was committed.

One run meets everything in turn: a propose worker is killed, then a settle worker, then the driver
itself; the same command again finishes it. Once on files, once on a real S3 server.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from raysegclean.config.settings import Config
from raysegclean.store.archive import Archive
from raysegclean.store.run import RunFolder

from .scenes import LABEL, Scene, config_for, lend_networks, outputs, write_archive

DEADLINE_S = 240.0
pytestmark = pytest.mark.timeout(4 * DEADLINE_S)
SCENES = tuple(Scene(f"case{n:02d}", (20, 60 + n, 64), (2.0, 1.0, 1.0)) for n in range(8))
SLOW_VOTERS = {"voters": "dropout", "members": 1, "passes": 16, "rule": "safe", "delta": 0.3}


@dataclass
class Job:
    """`raysegclean clean` as a user runs it: a process with a Ray of its own."""

    config: Config
    path: Path
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        self.path.write_text(json.dumps(self.config.resolved()))
        command = [sys.executable, "-m", "raysegclean", "clean", str(self.path)]
        self.log = self.path.with_suffix(".log").open("ab")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)

    def wait(self) -> int:
        assert self.process is not None
        return self.process.wait(timeout=DEADLINE_S)

    def until(self, happened: Callable[[], bool], what: str) -> None:
        assert self.process is not None
        deadline = time.monotonic() + DEADLINE_S
        while not happened():
            ended = self.process.poll()
            assert ended is None, f"ended with {ended} before {what}:\n{self.said()}"
            assert time.monotonic() < deadline, f"no {what} in time:\n{self.said()}"
            time.sleep(0.05)

    def kill_worker(self) -> None:
        """Kill one worker of the pass that is under way."""
        assert self.process is not None
        actors: list[psutil.Process] = []

        def found() -> bool:
            assert self.process is not None
            children = psutil.Process(self.process.pid).children(recursive=True)
            actors[:] = [c for c in children if any("MapBatches" in word for word in _words(c))]
            return bool(actors)

        self.until(found, "worker to kill")
        actors[0].kill()

    def said(self) -> str:
        return self.path.with_suffix(".log").read_text()[-4000:]


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _unlucky_run(folder: Path, archive_uri: str, run_uri: str) -> None:
    archive = write_archive(archive_uri, SCENES)
    given = {case: archive.label(case, LABEL).read_all().tobytes() for case in archive.case_ids()}
    shared = {
        "method": "uncertainty",
        "params": SLOW_VOTERS,
        "relabel__shard_vox": 64,
        "relabel__max_change": 1.0,
        "resources__relabel": {"actors": 1},
    }
    lender = lend_networks(config_for(archive, f"{run_uri}-lender", **shared), f"{run_uri}-lender")
    calm = _job(archive, folder, run_uri, "calm", shared, lender)
    calm.start()
    assert calm.wait() == 0, calm.said()

    unlucky = _job(archive, folder, run_uri, "unlucky", shared, lender)
    run = RunFolder(unlucky.config.run)
    unlucky.start()
    unlucky.until(lambda: bool(list(run.store.list("ledger/propose"))), "first commit")
    unlucky.kill_worker()
    unlucky.until(lambda: _has_objects(archive, "unlucky"), "first object of the output")
    unlucky.kill_worker()
    assert unlucky.process is not None
    unlucky.process.send_signal(signal.SIGKILL)
    assert unlucky.wait() == -signal.SIGKILL
    assert len(outputs(unlucky.config)) < len(SCENES), "the driver was to die before it published"
    unlucky.start()
    assert unlucky.wait() == 0, unlucky.said()

    assert outputs(unlucky.config) == outputs(calm.config)
    assert len(outputs(calm.config)) == len(SCENES)
    for stage in ("propose", "rehearse", "apply"):
        counts = Counter(_committed(run, stage))
        assert set(counts.values()) == {1}, f"{stage} did committed shards again: {counts}"
    assert run.state()["status"] == "complete"
    for case, label in given.items():
        assert archive.label(case, LABEL).read_all().tobytes() == label


def _job(
    archive: Archive, folder: Path, run_uri: str, name: str, shared: dict[str, object], lender: str
) -> Job:
    config = config_for(
        archive, f"{run_uri}-{name}", models=lender, output={"label": name}, **shared
    )
    return Job(config, folder / f"{name}.yaml")


def _has_objects(archive: Archive, label: str) -> bool:
    return any(
        any("/c/" in info.key for info in archive.at(scene.case).list(f"labels/{label}"))
        for scene in SCENES
    )


def _committed(run: RunFolder, stage: str) -> list[tuple[str, str]]:
    """Shard and key of every line of every ledger object, duplicates included."""
    lines = [
        json.loads(line)
        for info in run.store.list(f"ledger/{stage}")
        for line in run.store.get(info.key).splitlines()
    ]
    return [(line["task"], line["key"]) for line in lines]


def test_on_files_three_kills_cost_nothing_that_was_committed(tmp_path: Path) -> None:
    _unlucky_run(tmp_path, str(tmp_path / "archive"), str(tmp_path / "run"))


@pytest.mark.slow
def test_on_s3_three_kills_cost_nothing_that_was_committed(tmp_path: Path, s3_bucket: str) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    bucket = s3_bucket.rsplit("/", 1)[0]
    _unlucky_run(tmp_path, f"{bucket}/archive", f"{bucket}/run")
