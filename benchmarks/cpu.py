"""How much CPU time a program and all that it starts have used, over time."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

__all__ = ["CpuMeter"]

EVERY_S = 2.0


class CpuMeter:
    """Watches a process and its descendants; what a short-lived one used last may be missed."""

    def __init__(self) -> None:
        self._used: dict[tuple[int, float], float] = {}
        self._samples: list[tuple[float, float]] = [(time.time(), 0.0)]
        self.peak_rss_bytes = 0
        """Most resident memory of a single process."""

    @contextmanager
    def watching(self, pid: int) -> Iterator["CpuMeter"]:
        """Sample every two seconds until the block ends."""
        done = threading.Event()

        def watch() -> None:
            while not done.wait(EVERY_S):
                self._sample(pid)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            done.set()
            thread.join()

    def minutes(self, start: float = 0.0, stop: float = float("inf")) -> float:
        """Return the CPU minutes used between two times, in seconds since 1970."""
        before = max((used for at, used in self._samples if at <= start), default=0.0)
        after = max((used for at, used in self._samples if at <= stop), default=0.0)
        return (after - before) / 60

    def _sample(self, pid: int) -> None:
        try:
            root = psutil.Process(pid)
            running = [root, *root.children(recursive=True)]
        except psutil.Error:
            return
        for process in running:
            try:
                times, rss = process.cpu_times(), process.memory_info().rss
                self._used[process.pid, process.create_time()] = times.user + times.system
                self.peak_rss_bytes = max(self.peak_rss_bytes, rss)
            except psutil.Error:
                continue
        self._samples.append((time.time(), sum(self._used.values())))
