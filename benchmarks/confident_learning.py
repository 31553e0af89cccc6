"""Confident learning on blocks: cleanlab's thresholds and flags from records that do not grow.

Three passes over out-of-fold probabilities, each a mergeable record of integers:

1. `self_sums`: sum and count of p(given) per class; their means are the class thresholds.
2. `confident_counts`: how often a label is confidently contradicted (the count n of cleanlab's
   segmentation, and the confident joint of Northcutt et al., JAIR 2021), and a histogram of the
   upper 16 bits of p(given).
3. `low_counts`: a histogram of the lower 16 bits inside the one bin that holds the n-th lowest
   p(given). Two radix passes give that order statistic exactly; nothing is sorted.

A fourth record, of connected components, scores cases (`component_score`).

Everything is counted per class and, where `group_zyx` is given, per group of voxels, such as bands
of distance to the outline; a group is judged as if it were an archive of its own.

What is equal to cleanlab 2.9 (`segmentation.filter.find_label_issues`, and `filter_by=
"prune_by_class"` of `filter.find_label_issues`), for probabilities in float32:

- Thresholds are exact to 2^-25: sums are fixed point with steps of 2^-24.
- Counts are equal unless a probability lies within 2^-25 of its threshold less 1e-6, which is the
  tolerance of cleanlab's own comparison.
- How many voxels of a class are pruned may differ by one where its row of the calibrated joint has
  two equal remainders at the cut, as .5 and .5: cleanlab rounds them by an unstable sort.
- Flags are equal unless two voxels share the very p(given) at which flagging ends. cleanlab then
  flags as many of them as are left, in the order of an unstable sort; here none of them is
  flagged, so that the answer depends on the voxels alone.

Records hold 64-bit sums: merge up to 5e11 voxels of a class. Sizes: 130 kB per class and group for
pass 2, 512 kB for pass 3, whatever the number of voxels; cleanlab keeps 40 bytes per voxel.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysegclean.voxels.components import BlockComponents, Component, block_components
from raysegclean.voxels.geometry import Box

__all__ = [
    "ConfidentCounts",
    "Cut",
    "Selection",
    "SelfSums",
    "component_score",
    "confident_counts",
    "confident_thresholds",
    "cut_of",
    "flags",
    "issue_count",
    "low_counts",
    "prune_counts",
    "quality_components",
    "select",
    "self_sums",
]

Counts = NDArray[np.int64]
Probs = NDArray[np.float32]
Labels = NDArray[np.integer[Any]]

_SCALE = 1 << 24
_PART_SCALE = 1 << 15
_TOLERANCE = 1e-6
_LEAST = 2 * _TOLERANCE
_NEVER = 2.0
_LOW_BITS = 16
_HIGH_BINS = (int(np.float32(1).view(np.uint32)) >> _LOW_BITS) + 1
_LOW_BINS = 1 << _LOW_BITS


@dataclass(frozen=True)
class SelfSums:
    """Pass 1: (G, C) each, by group and given class."""

    prob: Counts
    """Sum of p(given), in steps of 2^-24."""
    voxels: Counts

    def merge(self, other: "SelfSums") -> "SelfSums":
        """Return the sums of both; associative and commutative to the last bit."""
        return SelfSums(self.prob + other.prob, self.voxels + other.voxels)


@dataclass(frozen=True)
class ConfidentCounts:
    """Pass 2."""

    sure: Counts
    """(G, C, C): voxels of given class i whose most probable class j reaches its threshold."""
    joint: Counts
    """(G, C, C): the confident joint. Of several classes that reach their thresholds the most
    probable one counts."""
    high: Counts
    """(G, C, 16257): voxels of each given class by the upper 16 bits of p(given)."""

    def merge(self, other: "ConfidentCounts") -> "ConfidentCounts":
        """Return the counts of both; associative and commutative."""
        return ConfidentCounts(
            *(getattr(self, f.name) + getattr(other, f.name) for f in fields(self))
        )

    @property
    def size_bytes(self) -> int:
        """Bytes of the record; it depends on classes and groups alone."""
        return sum(int(getattr(self, f.name).nbytes) for f in fields(self))


@dataclass(frozen=True)
class Selection:
    """Where the n-th lowest p(given) is looked for: (G, R) each, R being C, or 1 when pooled."""

    wanted: Counts
    """n."""
    bucket: Counts
    """The upper 16 bits of the n-th lowest; -1 where nothing is wanted."""
    below: Counts
    """Voxels in lower buckets."""


@dataclass(frozen=True)
class Cut:
    """A voxel of row r is flagged where p(given) <= at_most[r]; (G, R) float32, -1 flags none."""

    at_most: NDArray[np.float32]


def self_sums(
    label_zyx: Labels, prob_czyx: Probs, group_zyx: Labels | None = None, groups: int = 1
) -> SelfSums:
    """Return pass 1 of one block.

    Args:
        label_zyx: given channels, any shape.
        prob_czyx: probabilities, float32, the channels first.
        group_zyx: group of every voxel, below `groups`; None: one group.
        groups: number of groups.
    """
    classes = len(prob_czyx)
    row = _rows(label_zyx, group_zyx, classes)
    fixed = np.rint(_given(label_zyx, prob_czyx).astype(np.float64) * _SCALE)
    shape = groups, classes
    # Whole numbers below 2^53 add up exactly in float64.
    prob = np.bincount(row, weights=fixed, minlength=groups * classes).astype(np.int64)
    voxels = np.bincount(row, minlength=groups * classes)
    return SelfSums(prob.reshape(shape), voxels.reshape(shape))


def confident_thresholds(sums: SelfSums) -> NDArray[np.float64]:
    """Return t (G, C): the mean p(given) of each given class; NaN where the class has no voxel."""
    voxels = np.where(sums.voxels, sums.voxels, 1)
    mean = np.maximum(sums.prob / (voxels * float(_SCALE)), _LEAST)
    return np.where(sums.voxels > 0, mean, np.nan)


def confident_counts(
    label_zyx: Labels,
    prob_czyx: Probs,
    thresholds: NDArray[np.float64],
    group_zyx: Labels | None = None,
) -> ConfidentCounts:
    """Return pass 2 of one block; `thresholds` as `confident_thresholds` gives them."""
    groups, classes = thresholds.shape
    row = _rows(label_zyx, group_zyx, classes)
    group = row // classes
    prob = prob_czyx.reshape(classes, -1)
    best = prob.argmax(axis=0)
    best_prob = np.take_along_axis(prob, best[None], axis=0)[0]
    # As in cleanlab: a class that nobody was given is reached by anything when issues are
    # counted, and by nothing in the joint.
    reached = best_prob >= _bounds(thresholds, absent=_LEAST)[group, best]
    bounds = _bounds(thresholds, absent=_NEVER)
    passes = np.stack([prob[c] >= bounds[group, c] for c in range(classes)])
    several = passes.sum(axis=0)
    true = np.where(several > 1, best, passes.argmax(axis=0))
    bits = _given(label_zyx, prob_czyx).view(np.uint32) >> _LOW_BITS
    cells = groups * classes
    return ConfidentCounts(
        sure=_pairs(row[reached], best[reached], cells, classes),
        joint=_pairs(row[several > 0], true[several > 0], cells, classes),
        high=_histogram(row, bits, cells, _HIGH_BINS).reshape(groups, classes, _HIGH_BINS),
    )


def issue_count(counts: ConfidentCounts) -> Counts:
    """Return n (G, 1): the label issues that cleanlab's segmentation counts in each group."""
    diagonal = np.trace(counts.sure, axis1=1, axis2=2)
    return np.asarray(counts.sure.sum(axis=(1, 2)) - diagonal, np.int64)[:, None]


def prune_counts(counts: ConfidentCounts, sums: SelfSums) -> Counts:
    """Return n (G, C): how many voxels of each given class to prune (prune by class).

    The joint, its diagonal at least 1, is scaled so that each row holds the voxels of its class;
    n is what lies off the diagonal (Northcutt et al. 2021, section 3.2). One voxel is kept.
    """
    pairs = zip(counts.joint, sums.voxels, strict=True)
    return np.array([_off_diagonal(joint, voxels) for joint, voxels in pairs], np.int64)


def select(counts: ConfidentCounts, wanted: Counts) -> Selection:
    """Find in which bucket the n-th lowest p(given) lies; pooled over classes for n of (G, 1)."""
    high = counts.high.sum(axis=1, keepdims=True) if wanted.shape[1] == 1 else counts.high
    total = high.cumsum(axis=2)
    wanted = np.minimum(wanted, total[..., -1])
    bucket = (total < wanted[..., None]).sum(axis=2)
    below = np.take_along_axis(total - high, bucket[..., None], axis=2)[..., 0]
    return Selection(wanted, np.where(wanted > 0, bucket, -1), below)


def low_counts(
    label_zyx: Labels,
    prob_czyx: Probs,
    selection: Selection,
    group_zyx: Labels | None = None,
) -> Counts:
    """Return pass 3 of one block: (G, R, 65536) voxels in the buckets by the lower 16 bits.

    Two blocks' counts are merged by addition.
    """
    groups, rows = selection.wanted.shape
    bits = _given(label_zyx, prob_czyx).view(np.uint32)
    row = _selected_rows(label_zyx, group_zyx, len(prob_czyx), rows)
    inside = (bits >> _LOW_BITS).astype(np.int64) == selection.bucket.ravel()[row]
    low = (bits & (_LOW_BINS - 1))[inside]
    counts = _histogram(row[inside], low, groups * rows, _LOW_BINS)
    return counts.reshape(groups, rows, _LOW_BINS)


def cut_of(selection: Selection, low: Counts) -> Cut:
    """Return where flagging ends; voxels that tie there are all left out, if not all are wanted."""
    total = selection.below[..., None] + low.cumsum(axis=2)
    place = (total < selection.wanted[..., None]).sum(axis=2)
    place = np.minimum(place, _LOW_BINS - 1)
    through = np.take_along_axis(total, place[..., None], axis=2)[..., 0]
    bits = (np.maximum(selection.bucket, 0) << _LOW_BITS) + place
    # One step down in the bits is the next lower float: p(given) < x is p(given) <= that.
    bits = bits - (through > selection.wanted)
    value = np.maximum(bits, 0).astype(np.uint32).view(np.float32)
    return Cut(np.where((selection.bucket >= 0) & (bits >= 0), value, np.float32(-1)))


def flags(
    label_zyx: Labels, prob_czyx: Probs, cut: Cut, group_zyx: Labels | None = None
) -> NDArray[np.bool_]:
    """Return which voxels are label issues: a low p(given), and another class more probable."""
    rows = cut.at_most.shape[1]
    row = _selected_rows(label_zyx, group_zyx, len(prob_czyx), rows)
    low = _given(label_zyx, prob_czyx) <= cut.at_most.ravel()[row]
    differs = prob_czyx.reshape(len(prob_czyx), -1).argmax(axis=0) != label_zyx.ravel()
    return np.asarray((low & differs).reshape(label_zyx.shape))


def quality_components(label_zyx: Labels, prob_czyx: Probs, box: Box) -> BlockComponents:
    """Return the components of the given foreground classes, weighted by p(given).

    `box` is the block in its case. The records of all blocks give the components of the case
    (`components.merge_components`), with p in steps of 2^-15.
    """
    own = _given(label_zyx, prob_czyx).reshape(label_zyx.shape)
    weight = np.rint(own * _PART_SCALE).astype(np.uint16)
    return block_components(label_zyx.astype(np.uint64), box, weight_zyx=weight)


def component_score(components: Iterable[Component]) -> float:
    """Return how good the label of a case is: the least mean p(given) of its components.

    1 where nothing is labelled. A mean over voxels, and the softmin that cleanlab scores images
    by, bury a small structure that is wrong as a whole under the voxels of a volume.
    """
    means = (one.weight / (one.voxels * _PART_SCALE) for one in components)
    return min(means, default=1.0)


def _given(label_zyx: Labels, prob_czyx: Probs) -> Probs:
    """Return p(given) of every voxel, flat, contiguous float32."""
    prob = prob_czyx.reshape(len(prob_czyx), -1)
    picked = np.take_along_axis(prob, label_zyx.reshape(1, -1).astype(np.int64), axis=0)[0]
    return np.ascontiguousarray(picked, np.float32)


def _rows(label_zyx: Labels, group_zyx: Labels | None, classes: int) -> Counts:
    """Return group * C + class of every voxel, flat."""
    label = label_zyx.ravel().astype(np.int64)
    return label if group_zyx is None else group_zyx.ravel().astype(np.int64) * classes + label


def _selected_rows(label_zyx: Labels, group_zyx: Labels | None, classes: int, rows: int) -> Counts:
    row = _rows(label_zyx, group_zyx, classes)
    return row // classes if rows == 1 else row


def _bounds(thresholds: NDArray[np.float64], *, absent: float) -> NDArray[np.float32]:
    """Return the least float32 that counts as reaching each threshold."""
    exact = np.where(np.isnan(thresholds), absent, thresholds) - _TOLERANCE
    near = exact.astype(np.float32)
    return np.where(near < exact, np.nextafter(near, np.float32(np.inf)), near).astype(np.float32)


def _pairs(row: Counts, other: Counts, cells: int, classes: int) -> Counts:
    return _histogram(row, other, cells, classes).reshape(-1, classes, classes)


def _histogram(row: Counts, place: NDArray[Any], rows: int, bins: int) -> Counts:
    flat = np.bincount(row * bins + place.astype(np.int64), minlength=rows * bins)
    return np.asarray(flat, np.int64).reshape(rows, bins)


def _off_diagonal(joint: Counts, voxels: Counts) -> list[int]:
    kept = joint.astype(np.float64)
    np.fill_diagonal(kept, np.maximum(joint.diagonal(), 1))
    scaled = kept / kept.sum(axis=1)[:, None] * voxels[:, None]
    # A factor of one, up to rounding: what is rounded next may lie just beside a half.
    scaled = scaled / scaled.sum() * voxels.sum() if voxels.any() else scaled
    diagonal = [_rounded(row)[c] for c, row in enumerate(scaled)]
    return [
        int(count) - max(int(d), 1) if count > 1 else 0
        for count, d in zip(voxels, diagonal, strict=True)
    ]


def _rounded(row: NDArray[np.float64]) -> Counts:
    """Round a row to whole numbers that keep its sum: the largest remainders give way.

    Of equal remainders the first gives way.
    """
    whole = np.rint(row)
    missing = int(round(row.sum()) - whole.sum())
    remainder = row - whole
    order = np.argsort(-remainder if missing > 0 else remainder, kind="stable")
    whole[order[: abs(missing)]] += np.sign(missing)
    return whole.astype(np.int64)
