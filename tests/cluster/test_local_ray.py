"""A Ray that does not come up: tried again, its log's reason told, nothing left behind.

The starts are real ones. The raylet's agent, without which it ends itself after 15 s, is replaced
by one that never answers, as happens on a machine too busy to import it in time.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from raysegclean.cluster.local_ray import _FATAL

ROOT = Path(__file__).resolve().parents[2]

# A raylet whose first starts, as many as are asked for, find no agent.
RAYLET = """#!{python}
import os, sys
words = sys.argv[1:]
with open({count!r}, "a+") as file:
    print("start", file=file, flush=True)
    file.seek(0)
    if len(file.readlines()) <= {failing}:
        silent = "--dashboard_agent_command=sleep 600"
        words = [silent if w.startswith("--dashboard_agent_command") else w for w in words]
os.execv({raylet!r}, [{raylet!r}, *words])
"""
DRIVER = """
import logging, sys
import ray
from ray._private import services
from raysegclean.cluster import connection, local_ray
from raysegclean.errors import UnfitEnvironment
logging.basicConfig(level=logging.WARNING, stream=sys.stdout, format="%(message)s")
if sys.argv[1:]:
    services.RAYLET_EXECUTABLE = sys.argv[1]
    local_ray._PAUSES_S = (0.5, 1)
try:
    facts = connection.connect()
    print("up:", ray.get(ray.remote(lambda: 6 * 7).remote()), flush=True)
    input()
    connection.shutdown_if_ours(facts)
except UnfitEnvironment as error:
    print(f"refused with {error.exit_code}:", error, flush=True)
    input()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: Ray's sockets lie below it, and a socket's path has 107 letters at most."""
    with tempfile.TemporaryDirectory(prefix="rsc-", ignore_cleanup_errors=True) as name:
        yield Path(name)


def driver(folder: Path, *words: str) -> "subprocess.Popen[str]":
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, *words],
        env=environment | {"PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def raylet_failing(folder: Path, times: int) -> Path:
    from ray._private import services

    stub, count = folder / "raylet", folder / "starts"
    stub.write_text(
        RAYLET.format(
            python=sys.executable,
            count=str(count),
            failing=times,
            raylet=services.RAYLET_EXECUTABLE,
        )
    )
    stub.chmod(0o755)
    return stub


def sessions(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "ray").glob("session_2*"))


def runs_of(session: str) -> list[str]:
    """Return the commands that name a session; what was just killed has a moment to end.

    What has ended and is not yet collected has no command.
    """
    for _ in range(50):
        commands = [
            " ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])
        ]
        found = [command for command in commands if session in command]
        if not found:
            break
        time.sleep(0.1)
    return found


def read_until(process: "subprocess.Popen[str]", begin: str) -> str:
    read = ""
    for line in process.stdout:
        read += line
        if line.startswith(begin):
            return read
    raise AssertionError(f"no line begins with {begin!r}:\n{read}")


@pytest.mark.slow
def test_a_start_that_fails_is_tried_again_and_leaves_no_process(folder: Path) -> None:
    with driver(folder, str(raylet_failing(folder, 1))) as process:
        said = read_until(process, "up:")
        first, second = sessions(folder)
        left, running = runs_of(first), runs_of(second)
        process.communicate("\n", timeout=60)
    assert said.endswith("up: 42\n")
    assert "Ray did not start, and is tried again in 0.5 s:" in said
    assert "Timed out waiting for file" in said
    assert not left
    assert running, "this is how processes of a session are found"
    assert process.returncode == 0


@pytest.mark.slow
def test_after_three_starts_the_reason_of_rays_own_log_is_told(folder: Path) -> None:
    with driver(folder, str(raylet_failing(folder, 9))) as process:
        said = read_until(process, "refused")
        tried = sessions(folder)
        left = [runs_of(session) for session in tried]
        process.communicate("\n", timeout=60)
    assert len(tried) == 3
    assert said.count("is tried again") == 2
    told = said.splitlines()[-1]
    assert told.startswith("refused with 3: Ray cannot be started on this machine:")
    log = folder / "ray" / tried[-1] / "logs" / "raylet.out"
    assert f"{log} ends with: Check failed" in told
    assert "Timed out waiting for file" in told
    assert "You have likely discovered a bug" not in told
    assert "processors that are not all busy" in told
    assert left == [[], [], []]


def test_what_another_start_would_not_mend_is_told_at_once() -> None:
    with driver(Path("/proc/nowhere")) as process:
        said = read_until(process, "refused")
        process.communicate("\n", timeout=60)
    assert "tried again" not in said
    assert "No such file or directory: '/proc/nowhere'" in said
    assert "set RAY_TMPDIR to another one" in said


def test_the_last_words_of_a_process_are_found_in_its_log() -> None:
    text = """\
[2026-11-30 07:03:22,671 I 28767 28956] (raylet) agent_manager.cc:81: Monitor agent process
[2026-11-30 07:03:30,001 W 28767 28956] (raylet) agent_manager.cc:82: Check failed: not this
[2026-11-30 07:03:37,855 C 28767 28767] (raylet) manager.cc:3576:  Check failed: has() Timed out
*** StackTrace Information ***
"""
    assert _FATAL.findall(text) == ["Check failed: has() Timed out"]
