"""How far a run was and is: `metrics.jsonl` in its folder, readable from any machine at any time.

Objects cannot be appended to, so the file is replaced as a whole, at most every `EVERY_S` and by a
thread of its own. It stays small: of progress, one row per stage or network and `_spacing_s` is
kept, which doubles whenever the file is full, and then every other measured agreement goes, too.
Nothing of the run depends on it.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

from raysegclean.errors import MissingObject, RaysegcleanError
from raysegclean.events import Event, Events
from raysegclean.store.objects import Store

__all__ = ["Metrics", "Row", "kept_metrics", "read_metrics"]

KEY = "metrics.jsonl"
EVERY_S = 10.0
MOST_ROWS = 2000

Row = dict[str, Any]


class Metrics:
    """Keeps what the stages tell; `flush` writes it where something is new."""

    def __init__(self, store: Store, still_ours: Callable[[], None] = lambda: None) -> None:
        self._store, self._still_ours = store, still_ours
        self._rows = read_metrics(store)
        self._latest: dict[tuple[str, str], Row] = {}
        self._kept: dict[tuple[str, str], float] = {}
        self._spacing_s = EVERY_S
        self._guard = threading.Lock()
        self._new = False

    def __call__(self, event: Event) -> None:
        """Take one event."""
        row = {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in asdict(event).items()
            if value not in (None, "", 0.0, False)
        }
        with self._guard:
            self._new = True
            key = (event.stage, event.part)
            if event.kind == "agreement":
                self._rows.append(row)
            elif event.kind != "progress":
                last = [one for one in self._latest if one[0] == event.stage]
                self._rows += [*(self._latest.pop(one) for one in last), row]
            elif event.time - self._kept.get(key, 0.0) < self._spacing_s:
                self._latest[key] = row
            else:
                self._latest.pop(key, None)
                self._kept[key] = event.time
                self._rows.append(row)
            if len(self._rows) > MOST_ROWS:
                self._thin()

    def _thin(self) -> None:
        """Drop every other row of a kind, and keep the last of each stage and part."""
        self._spacing_s *= 2
        dropped: set[int] = set()
        for kind in ("progress", "agreement"):
            mine = [number for number, row in enumerate(self._rows) if row["kind"] == kind]
            newest = {(self._rows[n]["stage"], self._rows[n].get("part", "")): n for n in mine}
            dropped |= set(mine[::2]) - set(newest.values())
        self._rows = [row for number, row in enumerate(self._rows) if number not in dropped]

    def flush(self) -> None:
        """Write the rows where there are new ones; raise RunConflict when the run was taken."""
        with self._guard:
            if not self._new:
                return
            self._new = False
            rows = [*self._rows, *self._latest.values()]
        self._still_ours()
        self._store.put(KEY, b"".join(json.dumps(row).encode() + b"\n" for row in rows))


def read_metrics(store: Store) -> list[Row]:
    """Return the rows that a run has kept, oldest first; none before it began."""
    try:
        return [json.loads(line) for line in store.get(KEY).splitlines()]
    except MissingObject:
        return []


@contextmanager
def kept_metrics(store: Store, events: Events, still_ours: Callable[[], None]) -> Iterator[None]:
    """Keep what `events` are told while the block runs; a store that is away costs rows alone."""
    metrics, ended = Metrics(store, still_ours), threading.Event()

    def write() -> None:
        over = False
        while not over:
            over = ended.wait(EVERY_S)
            with suppress(RaysegcleanError):  # a full disk, or the run is another driver's now
                metrics.flush()

    events.listeners.append(metrics)
    writer = threading.Thread(target=write, name="run-metrics", daemon=True)
    writer.start()
    try:
        yield
    finally:
        events.listeners.remove(metrics)
        ended.set()
        writer.join()
