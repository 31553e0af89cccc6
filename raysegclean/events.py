"""Progress as events: what a stage says once, and lines, a live view and metrics are made of.

Stages emit through `Events`; whoever wants to know listens. A rate counts only what this start did,
is smoothed, and is measured by one clock; events of several machines are never compared.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

__all__ = ["Event", "Events", "Lines", "Listener", "Stage", "duration", "figures", "line"]

log = logging.getLogger("raysegclean")

SILENCE_S = 120.0
SMOOTH_S = 60.0
SMOOTH_PARTS = 20
"""A rate forgets what is both older than `SMOOTH_S` and more than a total's 20th ago."""


@dataclass(frozen=True)
class Event:
    """One thing that a stage tells. `done` of `total` units, 0 where there is nothing to count.

    is_open: whether it may end before `total`. agreement: Dice by label value of what a network
    predicts with labels that it does not learn from; only events of the kind "agreement" have one.
    """

    stage: str
    kind: Literal["start", "progress", "agreement", "end", "message", "warning"]
    part: str = ""
    """The network or fold it is about; "" for the stage as a whole."""
    done: float = 0.0
    total: float = 0.0
    unit: str = ""
    rate: float | None = None
    """Units per second."""
    left_s: float | None = None
    loss: float | None = None
    is_open: bool = False
    agreement: Mapping[str, float] | None = None
    text: str = ""
    spent_s: float | None = None
    time: float = 0.0
    """Seconds since 1970 on the driver's clock."""


Listener = Callable[[Event], None]


class Events:
    """Hands each event to all listeners; safe to use from several threads."""

    def __init__(self, *listeners: Listener, clock: Callable[[], float] = time.monotonic) -> None:
        self.listeners = list(listeners)
        self.clock = clock
        self._guard = threading.RLock()

    def emit(self, event: Event) -> None:
        """Tell all listeners."""
        with self._guard:
            for listener in self.listeners:
                listener(replace(event, time=time.time()))

    def say(self, stage: str, text: str) -> None:
        """Tell a person something about a stage."""
        self.emit(Event(stage, "message", text=text))

    def warn(self, stage: str, text: str) -> None:
        """Warn of something."""
        self.emit(Event(stage, "warning", text=text))

    @contextmanager
    def stage(
        self, name: str, total: float = 0.0, unit: str = "", *, done: float = 0.0
    ) -> Iterator["Stage"]:
        """Tell the start and, unless it fails, the end of a stage; `done` was done before."""
        stage = Stage(self, Event(name, "start", done=done, total=total, unit=unit))
        self.emit(stage.whole())
        yield stage
        ended = replace(stage.whole("end"), done=stage.total, is_open=False)
        self.emit(replace(ended, rate=None, left_s=None))

    @contextmanager
    def watched(self, stage: str, explain: Callable[[], str]) -> Iterator[Callable[[], None]]:
        """Warn whenever nothing was heard for `SILENCE_S`; yields what is called on a sign."""
        heard, ended = threading.Event(), threading.Event()

        def watch() -> None:
            while not ended.is_set():
                came = heard.wait(SILENCE_S)
                heard.clear()
                if not came and not ended.is_set():
                    self.warn(stage, f"no sign for {SILENCE_S:.0f} s. {explain()}")

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield heard.set
        finally:
            ended.set()
            heard.set()
            thread.join()


class Stage:
    """A stage under way: what its parts have done, and how fast."""

    def __init__(self, events: Events, start: Event) -> None:
        self._events, self._start = events, start
        self.total = start.total
        """Units of the whole stage, as far as they are known."""
        self._began = events.clock()
        self._parts: dict[str, Event] = {}
        self._rates: dict[str, _Rate] = {}
        if start.total:
            self._rates[""] = _Rate(self._began, start.done, start.total / SMOOTH_PARTS)

    def at(
        self,
        done: float,
        *,
        part: str = "",
        total: float = 0.0,
        loss: float | None = None,
        is_open: bool = False,
        agreement: Mapping[str, float] | None = None,
    ) -> None:
        """Tell how far the stage is, or one `part` of it, of which `total` is the end."""
        total, now = total or self.total, self._events.clock()
        rate = self._rates.setdefault(part, _Rate(now, done, total / SMOOTH_PARTS))
        rate.see(now, done)
        per_s = rate.per_s
        event = replace(
            self._start,
            kind="progress",
            part=part,
            done=done,
            total=total,
            rate=per_s,
            left_s=(total - done) / per_s if per_s else None,
            loss=loss,
            is_open=is_open,
        )
        self._parts[part] = event
        self._events.emit(event)
        if agreement:
            told = Event(self._start.stage, "agreement", part, done, agreement=agreement)
            self._events.emit(told)
        if part:
            self._events.emit(self.whole())

    def whole(self, kind: Literal["progress", "end"] | None = None) -> Event:
        """Return the event of all parts together: rates add up, losses are averaged."""
        parts = list(self._parts.values())
        done = sum(part.done for part in parts) + (0 if "" in self._parts else self._start.done)
        per_s = sum(part.rate or 0.0 for part in parts if part.done < part.total)
        losses = [part.loss for part in parts if part.loss is not None]
        return replace(
            self._start,
            kind=kind or ("progress" if parts else "start"),
            done=done,
            total=self.total,
            rate=per_s or None,
            left_s=(self.total - done) / per_s if per_s else None,
            is_open=any(part.is_open for part in parts),
            loss=sum(losses) / len(losses) if losses else None,
            spent_s=self._events.clock() - self._began,
        )


class _Rate:
    """A rate that forgets: units and seconds, both faded alike."""

    def __init__(self, began: float, done: float, memory: float) -> None:
        self._last, self._done, self._memory = began, done, max(memory, 1e-9)
        self._units = self._seconds = 0.0

    def see(self, now: float, done: float) -> None:
        seconds, units = now - self._last, done - self._done
        self._last, self._done = now, done
        if units < 0:  # started again from a checkpoint
            return
        keep = math.exp(-min(seconds / SMOOTH_S, units / self._memory))
        self._units = self._units * keep + units
        self._seconds = self._seconds * keep + seconds

    @property
    def per_s(self) -> float | None:
        return self._units / self._seconds if self._units and self._seconds > 0 else None


class Lines:
    """Tells events as plain lines: progress at most every `every_s`, all else at once.

    `write` takes them; without it they are logged, warnings as such.
    """

    def __init__(
        self,
        write: Callable[[str], None] | None = None,
        *,
        every_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write, self._every_s, self._clock = write, every_s, clock
        self._last = clock()

    def __call__(self, event: Event) -> None:
        """Write the event's line when it is due."""
        if event.kind == "agreement":
            return
        if event.kind == "progress":
            if event.part or self._clock() - self._last < self._every_s:
                return
            self._last = self._clock()
        if self._write is not None:
            self._write(line(event))
        else:
            log.log(logging.WARNING if event.kind == "warning" else logging.INFO, line(event))


def line(event: Event) -> str:
    """Return one line for people.

    >>> line(Event("train", "progress", "", 120, 400, "steps", 3.5, 80.0, 0.5234))
    'train: 120/400 steps, 3.5 steps/s, 1 min 20 s left, loss 0.523'
    """
    told = event.text or ", ".join(figures(event))
    if event.kind == "end":
        told = f"{told or 'done'} in {duration(event.spent_s or 0.0)}"
    part = f" {event.part}" if event.part else ""
    warning = "warning: " if event.kind == "warning" else ""
    return f"{event.stage}{part}: {warning}{told or 'begins'}"


def figures(event: Event) -> list[str]:
    """Return what can be counted of an event, each in words; cases under way are not done."""
    of = " of up to " if event.is_open else "/"
    told = [f"{math.floor(event.done):,}{of}{event.total:,.0f} {event.unit}"] if event.total else []
    if event.rate is not None:
        told.append(f"{_rate(event.rate, event.unit)}")
    if event.left_s is not None and event.done < event.total:
        at_most = "at most " if event.is_open else ""
        told.append(f"{at_most}{duration(event.left_s)} left")
    if event.loss is not None:
        told.append(f"loss {event.loss:.3f}")
    return told


def _rate(per_s: float, unit: str) -> str:
    for seconds, name in ((1, "s"), (60, "min")):
        if per_s * seconds >= 1:
            return f"{per_s * seconds:.1f} {unit}/{name}"
    return f"{per_s * 3600:.1f} {unit}/h"


def duration(seconds: float) -> str:
    """Return seconds as people say them: `48 s`, `1 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
