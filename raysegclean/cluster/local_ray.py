"""A Ray on this machine: its start, tried again where it does not come up.

On a busy machine many starts die: Ray's raylet waits for 15 s, which cannot be set, for an agent
that has to import half of Ray first. So a start that fails is tried twice more. None leaves
anything behind but its log, from which the reason is told, because Ray's own error only says that
it took too long.

A Ray started here has more logical CPU slots than cores, because the workers that train spend
their threads while those that read patches mostly wait.
"""

import logging
import os
import re
import signal
import time
from contextlib import suppress
from pathlib import Path

import ray

from raysegclean.errors import UnfitEnvironment

__all__ = ["slots", "start"]

log = logging.getLogger("raysegclean.cluster")

_PAUSES_S = (5.0, 15.0)
_OBJECT_STORE_BYTES = 2 << 30
_FATAL = re.compile(r"^\[[^]]* [CF] [^]]*\] \(\w+\) \S+ +(.*)", re.MULTILINE)
"""A line of Ray's C++ logs with which a process ended: [time level ids] (process) file: text."""
_APOLOGY = re.compile(r"An unexpected system state .*work with you to fix it\. ")


def start() -> None:
    """Start a Ray on this machine.

    Raises UnfitEnvironment when three starts have failed, or one in a way that stays.
    """
    for pause_s in (*_PAUSES_S, None):
        known = _sessions()
        try:
            _init()
        except Exception as error:  # Ray raises bare ones
            failed = _sessions() - known
            reason = _reason(error, failed)
            ray.shutdown()
            _end_processes_of(failed)
            if pause_s is None or _stays(error):
                raise UnfitEnvironment(
                    f"Ray cannot be started on this machine: {reason}. It needs about 1 GB of "
                    "memory, a writable temporary folder (set RAY_TMPDIR to another one), and "
                    "processors that are not all busy with something else."
                ) from error
            log.warning("Ray did not start, and is tried again in %g s: %s", pause_s, reason)
            time.sleep(pause_s)
        else:
            return


def slots() -> int:
    """Return the logical CPU slots of a Ray on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(4, 2 * (cores or 1))


def _init() -> None:
    ray.init(
        address="local",
        num_cpus=slots(),
        object_store_memory=_OBJECT_STORE_BYTES,
        include_dashboard=False,
        dashboard_host="127.0.0.1",
        log_to_driver=False,
        logging_level=logging.WARNING,
        configure_logging=False,
    )


def _sessions() -> set[Path]:
    """Return the folders of all Rays that this process has started."""
    temporary = os.environ.get("RAY_TMPDIR", os.environ.get("TMPDIR", "/tmp"))  # noqa: S108
    return set(Path(temporary, "ray").glob(f"session_*_{os.getpid()}"))


def _stays(error: Exception) -> bool:
    """Tell whether another start would fail in the same way, as without a folder to write to."""
    passing = isinstance(error, ConnectionError | TimeoutError)
    return isinstance(error, OSError | ValueError) and not passing


def _reason(error: Exception, sessions: set[Path]) -> str:
    """Return why a start failed: what Ray raised, and with what its processes ended."""
    said = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
    for session in sessions:
        logs = session / "logs"
        for file in (logs / "raylet.out", logs / "gcs_server.out"):
            if file.exists() and (ends := _FATAL.findall(file.read_text(errors="replace"))):
                return f"{said}; {file} ends with: {_APOLOGY.sub('', ends[-1]).rstrip('. ')}"
        return f"{said}; its logs are in {logs}"
    return said


def _end_processes_of(sessions: set[Path]) -> None:
    """End what a failed start left; Ray's processes name the folder of their session."""
    names = [session.name.encode() for session in sessions]
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended meanwhile
            command = file.read_bytes()
            if any(name in command for name in names):
                os.kill(int(file.parent.name), signal.SIGKILL)
