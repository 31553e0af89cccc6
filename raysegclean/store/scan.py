"""Reading a case once to know its intensities and where its label values are.

Memory is that of one region of 256^3 voxels, whatever the case. Minimum, maximum, mean and
standard deviation are exact; percentiles are exact up to 4 million voxels and beyond that those
of 4 million voxels at an even stride, which is the same in every run.
"""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from raysegclean.errors import InputError
from raysegclean.evidence.cases import BlockCounts, Intensity, block_grid
from raysegclean.store.arrays import Array, Volume
from raysegclean.voxels.geometry import Box, Grid

__all__ = ["scan_intensity", "scan_values"]

_REGION_ZYX = (256, 256, 256)
_SAMPLES = 4_000_000


def scan_intensity(image: Volume) -> Intensity:
    """Return the intensities of all channels; raise InputError on NaN or infinite voxels."""
    stride = -(-int(np.prod(image.shape)) // _SAMPLES)
    samples, parts = [], []
    for box, region in _regions(image):
        if region.dtype.kind == "f" and not np.isfinite(region).all():
            raise InputError(
                f"image holds NaN or infinite voxels between {box.start_zyx} and {box.stop_zyx} "
                "(z, y, x). Replace them in the source, for example by the value of air."
            )
        samples.append(region.ravel()[::stride].copy())  # a view would keep the region
        mean, var = region.mean(dtype=np.float64), region.var(dtype=np.float64)
        parts.append((region.size, mean, var, region.min(), region.max()))
    drawn = np.concatenate(samples)
    p005, p995 = np.percentile(drawn.astype(np.float64), [0.5, 99.5])
    count, mean, var, low, high = (
        np.array(column, np.float64) for column in zip(*parts, strict=True)
    )
    share = count / count.sum()
    centre = float(share @ mean)
    spread = float(np.sqrt(share @ (var + (mean - centre) ** 2)))
    return Intensity(float(low.min()), float(p005), float(p995), float(high.max()), centre, spread)


def scan_values(label: Volume) -> tuple[dict[int, int], dict[int, BlockCounts]]:
    """Return voxels per value, and per value but 0 the 64^3 blocks that hold it.

    See `LabelSummary` for both. Raises InputError on a dtype that is no integer and on values
    below zero.
    """
    if label.dtype.kind not in "iu":
        raise InputError(
            f"label has dtype {label.dtype}, expected integers. Threshold or round it at ingest."
        )
    grid = block_grid(label.shape_zyx)
    voxels: Counter[int] = Counter()
    blocks: dict[int, list[tuple[int, int]]] = {}
    for box, region in _regions(label):
        for flat, block in _blocks(grid, box, region):
            for value, count in _counts(block):
                voxels[value] += count
                if value:
                    blocks.setdefault(value, []).append((flat, count))
    if min(voxels) < 0:
        raise InputError(f"label holds {min(voxels)}. Labels start at 0: shift or map its values.")
    ordered = {value: voxels[value] for value in sorted(voxels)}
    return ordered, {value: BlockCounts.of(blocks[value]) for value in sorted(blocks)}


def _regions(volume: Volume) -> Iterator[tuple[Box, Array]]:
    """Yield the whole volume in pieces, the next one being read meanwhile."""
    grid = Grid(volume.shape_zyx, _REGION_ZYX)
    boxes = [grid.box(index) for index in grid.indices()]
    coming = volume.start(boxes[0])
    for i, box in enumerate(boxes):
        region = coming.result()
        if i + 1 < len(boxes):
            coming = volume.start(boxes[i + 1])
        yield box, region


def _blocks(grid: Grid, box: Box, region: Array) -> Iterator[tuple[int, Array]]:
    """Yield the 64^3 blocks of one region with their flat index in the whole case."""
    _, ny, nx = grid.counts_zyx
    offset = [start // edge for start, edge in zip(box.start_zyx, grid.shard_zyx, strict=True)]
    local = Grid(box.shape_zyx, grid.shard_zyx)
    for index in local.indices():
        z, y, x = (i + o for i, o in zip(index, offset, strict=True))
        yield (z * ny + y) * nx + x, region[local.box(index).slices]


def _counts(block: Array) -> Iterator[tuple[int, int]]:
    if not block.any():
        yield 0, block.size
    elif block.dtype.kind == "u" and block.dtype.itemsize <= 2:
        counts = np.bincount(block.ravel())
        for value in np.flatnonzero(counts):
            yield int(value), int(counts[value])
    else:
        for value, count in zip(*np.unique(block, return_counts=True), strict=True):
            yield int(value), int(count)
