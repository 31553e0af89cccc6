"""How a training tells the driver where it is.

A small actor on the driver's node, the board, takes notes from the workers and hands them over when
the driver asks. Notes are for people and for giving up early; nothing that must survive goes
through here, so losing the board costs a few lines of log.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

__all__ = ["Board", "Fault", "Progress", "progress_line", "start_board"]


@dataclass(frozen=True)
class Progress:
    """Where one trainer is. `left_s` is None until there is a rate; `pid` is the worker's."""

    fold: int
    members: tuple[int, ...]
    step: int
    steps: int
    loss: float | None
    patches_per_s: float
    left_s: float | None
    pid: int
    node: str


@dataclass(frozen=True)
class Fault:
    """Why a trainer gave up for good: another try would end the same way."""

    fold: int
    kind: str
    message: str


class Board:
    """Keeps notes until they are read."""

    def __init__(self) -> None:
        self._notes: list[Progress] = []
        self._warnings: list[str] = []
        self._faults: dict[int, Fault] = {}

    def post(self, note: Progress) -> None:
        """Take a note."""
        self._notes.append(note)

    def warn(self, fold: int, message: str) -> None:
        """Take a warning: a case that could not be read, and is not learnt from."""
        self._warnings.append(f"training fold {fold} goes on without case {message}")

    def fail(self, fault: Fault) -> None:
        """Remember why a fold cannot be trained; the first reason stays."""
        self._faults.setdefault(fault.fold, fault)

    def fault(self, fold: int) -> Fault | None:
        """Return why a fold cannot be trained, or None."""
        return self._faults.get(fold)

    def drain(self) -> tuple[list[Progress], list[str]]:
        """Return the notes and the warnings since the last call."""
        taken = self._notes, self._warnings
        self._notes, self._warnings = [], []
        return taken


def start_board() -> Any:
    """Start the board on this node; it needs no CPU slot."""
    here = ray.get_runtime_context().get_node_id()
    affinity = NodeAffinitySchedulingStrategy(here, soft=False)
    return ray.remote(Board).options(num_cpus=0, scheduling_strategy=affinity).remote()


def progress_line(note: Progress) -> str:
    """Return one line for people.

    >>> progress_line(Progress(0, (0, 1), 120, 400, 0.5234, 35.2, 80.0, 1, "n"))
    'training fold 0, networks 0 and 1: step 120/400, loss 0.523, 35.2 patches/s, 1 min 20 s left'
    """
    loss = "recalibrating" if note.loss is None else f"loss {note.loss:.3f}"
    parts = [f"step {note.step}/{note.steps}", loss]
    if note.patches_per_s:
        parts.append(f"{note.patches_per_s:.1f} patches/s")
    if note.left_s:
        parts.append(f"{_duration(note.left_s)} left")
    return f"training fold {note.fold}, {_networks(note.members)}: {', '.join(parts)}"


def _networks(members: Sequence[int]) -> str:
    names = " and ".join(str(member) for member in members)
    return f"network{'s' if len(members) > 1 else ''} {names}"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
