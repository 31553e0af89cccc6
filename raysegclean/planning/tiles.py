"""Which tile computes least within the memory of a worker.

A tile is answered from a window that is larger by the halo. Small tiles compute their halos again
and again, large ones do not fit; a tile that does not divide a shard evenly leaves slivers with
halos of their own. So every even division of a shard is tried.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from raysegclean.nets.inference import padded_shape
from raysegclean.nets.memory import computed_per_kept, predicting_bytes
from raysegclean.nets.unet import NetworkSpec
from raysegclean.voxels.geometry import Box, Index3, triple

__all__ = ["SUMS_BYTES", "Windows"]

SUMS_BYTES = 8
"""Per class and voxel of a tile: the sum of probabilities, and one pass."""
_MOST_PARTS = 16


@dataclass(frozen=True)
class Windows:
    """What decides how large windows get; lengths in working voxels.

    largest_zyx: no window is larger than this case. bytes_per_vox: of a window of a network that is
    not the default one.
    """

    spec: NetworkSpec
    stride_zyx: Index3
    halo_vox: Index3
    largest_zyx: Index3
    bytes_per_vox: float

    @lru_cache(maxsize=256)  # noqa: B019  (values that are equal share what was found)
    def tile(self, shard_zyx: Index3, budget_bytes: int) -> Index3:
        """Return the edges of the tile that computes least of those that fit the budget.

        shard_zyx: what is answered for at once. Where nothing fits, the tile that takes least.
        """
        edges = [sorted(_edges(n, s)) for n, s in zip(shard_zyx, self.stride_zyx, strict=True)]
        tiles = sorted(map(triple, product(*edges)), key=math.prod, reverse=True)
        best, found = (math.inf, math.inf), tiles[0]
        for tile in tiles:
            over = max(0.0, self.taken_bytes(tile) - budget_bytes)
            cost = over, self.cost(tile, shard_zyx) if over <= best[0] else math.inf
            if cost < best:
                best, found = cost, tile
            if tile == tiles[0] and not over:
                break  # nothing computes less than one window
        return found

    def taken_bytes(self, tile_zyx: Index3) -> float:
        """Return what predicting one tile takes, evidence included."""
        window, core = self.of(tile_zyx)
        sums = SUMS_BYTES * self.spec.classes * core.voxels
        return predicting_bytes(self.spec, window, core, self.bytes_per_vox) + sums

    def cost(self, tile_zyx: Index3, shard_zyx: Index3) -> float:
        """Return the voxels computed per voxel that is kept, in a shard inside a large case."""
        window, core = self.of(tile_zyx)
        tiles = math.prod(-(-n // t) for n, t in zip(shard_zyx, tile_zyx, strict=True))
        computed = computed_per_kept(self.spec, window, core) * core.voxels * tiles
        return computed / math.prod(shard_zyx)

    def of(self, tile_zyx: Index3) -> tuple[Index3, Box]:
        """Return the largest window of such a tile, and where the tile lies in it."""
        window, start, size = [], [], []
        for tile, most, halo, step in zip(
            tile_zyx,
            padded_shape(self.largest_zyx, self.stride_zyx),
            self.halo_vox,
            self.stride_zyx,
            strict=True,
        ):
            before = -(-halo // step) * step
            window.append(min(tile + 2 * before, most))
            size.append(min(tile, most))
            start.append(min(before, window[-1] - size[-1]))
        return triple(window), Box.whole(triple(size)).moved(triple(start))


def _edges(length: int, step: int) -> set[int]:
    """Return the edges, multiples of `step`, that divide `length` into equal parts."""
    parts = range(1, min(_MOST_PARTS, -(-length // step)) + 1)
    return {math.ceil(length / n / step) * step for n in parts}
