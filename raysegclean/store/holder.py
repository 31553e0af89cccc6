"""Who holds a lock or a temporary file, and whether that process is dead for sure.

A process is named by its machine (host name, boot and process-id namespace), its id and its start
time, so that neither a reused id nor a container with the same ids is mistaken for it. Dead is
only said of processes of this same machine; of any other nothing is known.
"""

import os
import socket
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

__all__ = ["Holder", "this_process"]


@dataclass(frozen=True)
class Holder:
    """One process on one machine. `started` is in clock ticks since boot, 0 when unknown."""

    machine: str
    pid: int
    started: int

    def is_dead(self) -> bool:
        """Return True only when the process surely ended; False when it lives or is elsewhere."""
        return self.is_here() and _started(self.pid) != self.started

    def is_here(self) -> bool:
        """Tell whether this machine knows if the process lives."""
        return self.machine == _machine() and self.started != 0


def this_process() -> Holder:
    """Return the calling process."""
    pid = os.getpid()
    return Holder(_machine(), pid, _started(pid))


@lru_cache(maxsize=1)
def _machine() -> str:
    parts = [socket.gethostname()]
    for path, read in (
        ("/proc/sys/kernel/random/boot_id", lambda p: Path(p).read_text().strip()),
        ("/proc/self/ns/pid", os.readlink),
    ):
        try:
            parts.append(str(read(path)))
        except OSError:
            parts.append("?")
    return blake2b("/".join(parts).encode(), digest_size=6).hexdigest()


def _started(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    # The command name may hold spaces and brackets, so count fields after its last bracket.
    return int(stat.rpartition(")")[2].split()[19])
