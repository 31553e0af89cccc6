"""The voxel corrector: blocks equal the case, rows do not depend on the cut, and it learns."""

from dataclasses import replace
from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegclean.evidence.second_pass import PredictedBlock, with_unknown_filled
from raysegclean.policy import corrector as module
from raysegclean.policy.corrector import (
    CorrectorReviser,
    CorrectorRows,
    RowsLook,
    band_features,
    corrector_halo_vox,
    fit_corrector,
    sample_rows,
)
from raysegclean.voxels.channels import UNKNOWN
from raysegclean.voxels.geometry import Box, Grid
from raysegclean.voxels.hashing import position_hash

ISOTROPIC = (1.0, 1.0, 1.0)
SPACINGS = [ISOTROPIC, (2.5, 0.7, 0.7)]
OFFSET_VOX = -1.0


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


def whole(label, prob, spacing_mm=ISOTROPIC, truth=None, case="a"):
    """Return a case as one block, as the engine hands it to looks and revisers."""
    box = Box.whole(label.shape)
    return PredictedBlock(case, box, box, label, truth, prob, None, spacing_mm)


def cut(case, shard_zyx):
    """Yield (core in the case, block) of a case that is one block."""
    grid = Grid(case.given_zyx.shape, shard_zyx)
    for index in grid.indices():
        core = grid.box(index)
        window = core.grown(corrector_halo_vox(case.spacing_mm)).clipped(case.window)
        yield (
            core,
            replace(
                case,
                window=window,
                core=core.relative_to(window),
                given_zyx=case.given_zyx[window.slices],
                trusted_zyx=None if case.trusted_zyx is None else case.trusted_zyx[window.slices],
                prob_czyx=case.prob_czyx[(slice(None), *window.slices)],
            ),
        )


def rows_of(seed, **kwargs):
    truth, label, prob = scene(seed, **kwargs)
    return sample_rows(whole(label, prob, truth=truth, case=f"case{seed}"), OFFSET_VOX)


def merged(rows):
    return reduce(CorrectorRows.merge, rows)


@pytest.fixture(scope="module")
def corrector():
    return fit_corrector(merged(rows_of(seed) for seed in range(3)))


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 100),
    shape=st.tuples(st.integers(1, 14), st.integers(10, 30), st.integers(10, 30)),
    shard=st.tuples(st.integers(4, 9), st.integers(6, 12), st.integers(6, 12)),
    spacing_mm=st.sampled_from(SPACINGS),
)
def test_blocks_are_corrected_like_the_case(corrector, seed, shape, shard, spacing_mm):
    _, label, prob = scene(seed, shape)
    case = whole(label, prob, spacing_mm)
    expected = corrector.apply(case, OFFSET_VOX)
    features, band = band_features(case, OFFSET_VOX)
    table = np.zeros((*shape, features.shape[1]), np.float32)
    table[band] = features
    out = np.full_like(label, 255)
    for core, block in cut(case, shard):
        mine, mask = band_features(block, OFFSET_VOX)
        np.testing.assert_array_equal(mask, band[core.slices])
        np.testing.assert_array_equal(mine, table[core.slices][mask])
        out[core.slices] = corrector.apply(block, OFFSET_VOX)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("limit", [10, 500, 10**6])
def test_training_rows_do_not_depend_on_the_cut_or_the_order(limit):
    truth, label, prob = scene(5)
    case = whole(label, prob, truth=truth)
    expected = sample_rows(case, OFFSET_VOX, limit)
    parts = [sample_rows(block, OFFSET_VOX, limit) for _, block in cut(case, (5, 11, 9))]
    for order in (parts, parts[::-1]):
        rows = merged(order)
        assert len(rows) == min(limit, len(expected))
        np.testing.assert_array_equal(rows.hashes, expected.hashes)
        np.testing.assert_array_equal(rows.features, expected.features)
        np.testing.assert_array_equal(rows.targets, expected.targets)


@pytest.mark.parametrize("limit", [300, 10**6])
def test_the_second_look_samples_the_same_rows_and_counts_for_any_cut_and_order(limit):
    truth, label, prob = scene(5)
    look, values = RowsLook(limit), {"offset_vox": OFFSET_VOX}
    assert look.halo_vox(ISOTROPIC) == corrector_halo_vox(ISOTROPIC)
    case = whole(label, prob, truth=truth)
    expected = look.look(case, values)
    assert expected["both_vox"] == ((label > 0) & (truth > 0)).sum()
    assert expected["sum_vox"] == (label > 0).sum() + (truth > 0).sum()
    parts = [look.look(block, values) for _, block in cut(case, (5, 11, 9))]
    for order in (parts, parts[::-1]):
        answer = reduce(look.merge, order)
        assert set(answer) == set(expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(answer[name], array)


def test_the_reviser_that_travelled_as_text_corrects_blocks_as_the_trees_correct_the_case(
    corrector,
):
    rows = [rows_of(seed) for seed in range(3)]
    reviser = CorrectorReviser.of(rows[2].merge(rows[0]).merge(rows[1]))
    _, label, prob = scene(71)
    case, out = whole(label, prob), np.full_like(label, 255)
    for core, block in cut(case, (6, 10, 12)):
        out[core.slices] = reviser.revise(block, {"offset_vox": OFFSET_VOX})
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(out, corrector.apply(case, OFFSET_VOX))


def test_it_learns_from_three_cases_to_undo_an_erosion(corrector):
    for seed in (50, 51):
        truth, label, prob = scene(seed)
        corrected = corrector.apply(whole(label, prob), OFFSET_VOX)
        before, after = (label != truth).mean(), (corrected != truth).mean()
        assert after < 0.35 * before
        assert after < (prob.argmax(axis=0) != truth).mean()


def test_unsure_voxels_keep_the_given_label(corrector, monkeypatch):
    _, label, prob = scene(60)
    changed = []
    for least in (0.5, 0.9, 1.1):
        monkeypatch.setattr(module, "_MIN_CONFIDENCE", least)
        changed.append((corrector.apply(whole(label, prob), OFFSET_VOX) != label).sum())
    assert changed[0] > changed[1] > changed[2] == 0


def test_it_fits_the_same_trees_whatever_the_order_of_the_cases(corrector):
    _, label, prob = scene(70)
    again = fit_corrector(merged(rows_of(seed) for seed in (2, 1, 0)))
    np.testing.assert_array_equal(
        again.apply(whole(label, prob), OFFSET_VOX),
        corrector.apply(whole(label, prob), OFFSET_VOX),
    )


def test_a_case_with_neither_label_nor_prediction_is_left_alone(corrector):
    label = np.zeros((4, 8, 8), np.uint8)
    prob = np.stack([np.full(label.shape, v, np.float32) for v in (0.9, 0.05, 0.05)])
    assert (corrector.apply(whole(label, prob), float("nan")) == 0).all()


def test_two_classes_and_many_classes_have_features():
    rng = np.random.default_rng(0)
    for channels in (2, 6):
        label = rng.integers(0, channels, (3, 9, 9)).astype(np.uint8)
        prob = rng.dirichlet(np.ones(channels), label.shape).transpose(3, 0, 1, 2)
        features, band = band_features(whole(label, prob.astype(np.float32)), OFFSET_VOX)
        assert features.shape[0] == band.sum() and np.isfinite(features).all()


def test_ignored_voxels_teach_nothing_and_outlines_run_on_through_them():
    truth, label, prob = scene(4)
    ignored = np.zeros(label.shape, np.bool_)
    ignored[:, :, :13] = True
    marked = np.where(ignored, UNKNOWN, label).astype(np.uint8)
    block = with_unknown_filled(whole(marked, prob, truth=truth))
    assert np.array_equal(block.given_zyx[ignored], prob.argmax(axis=0)[ignored])
    assert np.array_equal(block.given_zyx[~ignored], label[~ignored])
    answer = RowsLook(10**6).look(block, {"offset_vox": OFFSET_VOX})
    _, band = band_features(block, OFFSET_VOX)
    assert len(answer["hashes"]) == len(answer["features"]) == (band & ~ignored).sum()
    assert np.array_equal(answer["targets"][np.argsort(answer["hashes"])], _targets(block, truth))
    assert answer["sum_vox"] == (label > 0)[~ignored].sum() + (truth > 0)[~ignored].sum()
    untouched = whole(label, prob, truth=truth)
    assert with_unknown_filled(untouched) is untouched


def _targets(block, truth):
    """Return the truth of the known voxels of the band, by hash of their position."""
    _, band = band_features(block, OFFSET_VOX)
    where = np.argwhere(band & block.known_zyx).astype(np.int64)
    return truth[tuple(where.T)][np.argsort(position_hash(block.case, *where.T))]
