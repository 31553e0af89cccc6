"""The cluster's front door: a head that asks for a token takes the job and ends with a clean run.

The head is Ray's own, on free ports of this machine; it is stopped by its process ids, so other
Rays on the machine never notice.
"""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from raysegclean.store.run import RunFolder

from .scenes import Scene, config_for, outputs, write_archive

ROOT = Path(__file__).resolve().parents[2]
START_S, JOB_S = 120.0, 300.0

pytestmark = pytest.mark.timeout(START_S + JOB_S + 60)


@dataclass(frozen=True)
class Head:
    """A Ray head: where jobs are submitted, and the environment that may do so."""

    address: str
    environment: dict[str, str]
    log: Path

    def answer(self, token: str | None) -> int:
        """Return the HTTP status with which the list of jobs is answered."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(f"{self.address}/api/jobs/", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=5) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def ray_command(*words: str) -> list[str]:
    return [sys.executable, "-m", "ray.scripts.scripts", *words]


def kill_with_children(process: "subprocess.Popen[bytes]") -> None:
    """End a process and all that came of it, and nothing else."""
    doomed = []
    with suppress(psutil.NoSuchProcess):
        own = psutil.Process(process.pid)
        doomed = [own, *own.children(recursive=True)]
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for one in doomed:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(doomed, timeout=20)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    # A short path: Ray's sockets lie below it, and a socket's path has 107 letters at most.
    folder = Path(tempfile.mkdtemp(prefix="rsc-"))
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    environment.pop("PYTHONPATH", None)
    port, dashboard, listen, grpc, runtime, metrics, client = free_ports(7)
    command = ray_command(
        "start", "--head", "--block", "--num-cpus=4", f"--port={port}",
        "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={listen}",
        f"--dashboard-agent-grpc-port={grpc}", f"--runtime-env-agent-port={runtime}",
        f"--metrics-export-port={metrics}", f"--ray-client-server-port={client}",
        f"--temp-dir={folder}", "--object-store-memory=300000000", "--disable-usage-stats",
    )  # fmt: skip
    log = tmp_path_factory.mktemp("head") / "head.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=environment, stdout=out, stderr=out, start_new_session=True
        )
    found = Head(f"http://127.0.0.1:{dashboard}", environment, log)
    try:
        deadline = time.monotonic() + START_S
        while found.answer(token.read_text()) != 200:
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.2)
        yield found
    finally:
        kill_with_children(process)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What a user has who cloned the repository and made its environment, and nothing more."""
    copy = tmp_path / "checkout"
    for name in ("raysegclean", "jobs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".gitignore", ".rayignore", "pyproject.toml"):
        shutil.copy(ROOT / name, copy / name)
    (copy / ".venv").mkdir()
    (copy / ".venv" / "large").write_bytes(os.urandom(300 << 20))  # more than Ray would upload
    return copy


def submit(head: Head, checkout: Path, python: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ray_command(
            *("job", "submit", "--address", head.address, "--working-dir", "."),
            *("--", python, "jobs/clean.py", "small.yaml"),
        ),
        cwd=checkout,
        env=head.environment,
        capture_output=True,
        text=True,
        timeout=JOB_S,
        check=False,
    )


@pytest.mark.slow
def test_a_submitted_job_ends_with_a_complete_run(
    head: Head, checkout: Path, tmp_path: Path
) -> None:
    assert head.answer(None) in (401, 403), "the head must ask for its token"
    assert head.answer("0" * 64) in (401, 403)
    archive = write_archive(
        tmp_path / "archive", [Scene(f"case{n}", (8, 32, 36)) for n in range(3)]
    )
    config = config_for(
        archive,
        tmp_path / "run",
        method="uncertainty",
        params={"members": 1},
        train={"steps": 2, "batch": 2, "patch_zyx": [8, 16, 16]},
    )
    (checkout / "small.yaml").write_text(json.dumps(config.resolved()))
    job = submit(head, checkout, "python")
    said = f"{job.stdout[-4000:]}\n{job.stderr[-2000:]}\n{head.log.read_text()[-1000:]}"
    assert job.returncode == 0, said
    assert RunFolder(config.run).state()["status"] == "complete", said
    assert set(outputs(config)) == {"case0", "case1", "case2"}
    token = Path(head.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    told = [said, *(p.read_text("utf-8", "replace") for p in (tmp_path / "run").rglob("*.json*"))]
    assert not [text for text in told if token in text], "a token must not reach logs or the run"


def test_a_job_whose_python_lacks_a_package_says_so_and_ends_with_3(
    head: Head, checkout: Path, tmp_path: Path
) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    python = str(tmp_path / "bare" / "bin" / "python")
    job = submit(head, checkout, python)
    said = f"{job.stdout[-4000:]}\n{job.stderr[-2000:]}"
    assert job.returncode == 1, said  # what Ray answers for every job that failed
    assert "exit code 3" in said
    assert f"the Python {python} lacks the package click" in said
    assert f"{python} -m pip install" in said
    assert "defect of raysegclean" not in said
