"""How far a run is, while it runs: bars on a terminal, plain lines in a log; both on stderr."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from raysegclean.events import Event, Events, Lines, figures, line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

__all__ = ["LiveView", "shown"]


@contextmanager
def shown() -> Iterator[Events]:
    """Yield events that are shown while the block runs."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield Events(Lines())
        return
    from rich.console import Console

    with LiveView(Console(stderr=True)).shown() as view:
        yield Events(view)


class LiveView:
    """A bar for each stage and network under way; what ends, and what is said, stays as a line."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[told]}", markup=False),
            console=console,
            transient=True,
        )
        self._tasks: dict[tuple[str, str], TaskID] = {}

    @contextmanager
    def shown(self) -> Iterator[LiveView]:
        """Show the view; what others log and print meanwhile is written above it."""
        logs = [
            handler
            for handler in logging.getLogger("raysegclean").handlers
            if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr
        ]
        with self._bars:  # sys.stderr is the view's in here
            before = [handler.setStream(sys.stderr) for handler in logs]
            try:
                yield self
            finally:
                for handler, stream in zip(logs, before, strict=True):
                    handler.setStream(stream or sys.__stderr__)

    def __call__(self, event: Event) -> None:
        """Draw one event."""
        if event.kind in ("start", "progress"):
            self._draw(event)
        if event.kind in ("start", "progress", "agreement"):
            return
        if event.kind == "end":
            for key in [key for key in self._tasks if key[0] == event.stage]:
                self._bars.remove_task(self._tasks.pop(key))
        style = "yellow" if event.kind == "warning" else None
        self._bars.console.print(line(event), style=style, markup=False, highlight=False)

    def _draw(self, event: Event) -> None:
        key = (event.stage, event.part)
        told, total = ", ".join(figures(event)), event.total or None
        if key not in self._tasks:
            name = f"  {event.part}" if event.part else event.stage
            self._tasks[key] = self._bars.add_task(name, total=total, told=told)
        self._bars.update(self._tasks[key], completed=event.done, total=total, told=told)
