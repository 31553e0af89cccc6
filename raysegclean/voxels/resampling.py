"""The working grid: a case on voxels of a size in millimetres that all cases share.

Networks learn and predict there; labels and evidence stay on the case's own voxels. The grid is
aligned with the case's outer corner: along an axis of n native voxels of s mm, working voxel i
covers [i w, (i + 1) w) mm, and ceil(n s / w) of them cover the case. Directions are the case's own,
so an oblique case is resampled along its axes.

An axis stays native, and its values are untouched to the bit, where the two spacings differ by no
more than `SAME`, where it has one voxel, or where the working spacing is 0 (slices of 2D networks).
Towards the coarser grid values are averaged with a triangle as wide as the ratio on each side, so
that nothing finer is mistaken for something coarse; towards the finer one they are interpolated
linearly. Weights are corrected so that they sum to one and their mean lies at the voxel's centre: a
constant stays constant, a ramp stays a ramp. Beyond the border the edge value goes on.

Guaranteed: every value depends on a fixed number of values of the other grid, found from its place
in the case, and is summed in one order by multiplications and additions that are rounded one by
one. So a window gives the bits of the whole case, whoever cuts it.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysegclean.voxels.geometry import Box, Index3, triple

__all__ = ["AxisTaps", "Spacing", "WorkingGrid"]

SAME = 0.01
"""Share by which a spacing may be off the working one and is not resampled."""
_HAIR = 1e-6
"""Part of a working voxel that rounding of spacings may add to an edge, and no voxel is for."""

Spacing = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class AxisTaps:
    """How a stretch of one axis is made from a stretch of the other grid's.

    axis: -3 z, -2 y, -1 x. index: (T, N) positions in the array that is read. weight: (T, N)
    float32.
    """

    axis: int
    index: NDArray[np.int64]
    weight: NDArray[np.float32]

    def shaped(self, tap: int) -> NDArray[np.float32]:
        """Return the weights of one tap, to be multiplied with an array (..., Z, Y, X)."""
        shaped: NDArray[np.float32] = self.weight[tap].reshape(-1, *(1,) * (-1 - self.axis))
        return shaped


@dataclass(frozen=True)
class WorkingGrid:
    """One case on its own voxels and on working ones; boxes say which of them they count.

    working_mm: 0 along axes that stay native.
    """

    native_zyx: Index3
    spacing_mm: Spacing
    working_mm: Spacing

    @classmethod
    def of(
        cls, shape_zyx: Index3, spacing_mm: Spacing, working_mm: Spacing | None
    ) -> "WorkingGrid":
        """Return the grid of a case; its own voxels where there is no working spacing."""
        return cls(shape_zyx, spacing_mm, working_mm or (0.0, 0.0, 0.0))

    @cached_property
    def ratios(self) -> Spacing:
        """Working voxels in native ones, along z, y, x; exactly 1 where an axis stays native."""
        axes = zip(self.native_zyx, self.spacing_mm, self.working_mm, strict=True)
        return triple(
            1.0 if n == 1 or w == 0 or abs(w / s - 1) <= SAME else w / s for n, s, w in axes
        )

    @property
    def seen_mm(self) -> Spacing:
        """Voxel size (z, y, x) on the working grid."""
        return triple(s * r for s, r in zip(self.spacing_mm, self.ratios, strict=True))

    @property
    def is_native(self) -> bool:
        """Whether nothing is resampled."""
        return self.ratios == (1.0, 1.0, 1.0)

    @cached_property
    def shape_zyx(self) -> Index3:
        """Working voxels of the case."""
        axes = zip(self.native_zyx, self.ratios, strict=True)
        return triple(n if r == 1 else max(1, math.ceil(n / r - _HAIR)) for n, r in axes)

    def working_voxel(self, native_zyx: Iterable[int]) -> Index3:
        """Return the working voxel that holds the centre of a native one."""
        axes = zip(native_zyx, self.ratios, self.shape_zyx, strict=True)
        return triple(min(int((j + 0.5) / r), m - 1) for j, r, m in axes)

    def native_edges(self, working_zyx: Index3) -> Index3:
        """Return the edges, in native voxels, that span no more than so many working ones."""
        return triple(
            max(1, int(n * r + _HAIR)) for n, r in zip(working_zyx, self.ratios, strict=True)
        )

    def needed_native(self, working: Box) -> Box:
        """Return the native voxels that the working voxels of a box, not empty, depend on."""
        return _needed(self._inwards, working)

    def needed_working(self, native: Box) -> Box:
        """Return the working voxels that the native voxels of a box, not empty, depend on."""
        return _needed(self._outwards, native)

    def to_working(self, image: NDArray[Any], native: Box, working: Box) -> NDArray[np.float32]:
        """Return the image (..., Z, Y, X) on the working voxels of a box.

        image: float32, the native voxels of `native`, which holds `needed_native(working)`.
        """
        for taps in _cut(self._inwards, native, working):
            image = _gathered(image, taps)
        return image

    def label_to_working(self, label_zyx: NDArray[Any], native: Box, working: Box) -> NDArray[Any]:
        """Return the label on the working voxels: the value at each one's centre."""
        for axis, ratio in enumerate(self.ratios):
            span = np.arange(working.start_zyx[axis], working.stop_zyx[axis])
            centre = np.minimum(((span + 0.5) * ratio).astype(np.int64), self.native_zyx[axis] - 1)
            label_zyx = label_zyx.take(centre - native.start_zyx[axis], axis)
        return label_zyx

    def to_native(self, prob: NDArray[Any], working: Box, native: Box) -> NDArray[np.float32]:
        """Return probabilities (..., Z, Y, X) on the native voxels of a box.

        prob: float32, the working voxels of `working`, which holds `needed_working(native)`.
        """
        for taps in self.taps_to_native(working, native):
            prob = _gathered(prob, taps)
        return prob

    def taps_to_native(self, working: Box, native: Box) -> list[AxisTaps]:
        """Return what `to_native` does, axis by axis in its order; for arrays that are not numpy's.

        Each step is the sum, tap by tap, of what is at `index` times `weight`.
        """
        return _cut(self._outwards, working, native)[::-1]

    @property
    def _inwards(self) -> list["_Axis"]:
        axes = zip(self.native_zyx, self.shape_zyx, self.ratios, strict=True)
        return [_axis(n, m, r) for n, m, r in axes]

    @property
    def _outwards(self) -> list["_Axis"]:
        axes = zip(self.native_zyx, self.shape_zyx, self.ratios, strict=True)
        return [_axis(m, n, 1 / r) for n, m, r in axes]


@dataclass(frozen=True, eq=False)
class _Axis:
    """How one whole axis is made from the other grid's; index and weight are (T, N)."""

    index: NDArray[np.int64]
    weight: NDArray[np.float32]
    native: bool


@lru_cache(maxsize=256)
def _axis(count_from: int, count_to: int, ratio: float) -> _Axis:
    """Return the taps of an axis whose voxels are `ratio` times as long as those they are made of.

    The triangle reaches `max(1, ratio)` voxels to each side of the centre. Its weights are tilted
    so that their mean is the centre, as a local fit of a line would (Cleveland 1979).
    """
    places = np.arange(count_to)
    if ratio == 1:
        return _Axis(places[None], np.ones((1, count_to), np.float32), native=True)
    reach = max(1.0, ratio)
    centre = (places + 0.5) * ratio - 0.5
    taps = np.floor(centre - reach).astype(np.int64) + 1 + np.arange(math.ceil(2 * reach))[:, None]
    off = taps - centre
    weight = np.maximum(0.0, 1.0 - np.abs(off) / reach)
    weight /= weight.sum(axis=0)
    mean = (weight * off).sum(axis=0)
    spread = (weight * (off - mean) ** 2).sum(axis=0)
    weight *= 1.0 - mean * (off - mean) / np.where(spread > _HAIR, spread, 1.0)
    return _Axis(taps.clip(0, count_from - 1), weight.astype(np.float32), native=False)


def _needed(axes: Sequence[_Axis], box: Box) -> Box:
    spans = list(zip(axes, box.start_zyx, box.stop_zyx, strict=True))
    return Box.of(
        (axis.index[0, start] for axis, start, _ in spans),
        (axis.index[-1, stop - 1] + 1 for axis, _, stop in spans),
    )


def _cut(axes: Sequence[_Axis], have: Box, want: Box) -> list[AxisTaps]:
    """Return the taps of a box, z first; `have` are the voxels in the array that is read."""
    found = []
    for number, axis in enumerate(axes):
        first, span = have.start_zyx[number], slice(want.start_zyx[number], want.stop_zyx[number])
        if axis.native and have.slices[number] == span:
            continue
        index = axis.index[:, span] - first
        found.append(AxisTaps(number - 3, index, axis.weight[:, span]))
    return found


def _gathered(array: NDArray[Any], taps: AxisTaps) -> NDArray[np.float32]:
    out: NDArray[np.float32] = array.take(taps.index[0], taps.axis) * taps.shaped(0)
    for tap in range(1, len(taps.index)):
        out += array.take(taps.index[tap], taps.axis) * taps.shaped(tap)
    return out
