"""Items: the rows that Ray schedules.

An item is a run of neighbouring shards of one big case, or several small cases, cut so that it
holds seconds of work: scheduling costs about 10 ms per item. The cut depends on the archive only,
never on the number of workers, so the same shards meet in the same item on 1 or 200 workers.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from raysegclean.voxels.geometry import Grid, Index3

__all__ = ["Item", "ShardTask", "plan_items"]

MAX_SHARDS = 64
MAX_SMALL_CASES = 256


@dataclass(frozen=True, order=True)
class ShardTask:
    """One shard of one case."""

    case: str
    index_zyx: Index3

    @property
    def name(self) -> str:
        """The shard's name in ledgers: case and shard index."""
        return f"{self.case}/" + ".".join(map(str, self.index_zyx))


@dataclass(frozen=True)
class Item:
    """One Ray row: the shards that one worker does in a row."""

    name: str
    tasks: tuple[ShardTask, ...]

    def to_json(self) -> str:
        """Return the item as one line of JSON."""
        return json.dumps([self.name, [[t.case, *t.index_zyx] for t in self.tasks]])

    @classmethod
    def from_json(cls, text: str) -> "Item":
        """Read what `to_json` wrote."""
        name, rows = json.loads(text)
        return cls(name, tuple(ShardTask(case, (z, y, x)) for case, z, y, x in rows))

    def without(self, done: set[str]) -> "Item":
        """Return the item without the shards whose names are in `done`."""
        return Item(self.name, tuple(t for t in self.tasks if t.name not in done))


def plan_items(grids: Sequence[tuple[str, Grid]], target_vox: int = 1 << 21) -> list[Item]:
    """Cut the shards of all cases into items of about `target_vox` voxels, in the given order.

    `grids` holds (case, grid). Every shard lies in exactly one item. A case of several shards
    shares no item with another case, so that one reader's chunk cache serves neighbours.
    """
    groups: list[Sequence[ShardTask]] = []
    small: list[ShardTask] = []
    small_vox = 0
    for case, grid in grids:
        tasks = [ShardTask(case, index) for index in grid.indices()]
        if len(tasks) > 1:
            per_item = max(1, min(MAX_SHARDS, target_vox // math.prod(grid.shard_zyx)))
            groups.extend(tasks[i : i + per_item] for i in range(0, len(tasks), per_item))
            continue
        small.extend(tasks)
        small_vox += math.prod(grid.shape_zyx)
        if small_vox >= target_vox or len(small) == MAX_SMALL_CASES:
            groups.append(small)
            small, small_vox = [], 0
    if small:
        groups.append(small)
    return [Item(f"{position:06d}", tuple(group)) for position, group in enumerate(groups)]
