"""Boxes and grids of voxels.

Four sizes are never mixed up (shard, tile, item, case); all of them are made of `Box`. A box is
half open: `start_zyx` belongs to it, `stop_zyx` does not.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import TypeVar

__all__ = ["Box", "Grid", "Index3", "output_shard_zyx", "triple"]

Index3 = tuple[int, int, int]
_Number = TypeVar("_Number", int, float)


def triple(values: Iterable[_Number]) -> tuple[_Number, _Number, _Number]:
    """Return three values, z, y and x, as a tuple of which a type checker knows the length."""
    z, y, x = values
    return z, y, x


@dataclass(frozen=True, order=True)
class Box:
    """A half-open box of voxels, axes z, y, x."""

    start_zyx: Index3
    stop_zyx: Index3

    @classmethod
    def whole(cls, shape_zyx: Index3) -> "Box":
        """Return the box that covers an array of `shape_zyx` voxels."""
        return cls((0, 0, 0), shape_zyx)

    @classmethod
    def of(cls, start_zyx: Iterable[int], stop_zyx: Iterable[int]) -> "Box":
        """Return the box between two corners, given as any three whole numbers each."""
        return cls(triple(int(a) for a in start_zyx), triple(int(b) for b in stop_zyx))

    @property
    def shape_zyx(self) -> Index3:
        """Edge lengths in voxels; never negative."""
        return triple(max(0, b - a) for a, b in zip(self.start_zyx, self.stop_zyx, strict=True))

    @property
    def voxels(self) -> int:
        """Number of voxels inside."""
        return prod(self.shape_zyx)

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Index of this box in an array whose last three axes are z, y, x."""
        (z0, y0, x0), (z1, y1, x1) = self.start_zyx, self.stop_zyx
        return slice(z0, z1), slice(y0, y1), slice(x0, x1)

    def grown(self, halo_vox: Index3) -> "Box":
        """Return the box with `halo_vox` more voxels on both sides of each axis."""
        return Box(
            triple(a - h for a, h in zip(self.start_zyx, halo_vox, strict=True)),
            triple(b + h for b, h in zip(self.stop_zyx, halo_vox, strict=True)),
        )

    def clipped(self, outer: "Box") -> "Box":
        """Return the part that lies inside `outer` (possibly empty)."""
        return Box(
            triple(max(a, b) for a, b in zip(self.start_zyx, outer.start_zyx, strict=True)),
            triple(min(a, b) for a, b in zip(self.stop_zyx, outer.stop_zyx, strict=True)),
        )

    def moved(self, by_zyx: Index3) -> "Box":
        """Return the box that lies `by_zyx` voxels further."""
        return Box(
            triple(a + m for a, m in zip(self.start_zyx, by_zyx, strict=True)),
            triple(b + m for b, m in zip(self.stop_zyx, by_zyx, strict=True)),
        )

    def relative_to(self, outer: "Box") -> "Box":
        """Return the same voxels in the coordinates of `outer`, whose start becomes zero."""
        return self.moved(triple(-o for o in outer.start_zyx))


@dataclass(frozen=True)
class Grid:
    """The shards of one case: every voxel lies in exactly one of them."""

    shape_zyx: Index3
    shard_zyx: Index3

    @property
    def counts_zyx(self) -> Index3:
        """Number of shards along each axis."""
        return triple(-(-n // s) for n, s in zip(self.shape_zyx, self.shard_zyx, strict=True))

    def __len__(self) -> int:
        """Return the number of shards."""
        return prod(self.counts_zyx)

    def indices(self) -> Iterator[Index3]:
        """Yield shard indices, x fastest, so that neighbours follow each other."""
        nz, ny, nx = self.counts_zyx
        yield from product(range(nz), range(ny), range(nx))

    def box(self, index_zyx: Index3) -> Box:
        """Return the voxels of one shard, clipped to the case."""
        start = triple(i * s for i, s in zip(index_zyx, self.shard_zyx, strict=True))
        return Box.whole(self.shard_zyx).moved(start).clipped(Box.whole(self.shape_zyx))


def output_shard_zyx(shape_zyx: Index3, limit_vox: int = 256, multiple_vox: int = 64) -> Index3:
    """Return the shard edges of an output label: `limit_vox`, shrunk to the case rounded up.

    >>> output_shard_zyx((40, 512, 300))
    (64, 256, 256)
    """
    return triple(min(limit_vox, -(-n // multiple_vox) * multiple_vox) for n in shape_zyx)
