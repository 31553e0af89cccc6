"""Distances, offsets and shifts: against brute force, and block by block against the whole."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegclean.errors import ConfigError
from raysegclean.voxels.channels import UNKNOWN
from raysegclean.voxels.contour_offset import boundary_sums, offset_halo_vox
from raysegclean.voxels.geometry import Box, Grid
from raysegclean.voxels.offset_sums import OffsetSums
from raysegclean.voxels.signed_distance import (
    axis_ratios,
    nearest_class,
    shift_halo_vox,
    shift_label,
    signed_distance,
)

SPACINGS = [None, (1.0, 1.0, 1.0), (2.5, 0.7, 0.7), (0.8, 1.1, 3.0)]


def brute_signed_distance(mask, spacing_mm, limit):
    """Every voxel against every voxel of the other side, straight from the definition."""
    ratios = np.array(axis_ratios(spacing_mm))
    where = np.argwhere(np.ones_like(mask)) * ratios
    out = np.empty(mask.shape)
    for index in np.ndindex(mask.shape):
        other = where[(mask != mask[index]).ravel()]
        if len(other) == 0:
            out[index] = limit if mask[index] else -limit
            continue
        distance = np.sqrt(((other - np.array(index) * ratios) ** 2).sum(axis=1)).min() - 0.5
        out[index] = np.clip(distance if mask[index] else -distance, -limit, limit)
    return out


def blobs(seed, shape_zyx, classes=(1, 2)):
    """Random blocky labels: some classes touch, some do not, some voxels stand alone."""
    rng = np.random.default_rng(seed)
    label = np.zeros(shape_zyx, np.uint8)
    for _ in range(int(rng.integers(1, 6))):
        start = [int(rng.integers(0, n)) for n in shape_zyx]
        size = [int(rng.integers(1, 1 + max(1, n // 2))) for n in shape_zyx]
        box = tuple(slice(a, a + b) for a, b in zip(start, size, strict=True))
        label[box] = rng.choice(classes)
    label[rng.random(shape_zyx) < 0.01] = 0
    return label


def ball(radius, shape_zyx, spacing_mm=(1.0, 1.0, 1.0)):
    centre = [(n - 1) / 2 for n in shape_zyx]
    grid = np.indices(shape_zyx, dtype=float)
    return (
        sum(((g - c) * s) ** 2 for g, c, s in zip(grid, centre, spacing_mm, strict=True))
        <= radius**2
    )


def blocks(shape_zyx, shard_zyx, halo_vox):
    """Cut a case: (core, window) in case coordinates, window clipped to the case."""
    grid = Grid(shape_zyx, shard_zyx)
    for index in grid.indices():
        core = grid.box(index)
        yield core, core.grown(halo_vox).clipped(Box.whole(shape_zyx))


@pytest.mark.parametrize("spacing_mm", SPACINGS)
@pytest.mark.parametrize("limit", [1.5, 4.0])
def test_distances_equal_brute_force(spacing_mm, limit):
    for seed in range(5):
        mask = blobs(seed, (5, 9, 8)) > 0
        got = signed_distance(mask, spacing_mm, limit_vox=limit)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, brute_signed_distance(mask, spacing_mm, limit), atol=1e-5)


def test_distance_without_a_limit_clips_no_boundary():
    mask = np.zeros((1, 2, 40), bool)
    mask[..., 0] = True
    assert signed_distance(mask)[0, 0, -1] == pytest.approx(-38.5)


def test_an_empty_mask_is_as_far_as_the_limit_and_a_full_one_as_deep():
    assert (signed_distance(np.zeros((3, 4, 5), bool), limit_vox=4.0) == -4).all()
    assert (signed_distance(np.ones((3, 4, 5), bool), limit_vox=4.0) == 4).all()


def test_the_border_of_the_array_is_not_a_boundary():
    mask = np.zeros((1, 8, 8), bool)
    mask[:, :, :4] = True
    np.testing.assert_array_equal(
        signed_distance(mask, limit_vox=9.0)[0, 5], [3.5, 2.5, 1.5, 0.5, -0.5, -1.5, -2.5, -3.5]
    )


@pytest.mark.parametrize("spacing_mm", [(0.0, 1.0, 1.0), (1.0, float("nan"), 1.0), (1.0, 1.0)])
def test_a_spacing_that_is_not_three_lengths_is_refused(spacing_mm):
    with pytest.raises(ConfigError, match="spacing_mm"):
        signed_distance(np.zeros((2, 2, 2), bool), spacing_mm)


def test_a_mask_without_three_axes_is_refused():
    with pytest.raises(ConfigError, match="axes"):
        signed_distance(np.zeros((2, 2), bool))


def test_the_nearest_class_of_a_class_is_itself_and_far_away_it_is_none():
    label = np.zeros((1, 1, 12), np.uint8)
    label[..., 0:2], label[..., 5] = 1, 2
    got = nearest_class(label, (1, 2), limit_vox=3.0)[0, 0]
    np.testing.assert_array_equal(got, [1, 1, 1, 1, 2, 2, 2, 2, 2, 0, 0, 0])


@pytest.mark.parametrize("grow", [1, 2, 3])
def test_the_offset_of_a_larger_ball_is_the_difference_of_radii(grow):
    given, predicted = (ball(r, (31, 31, 31)).astype(np.uint8) for r in (8 + grow, 8))
    core = Box.whole((31, 31, 31))
    sums = boundary_sums(given, predicted, classes=(1,), core=core)
    assert sums.mean_vox(1) == pytest.approx(grow, abs=0.35)
    assert sums.spread_vox(1) < 0.5
    back = boundary_sums(predicted, given, classes=(1,), core=core)
    assert back.mean_vox(1) == pytest.approx(-grow, abs=0.35)


def test_an_outline_that_ends_in_ignored_voxels_is_not_measured_there():
    predicted, given = np.zeros((9, 24, 24), np.uint8), np.zeros((9, 24, 24), np.uint8)
    predicted[:, 6:18, 6:18], given[:, 6:18, 6:19] = 1, 1  # one voxel too large at one side
    core = Box.whole(given.shape)
    before = boundary_sums(given, predicted, classes=(1,), core=core)
    for label in (given, predicted):
        label[:, :, :12] = UNKNOWN
    after = boundary_sums(given, predicted, classes=(1,), core=core)
    # Three of four sides are right, then two halves and none: the wrong side weighs more.
    assert after.mean_vox(1) > 1.4 * before.mean_vox(1)
    assert after.boundary_vox(1) < 0.6 * before.boundary_vox(1)
    for label in (given, predicted):
        label[:] = np.where(label == 1, UNKNOWN, label)
    assert boundary_sums(given, predicted, classes=(1,), core=core).boundary_vox(1) == 0


def test_each_class_has_its_own_offset_and_interfaces_take_no_part():
    predicted = np.zeros((12, 20, 30), np.uint8)
    predicted[3:9, 5:15, 4:14], predicted[3:9, 5:15, 14:26] = 1, 2
    given = predicted.copy()
    given[3:9, 5:15, 12:14] = 2  # interface moved by two voxels: no offset
    given[2, 5:15, 18:26] = 2  # class 2 one slice thicker at one end
    sums = boundary_sums(given, predicted, classes=(1, 2), core=Box.whole((12, 20, 30)))
    assert abs(sums.mean_vox(1)) < 0.02
    assert 0.05 < sums.mean_vox(2) < 1.0
    assert sums.boundary_vox(1, 2) == sums.boundary_vox(1) + sums.boundary_vox(2)


def test_an_object_that_nobody_labelled_does_not_move_the_offset():
    given, predicted = (ball(r, (31, 31, 60)).astype(np.uint8) for r in (9, 7))
    alone = boundary_sums(given, predicted, classes=(1,), core=Box.whole(given.shape))
    predicted[10:20, 10:20, 50:58] = 1
    sums = boundary_sums(given, predicted, classes=(1,), core=Box.whole(given.shape))
    assert sums.boundary_vox(1) > alone.boundary_vox(1) + 400
    assert sums.mean_vox(1) == alone.mean_vox(1)
    assert sums.spread_vox(1) == alone.spread_vox(1)
    assert sums.roughness_vox(1) == alone.roughness_vox(1)


def test_a_label_that_lies_elsewhere_has_no_offset():
    given, predicted = np.zeros((2, 12, 12, 40), np.uint8)
    given[3:9, 3:9, 3:9], predicted[3:9, 3:9, 30:36] = 1, 1
    sums = boundary_sums(given, predicted, classes=(1,), core=Box.whole(given.shape))
    assert sums.boundary_vox(1) > 0
    assert np.isnan(sums.mean_vox(1)) and np.isnan(sums.roughness_vox(1))


def test_nothing_predicted_is_nothing_measured():
    given = blobs(1, (4, 6, 6))
    sums = boundary_sums(given, np.zeros_like(given), classes=(1, 2), core=Box.whole((4, 6, 6)))
    assert sums.boundary_vox(1, 2) == 0
    assert np.isnan(sums.mean_vox(1)) and np.isnan(sums.spread_vox(1, 2))
    assert sums.merge(OffsetSums.zero((1, 2))) == sums


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    shape=st.tuples(st.integers(1, 9), st.integers(3, 17), st.integers(3, 17)),
    shard=st.tuples(st.integers(2, 9), st.integers(3, 9), st.integers(3, 9)),
    spacing_mm=st.sampled_from(SPACINGS),
    limit=st.sampled_from([2.0, 3.3, 5.0]),
)
def test_offsets_of_blocks_merge_to_those_of_the_case(seed, shape, shard, spacing_mm, limit):
    given_zyx, predicted_zyx = blobs(seed, shape), blobs(seed + 1, shape)
    kwargs = {"classes": (1, 2), "limit_vox": limit, "spacing_mm": spacing_mm}
    whole = boundary_sums(given_zyx, predicted_zyx, core=Box.whole(shape), **kwargs)
    merged = OffsetSums.zero((1, 2))
    for core, window in blocks(shape, shard, offset_halo_vox(spacing_mm, limit)):
        part = boundary_sums(
            given_zyx[window.slices],
            predicted_zyx[window.slices],
            core=core.relative_to(window),
            **kwargs,
        )
        merged = part.merge(merged)
    assert merged == whole


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    shape=st.tuples(st.integers(1, 9), st.integers(3, 17), st.integers(3, 17)),
    shard=st.tuples(st.integers(2, 9), st.integers(3, 9), st.integers(3, 9)),
    spacing_mm=st.sampled_from(SPACINGS),
    shifts=st.tuples(*[st.sampled_from([-3.0, -1.2, -0.8, 0.0, 0.6, 0.8, 1.7])] * 2),
)
def test_blocks_are_shifted_like_the_case(seed, shape, shard, spacing_mm, shifts):
    label = blobs(seed, shape)
    amount = dict(zip((1, 2), shifts, strict=True))
    whole = shift_label(label, amount, classes=(1, 2), spacing_mm=spacing_mm)
    out = np.full_like(label, 255)
    for core, window in blocks(shape, shard, shift_halo_vox(amount, spacing_mm)):
        part = shift_label(label[window.slices], amount, classes=(1, 2), spacing_mm=spacing_mm)
        out[core.slices] = part[core.relative_to(window).slices]
    np.testing.assert_array_equal(out, whole)


def test_a_shift_equals_its_definition_voxel_by_voxel():
    for seed, spacing_mm in product(range(4), SPACINGS):
        label = blobs(seed, (4, 8, 9))
        shift = {1: 0.9, 2: -1.3}
        phi = brute_signed_distance(label > 0, spacing_mm, 50.0)
        by_class = np.stack([brute_signed_distance(label == c, spacing_mm, 50.0) for c in (1, 2)])
        nearest = 1 + by_class.argmax(axis=0)
        expected = np.where(phi - np.where(nearest == 1, 0.9, -1.3) > 0, nearest, 0)
        if not (label > 0).any():
            expected[:] = 0
        got = shift_label(label, shift, classes=(1, 2), spacing_mm=spacing_mm)
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("shift", [-3.0, -2.0, 2.0, 3.0])
def test_a_shifted_ball_is_a_ball_of_another_radius(shift):
    label = ball(10, (33, 33, 33)).astype(np.uint8)
    got = shift_label(label, {1: shift}, classes=(1,)) > 0
    expected = ball(10 - shift, (33, 33, 33))
    assert 2 * (got & expected).sum() / (got.sum() + expected.sum()) > 0.93
    assert abs(np.cbrt(got.sum() * 3 / (4 * np.pi)) - (10 - shift)) < 0.5


def test_a_shift_undoes_dilation_and_keeps_the_interface():
    label = np.zeros((14, 14, 24), np.uint8)
    label[4:10, 4:10, 4:12], label[4:10, 4:10, 12:20] = 1, 2
    wider = shift_label(label, {1: -0.8, 2: -0.8}, classes=(1, 2))
    assert (wider == 1)[:, :, 12:].sum() == 0 and (wider == 2)[:, :, :12].sum() == 0
    assert (wider > 0).sum() > (label > 0).sum()
    np.testing.assert_array_equal(shift_label(wider, {1: 0.8, 2: 0.8}, classes=(1, 2)), label)


def test_thick_slices_are_shifted_in_their_plane_first():
    label = np.zeros((5, 15, 15), np.uint8)
    label[1:4, 4:11, 4:11] = 1
    got = shift_label(label, {1: 1.0}, classes=(1,), spacing_mm=(5.0, 1.0, 1.0))
    assert (got[1:4].sum(axis=(1, 2)) == 25).all()


def test_a_single_slice_is_shifted_in_its_plane():
    label = np.zeros((1, 15, 15), np.uint8)
    label[0, 4:11, 4:11] = 3
    assert (shift_label(label, {3: 0.8}, classes=(3,)) > 0).sum() == 25
    assert (shift_label(label, {3: -0.8}, classes=(3,)) > 0).sum() == 49 + 4 * 7


def test_values_that_are_no_class_are_left_alone():
    label = np.zeros((1, 9, 9), np.uint8)
    label[0, 3:6, 3:6], label[0, 3:6, 6] = 1, 9
    got = shift_label(label, {1: -0.8}, classes=(1,))
    np.testing.assert_array_equal(got == 9, label == 9)
    assert (got == 1).sum() > (label == 1).sum()


def test_no_shift_copies_and_bad_shifts_are_refused():
    label = blobs(3, (3, 5, 5))
    same = shift_label(label, {1: 0.0}, classes=(1, 2))
    np.testing.assert_array_equal(same, label)
    assert same is not label
    with pytest.raises(ConfigError, match="finite"):
        shift_label(label, {1: float("nan")}, classes=(1, 2))
    with pytest.raises(ConfigError, match="classes"):
        shift_label(label, {7: 1.0}, classes=(1, 2))
    with pytest.raises(ConfigError, match="at least 2"):
        boundary_sums(label, label, classes=(1,), core=Box.whole((3, 5, 5)), limit_vox=1.0)
