"""Connected components of a case that no worker ever sees whole.

Each block is labelled alone; it reports one row per component and, for its six faces, which
component holds which voxel. The driver joins components that meet across faces. Components connect
through faces of voxels (6-connectivity) and only where their key is equal. The outcome is the same
for any cut of the case into blocks, because everything that is summed is an integer, and what is
not summed is a minimum or a maximum.

Two users: changed regions (`voxels.regions`, key = class from, class to, reason) and the components
of a label class (key = class), of which no learned rule may delete the last one.

Memory per block: about 12 bytes per voxel of the box that holds its keyed voxels. A record is
about 80 bytes per component and 8 bytes per keyed voxel on a face.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from raysegclean.errors import InputError
from raysegclean.voxels.boxes import bounding_box
from raysegclean.voxels.geometry import Box, Index3, triple

__all__ = ["BlockComponents", "Component", "block_components", "merge_components"]

_FACES = tuple((axis, high) for axis in range(3) for high in (False, True))


@dataclass(frozen=True)
class Component:
    """One connected component of a case; positions in voxels of the case, axes z, y, x."""

    key: int
    voxels: int
    weight: int
    """Sum of the weights of its voxels; 0 where no weights were given."""
    box: Box
    anchor_zyx: Index3
    """Its first voxel in z, y, x order: certainly inside, and unique to it."""


@dataclass(frozen=True)
class BlockComponents:
    """The components of one block and where they touch its faces; pure arrays, easy to store."""

    box: Box
    """The block, in the case."""
    key: NDArray[np.uint64]
    """Key of each component (n)."""
    sums: NDArray[np.int64]
    """Voxels and weight of each component (n, 2)."""
    low_zyx: NDArray[np.int64]
    """First corner of its box (n, 3), in the case."""
    high_zyx: NDArray[np.int64]
    """Last corner of its box, exclusive (n, 3), in the case."""
    anchor_zyx: NDArray[np.int64]
    """Its first voxel (n, 3), in the case."""
    face_start: NDArray[np.int64]
    """Where each of the six faces (z low, z high, y low, ..., x high) begins in `face` (7)."""
    face: NDArray[np.int32]
    """Keyed voxels of the faces: flat position in the face, component (m, 2)."""

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return everything as plain arrays, fit for npz without pickling."""
        box = np.array([self.box.start_zyx, self.box.stop_zyx], np.int64)
        return {
            "box": box,
            **{name: getattr(self, name) for name in self.__annotations__ if name != "box"},
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "BlockComponents":
        """Read what `to_arrays` returned."""
        rest = {name: arrays[name] for name in cls.__annotations__ if name != "box"}
        return cls(box=Box.of(*arrays["box"]), **rest)


def block_components(
    key_zyx: NDArray[np.unsignedinteger[Any]],
    box: Box,
    *,
    weight_zyx: NDArray[np.integer[Any]] | None = None,
) -> BlockComponents:
    """Return the components of one block; `box` is the block in its case, 0 is no key.

    `weight_zyx` (non-negative integers below 2^16) is summed over each component.
    Raises InputError when a shape differs from that of the box.
    """
    for array in (key_zyx, weight_zyx):
        if array is not None and array.shape != box.shape_zyx:
            raise InputError(
                f"A block at {box.start_zyx} must have the shape of its box {box.shape_zyx}, "
                f"got {array.shape}; pass the block without halo."
            )
    inner = bounding_box(key_zyx != 0) or Box.whole((1, 1, 1))  # one voxel, and no component
    ids_zyx, count = cc3d.connected_components(
        np.ascontiguousarray(key_zyx[inner.slices]), connectivity=6, return_N=True
    )
    where = np.flatnonzero(ids_zyx)
    index = ids_zyx.ravel()[where].astype(np.int64) - 1
    weight = np.zeros(count, np.int64)
    if weight_zyx is not None:
        # float64 sums of integers are exact below 2^53: 2^37 voxels of weight 2^16
        weights = weight_zyx[inner.slices].ravel()[where]
        weight = np.bincount(index, weights, count).astype(np.int64)
    offset = np.add(box.start_zyx, inner.start_zyx)
    first = _first_positions(index, where, count)
    found = cc3d.statistics(ids_zyx, no_slice_conversion=True)["bounding_boxes"]
    bounds = found[1 : count + 1].astype(np.int64)
    face_start, face = _faces(ids_zyx, inner, box.shape_zyx)
    return BlockComponents(
        box=box,
        key=key_zyx[inner.slices].ravel()[first].astype(np.uint64),
        sums=np.stack([np.bincount(index, minlength=count), weight], axis=1),
        low_zyx=bounds[:, 0::2] + offset,
        high_zyx=bounds[:, 1::2] + 1 + offset,
        anchor_zyx=np.stack(np.unravel_index(first, ids_zyx.shape), axis=1) + offset,
        face_start=face_start,
        face=face,
    )


def merge_components(blocks: Iterable[BlockComponents]) -> list[Component]:
    """Join the components of the blocks of one case, in the order of their anchors.

    The blocks are those of one grid, each at most once, in any order; blocks without components may
    be left out. Raises InputError when a block comes twice or two blocks meet whose faces do not
    match.
    """
    parts = sorted((block for block in blocks if block.key.size), key=lambda block: block.box)
    if not parts:
        return []
    for before, after in pairwise(parts):
        if before.box.start_zyx == after.box.start_zyx:
            raise InputError(f"Block {after.box} of a case came twice; pass each block once.")
    starts = np.cumsum([0, *(block.key.size for block in parts)])
    edges = np.concatenate(list(_edges(parts, starts)))
    total = int(starts[-1])
    links = coo_array((np.ones(len(edges), np.bool_), edges.T), shape=(total, total))
    count, owner = connected_components(links, directed=False)
    return _joined(parts, owner, count)


def _first_positions(
    index: NDArray[np.int64], where: NDArray[np.int64], count: int
) -> NDArray[np.int64]:
    """Return for each component the smallest position in `where`, which is sorted."""
    first = np.zeros(count, np.int64)
    first[index[::-1]] = where[::-1]  # of repeated indices the last assignment stays
    return first


def _faces(
    ids_zyx: NDArray[np.integer[Any]], inner: Box, shape_zyx: Index3
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return the keyed voxels of the six faces; `inner` is the labelled part of the block."""
    faces = [np.zeros((0, 2), np.int32)]
    starts = [0]
    for axis, high in _FACES:
        edge = inner.stop_zyx[axis] == shape_zyx[axis] if high else inner.start_zyx[axis] == 0
        if edge:
            plane = np.take(ids_zyx, -1 if high else 0, axis=axis)
            a, b = (other for other in range(3) if other != axis)
            rows, columns = np.nonzero(plane)
            flat = (rows + inner.start_zyx[a]) * shape_zyx[b] + columns + inner.start_zyx[b]
            faces.append(np.stack([flat, plane[rows, columns] - 1], axis=1).astype(np.int32))
        starts.append(sum(len(face) for face in faces))
    return np.array(starts, np.int64), np.concatenate(faces)


def _edges(parts: list[BlockComponents], starts: NDArray[np.int64]) -> Iterable[NDArray[np.int64]]:
    """Yield pairs of components (rows over all parts) that touch across a face with equal keys."""
    yield np.zeros((0, 2), np.int64)
    at = {part.box.start_zyx: row for row, part in enumerate(parts)}
    for row, low in enumerate(parts):
        for axis in range(3):
            ends = (low.box.start_zyx, low.box.stop_zyx)
            neighbour = at.get(triple(ends[other == axis][other] for other in range(3)))
            if neighbour is None:
                continue
            pairs = _touching(low, parts[neighbour], axis)
            yield np.unique(pairs + starts[[row, neighbour]], axis=0)


def _touching(low: BlockComponents, high: BlockComponents, axis: int) -> NDArray[np.int64]:
    others = [other for other in range(3) if other != axis]
    if any(low.box.shape_zyx[other] != high.box.shape_zyx[other] for other in others):
        raise InputError(
            f"Blocks {low.box} and {high.box} meet across axis {'zyx'[axis]} but their faces "
            "differ; pass blocks of one grid."
        )
    face_low = low.face[low.face_start[2 * axis + 1] : low.face_start[2 * axis + 2]]
    face_high = high.face[high.face_start[2 * axis] : high.face_start[2 * axis + 1]]
    _, i, j = np.intersect1d(
        face_low[:, 0], face_high[:, 0], assume_unique=True, return_indices=True
    )
    a, b = face_low[i, 1].astype(np.int64), face_high[j, 1].astype(np.int64)
    same = low.key[a] == high.key[b]
    return np.stack([a[same], b[same]], axis=1)


def _joined(parts: list[BlockComponents], owner: NDArray[np.int32], count: int) -> list[Component]:
    """Fold all rows of one owner into one component."""
    key = np.zeros(count, np.uint64)
    key[owner] = np.concatenate([part.key for part in parts])
    sums = np.zeros((count, 2), np.int64)
    np.add.at(sums, owner, np.concatenate([part.sums for part in parts]))
    far = np.iinfo(np.int64).max
    low, high = np.full((count, 3), far), np.zeros((count, 3), np.int64)
    np.minimum.at(low, owner, np.concatenate([part.low_zyx for part in parts]))
    np.maximum.at(high, owner, np.concatenate([part.high_zyx for part in parts]))
    anchors = np.concatenate([part.anchor_zyx for part in parts])
    order = np.lexsort(anchors.T[::-1])
    ranks = np.arange(order.size, dtype=np.int64)
    anchor = anchors[order[_first_positions(owner[order].astype(np.int64), ranks, count)]]
    rows = np.lexsort(anchor.T[::-1])
    columns = (array[rows].tolist() for array in (key, sums, low, high, anchor))
    return [
        Component(one_key, voxels, weight, Box.of(start_zyx, stop_zyx), triple(first_zyx))
        for one_key, (voxels, weight), start_zyx, stop_zyx, first_zyx in zip(*columns, strict=True)
    ]
