"""Attempts: which shard kills its worker, and what a killed worker had already committed.

Ray retries a block whose worker died for ever. So before anything is done for a shard the worker
tells this small actor. What was begun and not ended when a worker died is suspect: the next worker
does each suspect alone, so that the next death has one cause. A shard that was begun three times
and never ended is quarantined and the item goes on without it; a shard that was committed is not
done again. A lost node does not count against the shards it held, because the worker that begins
a shard names its node, and begins on nodes that are gone are forgotten.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysegclean.errors import UnfitEnvironment

__all__ = ["MAX_BEGINS", "Attempts", "start_attempts", "starting"]

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

    def past(self, shards: list[str]) -> tuple[set[str], set[str]]:
        """Return which of `shards` this pass has committed, and which it began without an end."""
        return self._committed.intersection(shards), self._begins.keys() & set(shards)


def start_attempts() -> Any:
    """Start the actor that counts on this node, the driver's; it needs no CPU slot.

    On another node, perhaps a spot machine, it would end the pass when that node is lost.
    """
    here = ray.get_runtime_context().get_node_id()
    affinity = NodeAffinitySchedulingStrategy(here, soft=False)
    return ray.remote(Attempts).options(num_cpus=0, scheduling_strategy=affinity).remote()


@contextmanager
def starting(attempts: Any) -> Iterator[None]:
    """Hold while a worker gets ready; raise UnfitEnvironment when it died of that three times."""
    here = ray.get_runtime_context()
    # What Ray starts again keeps its id.
    name = f"start of {here.get_actor_id() or here.get_task_id()}"
    if ray.get(attempts.begin.remote(name, here.get_node_id())) > MAX_BEGINS:
        raise UnfitEnvironment(
            f"a worker died {MAX_BEGINS} times while it loaded the networks; it may lack memory. "
            "Lower resources.relabel.actors or network.widths, or use larger nodes."
        )
    try:
        yield
    finally:
        ray.get(attempts.end.remote([name], False))
