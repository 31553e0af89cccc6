"""One driver per run.

The lock is one object holding {term, job, counter, holder}. Its holder raises the counter by
compare-and-swap every few seconds; whoever finds the counter still for `still_s` seconds of its
own monotonic clock takes the next term, so clocks of two machines are never compared. A holder
that surely died on this machine is replaced at once. The lock cannot stop a driver that froze and
wakes later: so the term is checked again before a worker writes a shard, and before anything is
published.
"""

import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Self

from raysegclean.errors import Conflict, MissingObject, RunConflict, RunOver, UnfitEnvironment
from raysegclean.store.holder import Holder, this_process
from raysegclean.store.objects import ObjectInfo, Store, as_json

__all__ = ["LOOK_S", "RunLock", "check_term", "is_driven"]

KEY = "lock.json"

_POLL_S = 1.0

STILL_S = 60.0
RENEW_S = STILL_S / 6
LOOK_S = 2.5 * RENEW_S
"""How long `is_driven` looks at most; a driver that lives renews its lock twice meanwhile."""


class RunLock:
    """The right to drive the run in `store`; use it as a context manager or acquire and release.

    Under another `key` it is a claim on something else in `store`. Without `waits` a holder of this
    machine that lives is believed at once; it may stand still for ever, as a stopped process does.
    """

    def __init__(
        self,
        store: Store,
        job: str,
        *,
        still_s: float = STILL_S,
        key: str = KEY,
        waits: bool = True,
    ) -> None:
        self._key = key
        self._waits = waits
        self._store = store
        self._job = job
        self._still_s = still_s
        self._token = uuid.uuid4().hex
        self.term = 0
        """The term held; 0 before `acquire`."""
        self._info: ObjectInfo | None = None
        self._guard = threading.Lock()
        self._stop = threading.Event()
        self._lost = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> int:
        """Take the lock, renew it in the background, and return its term.

        Waits `still_s` when the last holder may be dead but that is not known. Raises RunConflict
        when it lives.
        """
        while True:
            held, info = self._read()
            if held is not None and not _is_free(held):
                self._outwait(held)
                held, info = self._read()
            term = held["term"] + 1 if held else 1
            try:
                self._info = self._store.swap(self._key, self._content(term, 0), info)
            except Conflict:
                continue  # another starter was faster; look again who it is
            self.term = term
            self._stop.clear()
            self._thread = threading.Thread(target=self._renew_often, name="run-lock", daemon=True)
            self._thread.start()
            return term

    def renew(self) -> None:
        """Raise the counter; raise RunConflict when the lock was taken over."""
        with self._guard:
            held, info = self._mine()
            with suppress(Conflict):  # lost to a taker: the next look says so
                self._store.swap(self._key, self._content(self.term, held["counter"] + 1), info)
                return
            self._mine()

    def check(self) -> None:
        """Raise RunConflict when another driver has taken over; call it before publishing."""
        if self._lost.is_set():
            raise self._taken("another driver")
        self._mine()

    def release(self) -> None:
        """Let the lock go. The term stays, so the next holder's is higher."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        with self._guard, suppress(Conflict, RunConflict):
            held, info = self._mine()
            free = {**held, "holder": None}
            self._store.swap(self._key, as_json(free), info)

    def __enter__(self) -> Self:
        """Acquire."""
        self.acquire()
        return self

    def __exit__(self, *fault: object) -> None:
        """Release."""
        self.release()

    def _read(self) -> tuple[dict[str, Any] | None, ObjectInfo | None]:
        try:
            return self._store.read_json(self._key)
        except MissingObject:
            return None, None

    def _mine(self) -> tuple[dict[str, Any], ObjectInfo]:
        held, info = self._read()
        if held is None or info is None or held["token"] != self._token:
            self._lost.set()
            raise self._taken(held["job"] if held else "nobody: it was deleted")
        return held, info

    def _taken(self, by: str) -> RunConflict:
        return RunConflict(
            f"{self._store.uri}: this run was taken over by {by}, because this driver stood still "
            f"for {self._still_s:g} s. Stop this one; what it committed counts."
        )

    def _outwait(self, held: dict[str, Any]) -> None:
        """Return when the counter stood still for `still_s`; raise RunConflict when it moves."""
        if not self._waits and Holder(**held["holder"]).is_here():
            raise self._busy(held)
        deadline = time.monotonic() + self._still_s
        while (left := deadline - time.monotonic()) > 0:
            time.sleep(min(_POLL_S, left, self._still_s / 10))
            now, _ = self._read()
            if now is None or _is_free(now):
                return
            if (now["token"], now["counter"]) != (held["token"], held["counter"]):
                raise self._busy(now)

    def _busy(self, held: dict[str, Any]) -> RunConflict:
        return RunConflict(
            f"{self._store.uri}: job {held['job']} is working on this run (term "
            f"{held['term']}). Wait for it, stop it, or choose another `run:` folder."
        )

    def _content(self, term: int, counter: int) -> bytes:
        return as_json(
            {
                "term": term,
                "job": self._job,
                "counter": counter,
                "token": self._token,
                "holder": asdict(this_process()),
            }
        )

    def _renew_often(self) -> None:
        while not self._stop.wait(self._still_s / 6):
            try:
                self.renew()
            except RunConflict:
                return
            except UnfitEnvironment:
                continue  # a store that is away for a moment; if it stays away we lose the lock


def check_term(store: Store, term: int) -> None:
    """Raise RunOver when the run's lock has moved on from `term`; for workers.

    Epoch 0 is that of a run without a lock, as the trials of a search are.
    """
    try:
        held = store.get_json(KEY)
    except MissingObject:
        held = {"term": 0, "job": "nobody: it was deleted"}
    if held["term"] != term:
        raise RunOver(
            f"{store.uri}: term {term} of this run is over; job {held['job']} has taken term "
            f"{held['term']}. Stop this job; what it committed counts."
        )


def is_driven(
    store: Store, *, look_s: float = LOOK_S, on_look: Callable[[], None] = lambda: None
) -> bool:
    """Tell whether a driver of the run lives.

    At once where it is known on this machine; else, after `on_look`, from whether the counter moves
    within `look_s` of our own monotonic clock.
    """
    try:
        first = held = store.get_json(KEY)
    except MissingObject:
        return False
    if _is_free(held) or Holder(**held["holder"]).is_here():
        return not _is_free(held)
    on_look()
    deadline = time.monotonic() + look_s
    while (held["token"], held["counter"]) == (first["token"], first["counter"]):
        if time.monotonic() > deadline:
            return False
        time.sleep(min(_POLL_S, look_s / 10))
        held = store.get_json(KEY)
    return held["holder"] is not None


def _is_free(held: dict[str, Any]) -> bool:
    return held["holder"] is None or Holder(**held["holder"]).is_dead()
