"""Samples of features: the same for any cut and order, and blind to the label of a voxel."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from raysegclean.evidence.second_pass import PredictedBlock
from raysegclean.methods.transition.reservoir import FeatureLook, band_halo_vox, depth_bands
from raysegclean.voxels.geometry import Box, Grid
from raysegclean.voxels.hashing import position_hash

SPACINGS = [(1.0, 1.0, 1.0), (2.5, 0.7, 0.7), (4.0, 0.9, 0.9)]


def scene(seed, shape=(9, 26, 30)):
    """Return a label of three classes in large patches, and features that name each voxel."""
    rng = np.random.default_rng(seed)
    smooth = [ndimage.gaussian_filter(rng.normal(0, 1, shape), 4) for _ in range(3)]
    label = np.argmax(smooth, axis=0).astype(np.uint8)
    return label, np.stack(np.indices(shape)).astype(np.float32)


def blocks(label, features, shard, look, spacing_mm):
    grid = Grid(label.shape, shard)
    for index in grid.indices():
        core = grid.box(index)
        window = core.grown(look.halo_vox(spacing_mm)).clipped(Box.whole(label.shape))
        yield PredictedBlock(
            case="a",
            window=window,
            core=core.relative_to(window),
            given_zyx=label[window.slices],
            trusted_zyx=None,
            prob_czyx=np.zeros((3, *window.shape_zyx), np.float32),
            features_fzyx=features[(slice(None), *window.slices)],
            spacing_mm=spacing_mm,
        )


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1000),
    shard=st.tuples(st.integers(3, 9), st.integers(6, 14), st.integers(6, 14)),
    spacing_mm=st.sampled_from(SPACINGS),
    limit=st.sampled_from([1, 40, 10**6]),
)
def test_the_sample_does_not_depend_on_the_cut_or_the_order(seed, shard, spacing_mm, limit):
    label, features = scene(seed)
    look = FeatureLook(limit)
    (one,) = blocks(label, features, label.shape, look, spacing_mm)
    expected = look.look(one, {})
    parts = [look.look(block, {}) for block in blocks(label, features, shard, look, spacing_mm)]
    for order in (parts, parts[::-1]):
        merged = order[0]
        for part in order[1:]:
            merged = look.merge(merged, part)
        for name, array in expected.items():
            np.testing.assert_array_equal(merged[name], array)
            assert merged[name].dtype == array.dtype


def test_every_row_is_a_voxel_with_its_own_features_label_and_band():
    label, features = scene(3)
    look = FeatureLook(50)
    (block,) = blocks(label, features, label.shape, look, SPACINGS[0])
    found = look.look(block, {})
    z, y, x = found["features"].astype(int).T
    np.testing.assert_array_equal(found["given"], label[z, y, x])
    np.testing.assert_array_equal(found["hashes"], position_hash("a", z, y, x))
    bands = depth_bands(label, SPACINGS[0])
    np.testing.assert_array_equal(found["band"], bands[z, y, x])
    sizes = np.bincount(found["band"], minlength=4)
    np.testing.assert_array_equal(sizes, np.minimum(np.bincount(bands.ravel(), minlength=4), 50))
    everywhere = position_hash("a", *np.indices(label.shape))
    for band in range(4):
        lowest = np.sort(everywhere[bands == band])[: sizes[band]]
        np.testing.assert_array_equal(np.sort(found["hashes"][found["band"] == band]), lowest)


def test_features_beyond_half_precision_keep_their_direction() -> None:
    label, _ = scene(3)
    features = np.full((2, *label.shape), -9e4, np.float32)
    features[1] = np.inf
    look = FeatureLook(5)
    (block,) = blocks(label, features, label.shape, look, SPACINGS[0])
    found = look.look(block, {})["features"]
    assert np.isfinite(found).all()
    assert (found[:, 0] < -6e4).all()
    assert (found[:, 1] > 6e4).all()


def test_the_sample_holds_labels_as_often_as_the_band_does():
    rng = np.random.default_rng(0)
    label = (rng.random((20, 60, 60)) < 0.2).astype(np.uint8)
    look = FeatureLook(4000)
    (block,) = blocks(label, np.zeros((1, *label.shape)), label.shape, look, SPACINGS[0])
    found = look.look(block, {})
    shallow = label[depth_bands(label, SPACINGS[0]) == 0].mean()
    assert found["given"][found["band"] == 0].mean() == pytest.approx(shallow, abs=0.02)


@pytest.mark.parametrize("spacing_mm", SPACINGS)
def test_bands_are_depths_in_mm_by_brute_force(spacing_mm):
    label, _ = scene(5, (6, 12, 14))
    places = np.indices(label.shape).reshape(3, -1).T * np.array(spacing_mm)
    flat = label.ravel()
    unit = min(spacing_mm)
    for row in range(0, len(flat), 37):
        other = places[flat != flat[row]]
        depth = np.sqrt(((other - places[row]) ** 2).sum(axis=1)).min() - unit / 2
        expected = int(np.searchsorted([1.0, 3.0, 8.0], depth, side="right"))
        if min(abs(depth - edge) for edge in (1.0, 3.0, 8.0)) > 0.1:
            assert depth_bands(label, spacing_mm).ravel()[row] == expected


def test_a_label_of_one_class_is_deep_everywhere():
    label = np.zeros((4, 5, 6), np.uint8)
    assert (depth_bands(label, (1.0, 1.0, 1.0)) == 3).all()
    assert band_halo_vox((4.0, 1.0, 0.5)) == (2, 8, 16)


def test_hashes_of_a_case_are_all_different_and_other_in_another_case():
    first = position_hash("a", *np.indices((8, 9, 10)))
    assert len(np.unique(first)) == first.size
    assert not (first == position_hash("b", *np.indices((8, 9, 10)))).any()
    np.testing.assert_array_equal(first[3], position_hash("a", np.array(3), *np.indices((9, 10))))
