"""Attempts: which shard kills its worker, and what a killed worker had already committed.

Ray retries a block whose worker died for ever. So before anything is done for a shard the worker
tells a small actor. What was begun and not ended when a worker died is suspect: the next worker
does each suspect alone, so that the next death has one cause. A shard that was begun three times
and never ended is quarantined and the item goes on without it; a shard that was committed is not
done again. A lost node does not count against the shards it held, because the worker that begins
a shard names its node, and begins on nodes that are gone are forgotten.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from raysegclean.cluster.connection import actor_here, live_nodes
from raysegclean.cluster.worker import MAX_BEGINS
from raysegclean.errors import UnfitEnvironment, told

__all__ = ["RayAttempts"]

log = logging.getLogger("raysegclean")


class _Counts:
    """Counts begins without an end, per shard, and remembers commits of this pass."""

    def __init__(self) -> None:
        self._begins: dict[str, list[str]] = {}
        self._committed: set[str] = set()

    def begin(self, shard: str, node: str) -> int:
        begins = self._begins.setdefault(shard, [])
        begins.append(node)
        if len(begins) > MAX_BEGINS:
            alive = {entry["NodeID"] for entry in live_nodes()}
            begins[:] = [held for held in begins if held in alive]
        return len(begins)

    def end(self, shards: list[str], committed: bool) -> None:
        for shard in shards:
            self._begins.pop(shard, None)
        if committed:
            self._committed.update(shards)

    def past(self, shards: list[str]) -> tuple[set[str], set[str]]:
        return self._committed.intersection(shards), self._begins.keys() & set(shards)


@dataclass(frozen=True)
class RayAttempts:
    """The workers' end of the actor; see `worker.Attempts`."""

    actor: Any

    @classmethod
    def start(cls) -> "RayAttempts":
        """Start the actor on this node, the driver's.

        On another node, perhaps a spot machine, it would end the pass when that node is lost.
        """
        return cls(actor_here(_Counts))

    def stop(self) -> None:
        """End the actor, which kept processes would keep."""
        ray.kill(self.actor)

    def begin(self, shard: str) -> int:
        """Record a begin on this node; return which begin without an end it is."""
        node = ray.get_runtime_context().get_node_id()
        begins: int = ray.get(self.actor.begin.remote(shard, node))
        return begins

    def end(self, shards: list[str], *, committed: bool) -> None:
        """Close shards that were committed, or that failed with an error of their own."""
        ray.get(self.actor.end.remote(shards, committed))

    def past(self, shards: list[str]) -> tuple[set[str], set[str]]:
        """Return which of `shards` are committed, and which were begun without an end."""
        found: tuple[set[str], set[str]] = ray.get(self.actor.past.remote(shards))
        return found

    def broken(self, error: Exception) -> None:
        """End this process: Ray starts it again, and quarantines a shard that breaks three."""
        log.error("a GPU worker ends, because its device is broken: %s", told(error))
        os._exit(1)

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Hold while a worker gets ready; raise UnfitEnvironment when it died of that thrice."""
        here = ray.get_runtime_context()
        # What Ray starts again keeps its id.
        name = f"start of {here.get_actor_id() or here.get_task_id()}"
        if self.begin(name) > MAX_BEGINS:
            raise UnfitEnvironment(
                f"a worker died {MAX_BEGINS} times while it loaded the networks; it may lack "
                "memory. Lower resources.relabel.actors or network.widths, or use larger nodes."
            )
        try:
            yield
        finally:
            self.end([name], committed=False)
