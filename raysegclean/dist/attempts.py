"""Attempts: which shard kills its worker, and what a killed worker had already committed.

Ray retries a block whose worker died for ever. So before each shard the worker tells this small
actor; a shard that was begun three times and never ended is quarantined and the item goes on
without it; a shard that was committed is not done again. A lost node does not count against the
shards it held, because the worker that begins a shard names its node, and begins on nodes that are
gone are forgotten.
"""

from typing import Any

import ray

__all__ = ["MAX_BEGINS", "Attempts", "start_attempts"]

MAX_BEGINS = 3


class Attempts:
    """Counts begins without an end, per shard, and remembers commits of this pass."""

    def __init__(self) -> None:
        self._begins: dict[str, list[str]] = {}
        self._committed: set[str] = set()

    def begin(self, shard: str, node: str) -> int:
        """Record a begin of `shard` on `node`; return which begin without an end this is."""
        begins = self._begins.setdefault(shard, [])
        begins.append(node)
        if len(begins) > MAX_BEGINS:
            nodes = ray.nodes()  # type: ignore[no-untyped-call]  # no types in Ray
            alive = {entry["NodeID"] for entry in nodes if entry["Alive"]}
            begins[:] = [held for held in begins if held in alive]
        return len(begins)

    def end(self, shards: list[str], committed: bool) -> None:
        """Close shards that were committed, or that failed with an error of their own."""
        for shard in shards:
            self._begins.pop(shard, None)
        if committed:
            self._committed.update(shards)

    def committed(self, shards: list[str]) -> set[str]:
        """Return which of `shards` a worker of this pass has committed."""
        return self._committed.intersection(shards)


def start_attempts() -> Any:
    """Start the actor that counts; it needs no CPU slot."""
    # Not inside the group of a search trial, whose share is a hundredth of a slot.
    return ray.remote(num_cpus=0, scheduling_strategy="DEFAULT")(Attempts).remote()
