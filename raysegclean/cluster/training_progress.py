"""How a training tells the driver where it is.

A small actor on the driver's node, the board, takes notes from the workers and hands them over when
the driver asks. Notes are for people and for giving up early; nothing that must survive goes
through here, so losing the board costs a few lines of log.
"""

from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

__all__ = ["Board", "Fault", "Progress", "start_board"]


@dataclass(frozen=True)
class Progress:
    """Where one trainer is. `loss` is the mean since its last note; `pid` is the worker's."""

    fold: int
    members: tuple[int, ...]
    step: int
    steps: int
    loss: float | None
    pid: int
    node: str

    @property
    def part(self) -> str:
        """Which networks these are, in words."""
        names = " and ".join(str(member) for member in self.members)
        return f"fold {self.fold}, network{'s' if len(self.members) > 1 else ''} {names}"


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
        self._warnings.append(f"fold {fold} goes on without case {message}")

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
