"""The driver's side of any executor: what it has to work with, and how it ends."""

import signal
import sys
import threading
from dataclasses import dataclass

__all__ = ["ClusterFacts", "end_on_sigterm"]


@dataclass(frozen=True)
class ClusterFacts:
    """What there is to work with at the moment of connecting.

    cpus, gpus: logical slots of all nodes that are up, divided by those who share the cluster.
    started_here: whether it is of this machine alone, and no node will join.
    """

    cpus: float
    gpus: float
    nodes: int
    node_memory_bytes: int
    has_bf16: bool
    started_here: bool


def end_on_sigterm() -> None:
    """Let SIGTERM end this process through its `finally` blocks."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
