"""A window of the working grid is the whole case's to the bit, there and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysegclean.voxels.geometry import Box, Index3, triple
from raysegclean.voxels.resampling import SAME, WorkingGrid

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 23), st.integers(1, 19))
SPACINGS = st.tuples(*[st.floats(0.3, 6.0)] * 3)
WORKING = st.tuples(*[st.one_of(st.just(0.0), st.floats(0.3, 9.0))] * 3)
GRIDS = st.builds(WorkingGrid, SHAPES, SPACINGS, WORKING)


def _noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def _inside(shape_zyx: Index3, data: st.DataObject) -> Box:
    starts = [data.draw(st.integers(0, n - 1)) for n in shape_zyx]
    stops = [data.draw(st.integers(a + 1, n)) for a, n in zip(starts, shape_zyx, strict=True)]
    return Box.of(starts, stops)


def _cut(array: np.ndarray, box: Box) -> np.ndarray:
    return array[(..., *box.slices)]


@given(GRIDS, st.data())
def test_a_window_of_the_image_is_that_of_the_whole_case_to_the_bit(
    grid: WorkingGrid, data: st.DataObject
) -> None:
    image = _noise((2, *grid.native_zyx))
    native, working = Box.whole(grid.native_zyx), Box.whole(grid.shape_zyx)
    whole = grid.to_working(image, native, working)
    assert whole.shape == (2, *grid.shape_zyx)
    assert whole.dtype == np.float32
    box = _inside(grid.shape_zyx, data)
    read = grid.needed_native(box)
    assert read == read.clipped(native)
    assert np.array_equal(grid.to_working(_cut(image, read), read, box), _cut(whole, box))


@given(GRIDS, st.data())
def test_a_window_of_probabilities_is_that_of_the_whole_case_to_the_bit(
    grid: WorkingGrid, data: st.DataObject
) -> None:
    prob = np.abs(_noise((3, *grid.shape_zyx), 1))
    native, working = Box.whole(grid.native_zyx), Box.whole(grid.shape_zyx)
    whole = grid.to_native(prob, working, native)
    assert whole.shape == (3, *grid.native_zyx)
    box = _inside(grid.native_zyx, data)
    read = grid.needed_working(box)
    assert read == read.clipped(working)
    assert np.array_equal(grid.to_native(_cut(prob, read), read, box), _cut(whole, box))


@given(GRIDS, st.data())
def test_a_window_of_the_label_is_that_of_the_whole_case(
    grid: WorkingGrid, data: st.DataObject
) -> None:
    label = np.random.default_rng(2).integers(0, 5, grid.native_zyx).astype(np.uint8)
    native, working = Box.whole(grid.native_zyx), Box.whole(grid.shape_zyx)
    whole = grid.label_to_working(label, native, working)
    box = _inside(grid.shape_zyx, data)
    read = grid.needed_native(box)
    cut = grid.label_to_working(_cut(label, read), read, box)
    assert cut.dtype == np.uint8
    assert np.array_equal(cut, _cut(whole, box))


@given(GRIDS)
def test_a_constant_stays_and_nothing_leaves_its_range(grid: WorkingGrid) -> None:
    native, working = Box.whole(grid.native_zyx), Box.whole(grid.shape_zyx)
    constant = np.full(grid.native_zyx, 7.25, np.float32)
    there = grid.to_working(constant, native, working)
    assert np.allclose(there, 7.25, rtol=1e-6)
    assert np.allclose(grid.to_native(there, working, native), 7.25, rtol=1e-6)
    noise = _noise(grid.native_zyx)
    back = grid.to_native(grid.to_working(noise, native, working), working, native)
    assert back.min() >= noise.min() - 1e-5
    assert back.max() <= noise.max() + 1e-5


@given(st.floats(0.3, 6.0), st.floats(0.3, 9.0), st.integers(0, 2))
def test_a_ramp_in_millimetres_is_kept_inside(s: float, w: float, axis: int) -> None:
    shape, spacing, working = [2, 2, 2], [1.0] * 3, [0.0] * 3
    shape[axis], spacing[axis], working[axis] = 60, s, w
    grid = WorkingGrid(triple(shape), triple(spacing), triple(working))
    boxes = Box.whole(grid.native_zyx), Box.whole(grid.shape_zyx)
    own = s if grid.ratios[axis] == 1 else w
    ramp = np.broadcast_to(
        np.moveaxis(((np.arange(60) + 0.5) * s)[:, None, None], 0, axis), grid.native_zyx
    ).astype(np.float32)
    there = np.moveaxis(grid.to_working(ramp, *boxes), axis, 0)[:, 0, 0]
    centres = (np.arange(len(there)) + 0.5) * own
    edge = max(s, w) + s
    inside = (centres > edge) & (centres < 60 * s - edge)
    assert np.allclose(there[inside], centres[inside], atol=1e-4 * s * 60)
    back = np.moveaxis(grid.to_native(grid.to_working(ramp, *boxes), *boxes[::-1]), axis, 0)
    centres = (np.arange(60) + 0.5) * s
    inside = (centres > 2 * edge) & (centres < 60 * s - 2 * edge)
    assert np.allclose(back[inside, 0, 0], centres[inside], atol=1e-4 * s * 60)


def test_a_blob_of_many_working_voxels_comes_back_where_it_was() -> None:
    grid = WorkingGrid((40, 90, 80), (2.0, 0.8, 0.8), (3.1, 3.1, 3.1))
    z, y, x = np.ogrid[:40, :90, :80]
    r_mm = np.sqrt((2 * z - 39) ** 2 + (0.8 * y - 36) ** 2 + (0.8 * x - 30) ** 2)
    ball = (r_mm < 22).astype(np.float32)
    boxes = Box.whole(grid.native_zyx), Box.whole(grid.shape_zyx)
    back = grid.to_native(grid.to_working(ball, *boxes), *boxes[::-1])
    reach = 2 * 3.1 * np.sqrt(3)  # there and back, along the diagonal
    assert np.allclose(back[r_mm < 22 - reach], 1, atol=1e-6)
    assert np.allclose(back[r_mm > 22 + reach], 0, atol=1e-6)
    both = 2 * np.sum((back > 0.5) & (ball > 0.5)) / (np.sum(back > 0.5) + ball.sum())
    assert both > 0.97


def test_what_is_finer_than_the_working_grid_is_averaged_away() -> None:
    grid = WorkingGrid((1, 1, 120), (1.0, 1.0, 1.0), (1.0, 1.0, 4.0))
    stripes = np.where(np.arange(120) % 2, 1.0, -1.0).astype(np.float32)[None, None]
    there = grid.to_working(stripes, Box.whole(grid.native_zyx), Box.whole(grid.shape_zyx))
    assert np.abs(there[..., 2:-2]).max() < 0.05


@pytest.mark.parametrize(
    ("shape", "spacing", "working", "expected"),
    [
        ((10, 10, 10), (1.0, 1.0, 1.0), (2.0, 2.0, 3.0), (5, 5, 4)),
        ((10, 10, 10), (0.1, 0.2, 0.3), (1.0, 1.0, 1.0), (1, 2, 3)),
        ((1, 50, 50), (5.0, 1.0, 1.0), (2.0, 2.0, 2.0), (1, 25, 25)),
        ((10, 50, 50), (5.0, 1.0, 1.0), (0.0, 2.0, 0.5), (10, 25, 100)),
        ((3, 3, 3), (1.0, 1.0, 1.0), (90.0, 90.0, 90.0), (1, 1, 1)),
    ],
)
def test_the_working_voxels_just_cover_the_case(
    shape: Index3,
    spacing: tuple[float, float, float],
    working: tuple[float, float, float],
    expected: Index3,
) -> None:
    assert WorkingGrid(shape, spacing, working).shape_zyx == expected


def test_nearly_equal_spacings_are_not_resampled() -> None:
    image = _noise((8, 9, 10))
    near = WorkingGrid((8, 9, 10), (3.0, 0.8, 0.8), (3.0, 0.8 * (1 + SAME * 0.9), 0.8))
    assert near.is_native
    assert WorkingGrid.of((8, 9, 10), (3.0, 0.8, 0.8), None).is_native
    whole = Box.whole(near.native_zyx)
    assert near.to_working(image, whole, whole) is image
    assert near.to_native(image, whole, whole) is image
    assert not WorkingGrid((8, 9, 10), (3.0, 0.8, 0.8), (3.0, 0.82, 0.8)).is_native


def test_a_native_voxel_lies_in_the_working_voxel_that_covers_its_centre() -> None:
    grid = WorkingGrid((10, 10, 10), (1.0, 1.0, 1.0), (2.5, 0.5, 0.0))
    assert grid.working_voxel((0, 0, 0)) == (0, 1, 0)
    assert grid.working_voxel((9, 9, 9)) == (3, 19, 9)
    assert grid.native_edges((4, 4, 4)) == (10, 2, 4)
