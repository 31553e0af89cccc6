"""Facts: what a label says of itself and of its image, without any network.

Counted block by block in integers and merged, so a case of any size is never held whole and has the
same facts however it was cut. Of each class: voxels per slice along every axis (from which volume,
centre, gaps and ends follow), connected components, and intensities inside and across its outline.

Memory: 8 bytes per class and slice of the case while merging, plus components
(`voxels.components`); a finished `LabelStatistics` is about 1 kB per class.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysegclean.evidence.cases import CaseImage, Intensity
from raysegclean.voxels.boxes import IntLabel, class_boxes
from raysegclean.voxels.components import BlockComponents, merge_components
from raysegclean.voxels.geometry import Box, Index3
from raysegclean.voxels.packing import arrays_to_text, text_to_arrays
from raysegclean.voxels.regions import class_components

__all__ = [
    "BIG_PART",
    "BlockStatistics",
    "ClassFacts",
    "Gap",
    "LabelStatistics",
    "block_statistics",
    "label_statistics",
]

Counts = NDArray[np.int64]

GREY_LEVELS = 256
"""Levels per standard deviation of the image: the fixed point of sums of intensities."""

GREY_LIMIT = 16.0
"""Intensities further than this from the image's mean, in sd, count as this."""

BIG_PART = 0.1
"""Components of at least this share of their class count as its parts; the others are specks."""

SUMS = ("voxels", "grey", "grey_squared", "grey_vox", "steps", "pairs")
"""Columns of `BlockStatistics.sums`; `grey_vox` counts the voxels whose intensity is in the
sums."""


@dataclass(frozen=True)
class BlockStatistics:
    """Integer counts of one block, or by merging, of one case; n classes, background left out."""

    shape_zyx: Index3
    """Of the whole case."""
    values: NDArray[np.uint64]
    """Label values (n), ascending."""
    profiles: Counts
    """Voxels per slice of the case (n, Z + Y + X), along z, then y, then x."""
    sums: Counts
    """(n, len(SUMS)); sums of intensity levels, and of their absolute steps across the outline."""
    parts: tuple[BlockComponents, ...]

    @classmethod
    def zero(cls, shape_zyx: Index3) -> "BlockStatistics":
        """Return the neutral element for a case of this shape."""
        profiles = np.zeros((0, sum(shape_zyx)), np.int64)
        sums = np.zeros((0, len(SUMS)), np.int64)
        return cls(shape_zyx, np.zeros(0, np.uint64), profiles, sums, ())

    def merge(self, other: "BlockStatistics") -> "BlockStatistics":
        """Return the facts of both; associative, commutative but for the order of `parts`."""
        values = np.union1d(self.values, other.values)
        profiles = np.zeros((len(values), sum(self.shape_zyx)), np.int64)
        sums = np.zeros((len(values), len(SUMS)), np.int64)
        for one in (self, other):
            rows = np.searchsorted(values, one.values)
            profiles[rows] += one.profiles
            sums[rows] += one.sums
        return BlockStatistics(self.shape_zyx, values, profiles, sums, self.parts + other.parts)

    def to_text(self) -> str:
        """Return the record as one line of text, for the ledger."""
        arrays: dict[str, NDArray[Any]] = {
            "shape": np.array(self.shape_zyx),
            "values": self.values,
            "profiles": self.profiles,
            "sums": self.sums,
        }
        for number, part in enumerate(self.parts):
            arrays |= {f"{number}/{name}": array for name, array in part.to_arrays().items()}
        return arrays_to_text(arrays)

    @classmethod
    def from_text(cls, text: str) -> "BlockStatistics":
        """Read what `to_text` wrote."""
        arrays = text_to_arrays(text)
        parts: dict[int, dict[str, NDArray[Any]]] = {}
        for name in [name for name in arrays if "/" in name]:
            number, _, field_name = name.partition("/")
            parts.setdefault(int(number), {})[field_name] = arrays.pop(name)
        z, y, x = arrays.pop("shape").tolist()
        found = tuple(BlockComponents.from_arrays(parts[number]) for number in sorted(parts))
        return cls((z, y, x), **arrays, parts=found)


@dataclass(frozen=True)
class Gap:
    """Slices without a class between slices that have it."""

    axis: int
    start: int
    """First slice of the widest gap."""
    slices: int
    """Empty slices of all gaps along this axis."""
    flank: float
    """Area of the smaller neighbour of a gap over the largest cross section, of the worst gap."""


@dataclass(frozen=True)
class ClassFacts:
    """One class of one case; axes z, y, x."""

    voxels: int
    centre_vox: tuple[float, float, float]
    low_vox: Index3
    """First corner of its box."""
    high_vox: Index3
    """Last corner of its box, exclusive."""
    components: int
    parts: int
    """Components that hold at least `BIG_PART` of the class."""
    gaps: tuple[Gap, ...]
    ends: tuple[float, float, float, float, float, float]
    """Area of the outermost slice over the largest cross section: z low, z high, y low and so
    on."""
    grey: float = float("nan")
    """Mean intensity inside, in sd of the whole image from its mean; NaN without an image."""
    grey_sd: float = float("nan")
    """Standard deviation of the intensity inside, in sd of the whole image."""
    step: float = float("nan")
    """Mean absolute difference of intensity between face neighbours across its outline."""


@dataclass(frozen=True, kw_only=True)
class LabelStatistics(CaseImage):
    """All that is known of one case and one of its labels."""

    affine: tuple[tuple[float, ...], ...] | None
    """From voxels x, y, z to RAS mm, where the source had one."""
    image_key: str
    """Equal for equal images (shape, spacing and intensities of the whole image)."""
    label_key: str
    """Equal for equal labels: a digest of the voxels per class and slice along all axes."""
    classes: Mapping[int, ClassFacts] = field(default_factory=dict)


def block_statistics(
    label_zyx: IntLabel,
    window: Box,
    core: Box,
    shape_zyx: Index3,
    image_zyx: NDArray[Any] | None,
    intensity: Intensity,
) -> BlockStatistics:
    """Return the facts of `core`; arrays cover `window`, one voxel beyond core at its high ends.

    Both boxes are in the case. The image may be left out; `intensity` describes the whole of it.
    """
    boxes = class_boxes(label_zyx)
    values = np.array(sorted(boxes), np.uint64)
    profiles = np.zeros((len(values), sum(shape_zyx)), np.int64)
    sums = np.zeros((len(values), len(SUMS)), np.int64)
    inner = core.relative_to(window)
    for row, (value, box) in enumerate(sorted(boxes.items())):
        mask_zyx = label_zyx[box.slices] == value
        inside = box.clipped(inner).relative_to(box)
        mine_zyx = mask_zyx[inside.slices]
        sums[row, 0] = mine_zyx.sum()
        for axis, start in enumerate(np.cumsum([0, *shape_zyx[:2]])):
            others = tuple(other for other in range(3) if other != axis)
            first = start + box.start_zyx[axis] + window.start_zyx[axis]
            area = mine_zyx.sum(axis=others)
            profiles[row, first : first + len(area)] = area
        around = box.grown((1, 1, 1)).clipped(Box.whole(label_zyx.shape))
        grey_zyx = None
        if image_zyx is not None:
            grey_zyx = _levels(image_zyx[around.slices], intensity)
            own = grey_zyx[box.clipped(inner).relative_to(around).slices][mine_zyx]
            sums[row, 1:4] = own.sum(), (own**2).sum(), own.size
        sums[row, 4:] = _steps(label_zyx[around.slices] == value, grey_zyx, around, inner)
    parts = class_components(label_zyx[inner.slices], core)
    return BlockStatistics(shape_zyx, values, profiles, sums, (parts,))


def _levels(image_zyx: NDArray[Any], intensity: Intensity) -> Counts:
    scale = intensity.std if intensity.std > 0 else 1.0
    relative = (image_zyx.astype(np.float64) - intensity.mean) / scale
    return np.rint(np.clip(relative, -GREY_LIMIT, GREY_LIMIT) * GREY_LEVELS).astype(np.int64)


def _steps(
    mask_zyx: NDArray[np.bool_], grey_zyx: Counts | None, box: Box, inner: Box
) -> tuple[int, int]:
    """Return the sum of steps across the outline, 0 without intensities, and their number.

    A pair of face neighbours belongs to the block that holds its lower voxel.
    """
    steps = pairs = 0
    for axis in range(3):
        stop = [n + (a == axis) for a, n in enumerate(inner.stop_zyx)]
        here = Box(inner.start_zyx, (stop[0], stop[1], stop[2])).clipped(box).relative_to(box)
        mask = np.moveaxis(mask_zyx[here.slices], axis, 0)
        edge = mask[1:] != mask[:-1]
        pairs += int(edge.sum())
        if grey_zyx is not None:
            grey = np.moveaxis(grey_zyx[here.slices], axis, 0)
            steps += int(np.abs(grey[1:] - grey[:-1])[edge].sum())
    return steps, pairs


def label_statistics(
    blocks: Iterable[BlockStatistics], about: LabelStatistics, ignored: int | None = None
) -> LabelStatistics:
    """Return `about`, which knows the case but not its label, with the facts of all its blocks.

    The value `ignored` is no class, and a slice that has so much of it that a class may lie in it
    tells of no gap and no end of that class.
    """
    whole = reduce(BlockStatistics.merge, blocks, BlockStatistics.zero(about.shape_zyx))
    sizes: dict[int, list[int]] = {}
    for component in merge_components(whole.parts):
        sizes.setdefault(component.key, []).append(component.voxels)
    unseen = whole.profiles[whole.values == ignored].sum(axis=0)
    classes = {
        int(value): _class_facts(whole, row, sizes[int(value)], unseen)
        for row, value in enumerate(whole.values)
        if whole.sums[row, 0] and value != ignored
    }
    present = whole.sums[:, 0] > 0
    content = whole.values[present].tobytes() + whole.profiles[present].tobytes()
    key = hashlib.blake2b(repr(about.shape_zyx).encode() + content, digest_size=16).hexdigest()
    return replace(about, classes=classes, label_key=key)


def _class_facts(whole: BlockStatistics, row: int, sizes: list[int], unseen: Counts) -> ClassFacts:
    """Return the facts of a class; `unseen` are the ignored voxels per slice, axis by axis."""
    areas, hiding = (
        np.split(part, np.cumsum(whole.shape_zyx)[:2]) for part in (whole.profiles[row], unseen)
    )
    voxels, grey, squared, grey_vox, steps, pairs = whole.sums[row].tolist()
    low, high, ends, gaps, centre = [], [], [], [], []
    for axis, area in enumerate(areas):
        held = np.flatnonzero(area)
        low.append(int(held[0]))
        high.append(int(held[-1]) + 1)
        centre.append(float(area @ np.arange(len(area)) / voxels))
        hidden = hiding[axis] >= area.max()
        ends += [_end(area, hidden, at, step) for at, step in ((held[0], -1), (held[-1], 1))]
        told = np.flatnonzero((area > 0) | hidden)
        gap = _gap(axis, area, told[(told >= held[0]) & (told <= held[-1])])
        gaps += [gap] if gap else []
    mean = grey / grey_vox if grey_vox else float("nan")
    return ClassFacts(
        voxels=voxels,
        centre_vox=(centre[0], centre[1], centre[2]),
        low_vox=(low[0], low[1], low[2]),
        high_vox=(high[0], high[1], high[2]),
        components=len(sizes),
        parts=sum(size >= BIG_PART * voxels for size in sizes),
        gaps=tuple(gaps),
        ends=(ends[0], ends[1], ends[2], ends[3], ends[4], ends[5]),
        grey=mean / GREY_LEVELS,
        grey_sd=max(squared / grey_vox - mean**2, 0.0) ** 0.5 / GREY_LEVELS if grey_vox else mean,
        step=steps / pairs / GREY_LEVELS if pairs and grey_vox else float("nan"),
    )


def _end(area: Counts, hidden: NDArray[np.bool_], at: np.intp, step: int) -> float:
    """Return the share of the largest area that the last slice has; 0 where the next is hidden."""
    beyond = at + step
    goes_on = 0 <= beyond < len(area) and hidden[beyond]
    return 0.0 if goes_on else float(area[at] / area.max())


def _gap(axis: int, area: Counts, held: NDArray[np.intp]) -> Gap | None:
    """Return the gaps along one axis, None where there is none; `held` are the slices in use."""
    empty = np.diff(held) - 1
    if not empty.any():
        return None
    flanks = np.minimum(area[held[:-1]], area[held[1:]]) / area.max()
    widest = int(empty.argmax())
    return Gap(
        axis=axis,
        start=int(held[widest]) + 1,
        slices=int(empty.sum()),
        flank=float(flanks[empty > 0].max()),
    )
