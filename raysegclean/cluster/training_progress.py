"""How a training tells the driver where it is.

On a cluster a small actor on the driver's node, the board, takes notes from the workers and hands
them over when the driver asks. Notes are for people and for giving up early; nothing that must
survive goes through here, so losing the board costs a few lines of log.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from raysegclean.events import Events

__all__ = ["Board", "Progress", "Told"]


@dataclass(frozen=True)
class Progress:
    """Where one trainer is. `loss` is the mean since its last note; `pid` is the worker's.

    is_open: whether it may end before `steps`. agreement: Dice with the given labels of cases that
    it does not learn from, by label value; empty unless it was measured at this step.
    """

    fold: int
    members: tuple[int, ...]
    step: int
    steps: int
    loss: float | None
    pid: int
    is_open: bool = False
    agreement: Mapping[str, float] = field(default_factory=dict)

    @property
    def part(self) -> str:
        """Which networks these are, in words."""
        names = " and ".join(str(member) for member in self.members)
        return f"fold {self.fold}, network{'s' if len(self.members) > 1 else ''} {names}"


@dataclass(frozen=True)
class Told:
    """Who is told of a training: those who listen to its stage, and who takes every note."""

    stage: str
    events: Events
    on_note: Callable[[Progress], None] | None = None

    @contextmanager
    def under_way(self, trainings: int, steps: int) -> Iterator[Callable[[Progress], None]]:
        """Tell start and end of trainings of at most `steps` each; yields what takes the notes."""
        latest: dict[str, Progress] = {}
        with self.events.stage(self.stage, trainings * steps, "steps") as stage:

            def note(one: Progress) -> None:
                if self.on_note is not None:
                    self.on_note(one)
                latest[one.part] = one
                untold = trainings - len(latest)
                stage.total = untold * steps + sum(told.steps for told in latest.values())
                stage.at(
                    one.step,
                    part=one.part,
                    total=one.steps,
                    loss=one.loss,
                    is_open=one.is_open,
                    agreement=one.agreement,
                )

            yield note

    def warn(self, fold: int, message: str) -> None:
        """Warn of a case that could not be read, and is not learnt from."""
        self.events.warn(self.stage, f"fold {fold} goes on without case {message}")


class Board:
    """Keeps notes until they are read."""

    def __init__(self) -> None:
        self._notes: list[Progress] = []
        self._warnings: list[tuple[int, str]] = []
        self._faults: dict[int, tuple[str, str]] = {}

    def post(self, note: Progress) -> None:
        """Take a note."""
        self._notes.append(note)

    def warn(self, fold: int, message: str) -> None:
        """Take a warning of a case that could not be read."""
        self._warnings.append((fold, message))

    def fail(self, fold: int, kind: str, message: str) -> None:
        """Remember why a fold is given up: another try would end alike. The first reason stays."""
        self._faults.setdefault(fold, (kind, message))

    def fault(self, fold: int) -> tuple[str, str] | None:
        """Return the class and message of the error that a fold was given up for, or None."""
        return self._faults.get(fold)

    def drain(self) -> tuple[list[Progress], list[tuple[int, str]]]:
        """Return the notes and the warnings since the last call."""
        taken = self._notes, self._warnings
        self._notes, self._warnings = [], []
        return taken
