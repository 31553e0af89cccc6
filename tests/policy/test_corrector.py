"""The voxel corrector: blocks equal the case, rows do not depend on the cut, and it learns."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegclean.errors import ConfigError, InputError
from raysegclean.evidence.second_pass import PredictedBlock
from raysegclean.policy.corrector import (
    CorrectorBlock,
    CorrectorReviser,
    CorrectorRows,
    RowsLook,
    band_features,
    corrector_halo_vox,
    fit_corrector,
    sample_rows,
)
from raysegclean.voxels.geometry import Box, Grid

SPACINGS = [None, (2.5, 0.7, 0.7)]


def scene(seed, shape_zyx=(12, 24, 26)):
    """A truth of two touching classes, a label that lacks its rim, and blurred probabilities."""
    rng = np.random.default_rng(seed)
    grid = np.indices(shape_zyx, dtype=float)
    centre = [n / 2 + rng.uniform(-1, 1) for n in shape_zyx]
    radius = [0.36 * n for n in shape_zyx]
    inside = sum(((g - c) / max(r, 0.8)) ** 2 for g, c, r in zip(grid, centre, radius, strict=True))
    truth = np.where(inside <= 1, np.where(grid[2] < centre[2], 1, 2), 0).astype(np.uint8)
    label = np.where(inside <= 0.7, truth, 0).astype(np.uint8)
    odds = np.stack([np.zeros(shape_zyx)] + [np.where(truth == c, 3.0, -3.0) for c in (1, 2)])
    odds = odds + rng.normal(0, 2.0, odds.shape)
    prob = np.exp(odds) / np.exp(odds).sum(axis=0)
    return truth, label, prob.astype(np.float32)


def whole(label, prob, spacing_mm=None, offset=-1.0):
    return CorrectorBlock(label, prob, Box.whole(label.shape), offset, spacing_mm)


def cut(label, prob, shard_zyx, spacing_mm=None):
    """Yield (core in the case, window in the case, block)."""
    grid = Grid(label.shape, shard_zyx)
    for index in grid.indices():
        core = grid.box(index)
        window = core.grown(corrector_halo_vox(spacing_mm)).clipped(Box.whole(label.shape))
        part = (slice(None), *window.slices)
        yield (
            core,
            window,
            CorrectorBlock(
                label[window.slices], prob[part], core.relative_to(window), -1.0, spacing_mm
            ),
        )


def rows_of(seed, **kwargs):
    truth, label, prob = scene(seed, **kwargs)
    return sample_rows(whole(label, prob), truth, case=f"case{seed}", window=Box.whole(label.shape))


@pytest.fixture(scope="module")
def corrector():
    return fit_corrector([rows_of(seed) for seed in range(3)])


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 100),
    shape=st.tuples(st.integers(1, 14), st.integers(10, 30), st.integers(10, 30)),
    shard=st.tuples(st.integers(4, 9), st.integers(6, 12), st.integers(6, 12)),
    spacing_mm=st.sampled_from(SPACINGS),
)
def test_blocks_are_corrected_like_the_case(corrector, seed, shape, shard, spacing_mm):
    _, label, prob = scene(seed, shape)
    expected = corrector.apply(whole(label, prob, spacing_mm))
    features, band = band_features(whole(label, prob, spacing_mm))
    table = np.zeros((*shape, features.shape[1]), np.float32)
    table[band] = features
    out = np.full_like(label, 255)
    for core, _, block in cut(label, prob, shard, spacing_mm):
        mine, mask = band_features(block)
        np.testing.assert_array_equal(mask, band[core.slices])
        np.testing.assert_array_equal(mine, table[core.slices][mask])
        out[core.slices] = corrector.apply(block)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("limit", [10, 500, 10**6])
def test_training_rows_do_not_depend_on_the_cut_or_the_order(limit):
    truth, label, prob = scene(5)
    expected = sample_rows(
        whole(label, prob), truth, case="a", window=Box.whole(label.shape), limit=limit
    )
    parts = [
        sample_rows(block, truth[window.slices], case="a", window=window, limit=limit)
        for _, window, block in cut(label, prob, (5, 11, 9))
    ]
    for order in (parts, parts[::-1]):
        merged = order[0]
        for part in order[1:]:
            merged = merged.merge(part)
        assert len(merged) == min(limit, len(expected))
        np.testing.assert_array_equal(merged.hashes, expected.hashes)
        np.testing.assert_array_equal(merged.features, expected.features)
        np.testing.assert_array_equal(merged.targets, expected.targets)


def voter_blocks(label, prob, truth, shard_zyx):
    """Yield (core in the case, block) as the engine hands them to looks and revisers."""
    for core, window, block in cut(label, prob, shard_zyx):
        yield (
            core,
            PredictedBlock(
                case="a",
                window=window,
                core=block.core,
                given_zyx=block.given_zyx,
                trusted_zyx=truth[window.slices],
                prob_czyx=block.prob_czyx,
                features_fzyx=None,
                spacing_mm=(1.0, 1.0, 1.0),
            ),
        )


@pytest.mark.parametrize("limit", [300, 10**6])
def test_the_second_look_samples_the_same_rows_and_counts_for_any_cut_and_order(limit):
    truth, label, prob = scene(5)
    look, values = RowsLook(limit), {"offset_vox": -1.0}
    assert look.halo_vox((1.0, 1.0, 1.0)) == corrector_halo_vox()
    ((_, one),) = voter_blocks(label, prob, truth, label.shape)
    expected = look.look(one, values)
    assert expected["both_vox"] == ((label > 0) & (truth > 0)).sum()
    assert expected["sum_vox"] == (label > 0).sum() + (truth > 0).sum()
    parts = [look.look(block, values) for _, block in voter_blocks(label, prob, truth, (5, 11, 9))]
    for order in (parts, parts[::-1]):
        merged = order[0]
        for part in order[1:]:
            merged = look.merge(merged, part)
        assert set(merged) == set(expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(merged[name], array)


def test_the_reviser_that_travelled_as_text_corrects_blocks_as_the_trees_correct_the_case(
    corrector,
):
    rows = [rows_of(seed) for seed in range(3)]
    reviser = CorrectorReviser.of(rows[2].merge(rows[0]).merge(rows[1]))
    truth, label, prob = scene(71)
    out = np.full_like(label, 255)
    for core, block in voter_blocks(label, prob, truth, (6, 10, 12)):
        out[core.slices] = reviser.revise(block, {"offset_vox": -1.0})
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(out, corrector.apply(whole(label, prob, (1.0, 1.0, 1.0))))


def test_it_learns_from_three_cases_to_undo_an_erosion(corrector):
    for seed in (50, 51):
        truth, label, prob = scene(seed)
        corrected = corrector.apply(whole(label, prob))
        before, after = (label != truth).mean(), (corrected != truth).mean()
        assert after < 0.35 * before
        assert after < (prob.argmax(axis=0) != truth).mean()


def test_unsure_voxels_keep_the_given_label(corrector):
    _, label, prob = scene(60)
    block = whole(label, prob)
    changed = (corrector.apply(block) != label).sum()
    assert 0 < (corrector.apply(block, min_confidence=0.9) != label).sum() < changed
    assert (corrector.apply(block, min_confidence=1.1) == label).all()


def test_it_fits_the_same_trees_in_any_order_and_after_storage(corrector):
    rows = [rows_of(seed) for seed in range(3)]
    stored = [CorrectorRows.from_bytes(r.to_bytes()) for r in rows[::-1]]
    _, label, prob = scene(70)
    again = fit_corrector(stored).apply(whole(label, prob))
    np.testing.assert_array_equal(again, corrector.apply(whole(label, prob)))


def test_a_case_with_neither_label_nor_prediction_is_left_alone(corrector):
    label = np.zeros((4, 8, 8), np.uint8)
    prob = np.stack([np.full(label.shape, v, np.float32) for v in (0.9, 0.05, 0.05)])
    assert (corrector.apply(whole(label, prob, offset=float("nan"))) == 0).all()


def test_bad_input_is_refused_with_a_reason():
    _, label, prob = scene(1)
    with pytest.raises(ConfigError, match="do not fit"):
        whole(label[1:], prob)
    with pytest.raises(ConfigError, match="two classes"):
        fit_corrector([])
    with pytest.raises(InputError, match="unreadable"):
        CorrectorRows.from_bytes(b"nothing")
    binary = np.stack([prob[0], 1 - prob[0]])
    label2 = np.minimum(label, 1)
    other = sample_rows(whole(label2, binary), label2, case="b", window=Box.whole(label.shape))
    with pytest.raises(ConfigError, match="different classes"):
        rows_of(1).merge(other)


def test_two_classes_and_many_classes_have_features():
    rng = np.random.default_rng(0)
    for channels in (2, 6):
        label = rng.integers(0, channels, (3, 9, 9)).astype(np.uint8)
        prob = rng.dirichlet(np.ones(channels), label.shape).transpose(3, 0, 1, 2)
        features, band = band_features(whole(label, prob.astype(np.float32)))
        assert features.shape[0] == band.sum() and np.isfinite(features).all()
