"""Spatial Correction: balls move by their bias, classes compete, blocks equal the case."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegclean.evidence.case_scores import CaseScore, ClassScore
from raysegclean.evidence.second_pass import PredictedBlock
from raysegclean.methods.spatial.bias import (
    BiasReviser,
    ShellLook,
    label_bias_mm,
    margin,
    prediction_bias_mm,
    shell_heights,
)
from raysegclean.policy.params import PolicyParams
from raysegclean.voxels.geometry import Box, Grid

UNIT = (1.0, 1.0, 1.0)
SPACINGS = [UNIT, (2.5, 0.7, 0.7), (0.8, 0.8, 1.6)]


def block_of(prob, core=None, window=None, spacing_mm=UNIT):
    shape = prob.shape[1:]
    return PredictedBlock(
        case="a",
        window=window or Box.whole(shape),
        core=core or Box.whole(shape),
        given_zyx=np.zeros(shape, np.uint8),
        trusted_zyx=None,
        prob_czyx=prob,
        features_fzyx=None,
        spacing_mm=spacing_mm,
    )


def cut(prob, shard, halo, spacing_mm):
    """Yield (core in the case, block with halo)."""
    shape = prob.shape[1:]
    grid = Grid(shape, shard)
    for index in grid.indices():
        core = grid.box(index)
        window = core.grown(halo).clipped(Box.whole(shape))
        part = np.ascontiguousarray(prob[(slice(None), *window.slices)])
        yield core, block_of(part, core.relative_to(window), window, spacing_mm)


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=0))
    return (powers / powers.sum(axis=0)).astype(np.float32)


def balls(shape, *centres_and_radii, slope=1.0):
    """Return probabilities whose log-odds fall linearly with the distance to each ball."""
    grid = np.indices(shape, dtype=float)
    depths = [
        radius - np.sqrt(sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)))
        for centre, radius in centres_and_radii
    ]
    return softmax(np.stack([np.zeros(shape), *(slope * depth for depth in depths)]))


def corrected(prob, delta_mm, height="p95", spacing_mm=UNIT):
    """Return the corrected label of a case in one block."""
    one = block_of(prob, spacing_mm=spacing_mm)
    b = shell_heights(ShellLook(delta_mm).look(one, {}), height)
    return BiasReviser(delta_mm).revise(one, {"height": b}), b


def radius_of(label, value=1):
    return (3 * (label == value).sum() / (4 * math.pi)) ** (1 / 3)


@pytest.mark.parametrize("delta", [-5.0, -3.0, -2.0, 2.0, 3.0, 5.0])
@pytest.mark.parametrize("height", ["p95", "max"])
def test_a_ball_shrinks_or_grows_by_about_its_bias(delta, height):
    label, _ = corrected(balls((48, 48, 48), ((24, 24, 24), 14)), (0.0, delta), height)
    # Where margins grow linearly the new boundary solves x = exp(-x^2 / 2), x = .753 delta.
    assert radius_of(label) == pytest.approx(14 + 0.753 * delta, abs=0.4)


def test_a_bias_in_mm_means_the_same_in_cases_of_other_voxels():
    grid = np.indices((24, 48, 48), dtype=float) * np.array([2.0, 1, 1])[:, None, None, None]
    depth = 14 - np.sqrt(((grid - 24) ** 2).sum(axis=0))
    prob = softmax(np.stack([0 * depth, depth]))
    label, _ = corrected(prob, (0.0, -3.0), spacing_mm=(2.0, 1.0, 1.0))
    assert radius_of(np.repeat(label, 2, axis=0)) == pytest.approx(14 - 0.753 * 3, abs=0.5)


def test_less_than_half_a_voxel_moves_nothing():
    prob = balls((20, 20, 20), ((10, 10, 10), 6))
    label, b = corrected(prob, (0.0, -0.49))
    assert b == [0.0, 0.0]
    np.testing.assert_array_equal(label, prob.argmax(axis=0))
    label, _ = corrected(prob, (0.0, -0.9), spacing_mm=(2.0, 2.0, 2.0))
    np.testing.assert_array_equal(label, prob.argmax(axis=0))


def test_an_empty_shell_is_left_alone():
    prob = np.stack([np.full((4, 6, 6), v, np.float32) for v in (0.7, 0.3)])
    label, b = corrected(prob, (0.0, -2.0))
    assert b == [0.0, 0.0]
    assert not label.any()


def test_two_balls_that_grow_meet_between_them_and_do_not_overlap():
    pair = [((16, 16, 12), 7), ((16, 16, 27), 7)]
    both = balls((32, 32, 40), *pair)
    label, _ = corrected(both, (0.0, 5.0, 5.0))
    for value, centre in ((1, pair[0]), (2, pair[1])):
        before = (both.argmax(axis=0) == value).sum()
        alone, _ = corrected(balls((32, 32, 40), centre), (0.0, 5.0))
        mine = label == value
        assert before < mine.sum() < (alone == 1).sum()
        assert (mine & (alone == 0)).sum() < 0.02 * mine.sum()
    middle = np.flatnonzero(label[16, 16])
    assert set(label[16, 16, middle]) == {1, 2}
    assert np.diff(label[16, 16, 8:32].astype(int)).clip(-1).min() >= 0, "one border, 1 then 2"


def test_touching_classes_with_one_bias_keep_their_border():
    shape = (12, 24, 30)
    x = np.indices(shape)[2]
    inside = 9.5 - np.abs(np.indices(shape)[1] - 11.5)
    prob = softmax(np.stack([0 * inside, inside + (15 - x), inside + (x - 15)]))
    label, _ = corrected(prob, (0.0, -3.0, -3.0))
    kept = label > 0
    np.testing.assert_array_equal(label[kept], prob.argmax(axis=0)[kept])


def test_the_margin_of_two_classes_is_the_logit():
    prob = np.random.default_rng(0).dirichlet([1, 1], (3, 4, 5)).transpose(3, 0, 1, 2)
    logs = np.log(prob).astype(np.float32)
    np.testing.assert_allclose(margin(logs, 1), logs[1] - logs[0], rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    shard=st.tuples(st.integers(3, 8), st.integers(4, 10), st.integers(4, 10)),
    delta=st.tuples(st.just(0.0), st.floats(-2.5, 2.5), st.floats(-2.5, 2.5)),
    spacing_mm=st.sampled_from(SPACINGS),
)
def test_blocks_with_halo_look_and_revise_like_the_case(seed, shard, delta, spacing_mm):
    rng = np.random.default_rng(seed)
    coarse = rng.normal(0, 3, (3, 4, 5, 6))
    prob = softmax(np.kron(coarse, np.ones((1, 3, 4, 4))) + rng.normal(0, 0.7, (3, 12, 20, 24)))
    look, reviser = ShellLook(delta), BiasReviser(delta)
    whole = block_of(prob, spacing_mm=spacing_mm)
    expected = look.look(whole, {})
    parts = [look.look(b, {}) for _, b in cut(prob, shard, look.halo_vox(spacing_mm), spacing_mm)]
    for order in (parts, parts[::-1]):
        merged = order[0]
        for part in order[1:]:
            merged = look.merge(merged, part)
        for name in expected:
            np.testing.assert_array_equal(merged[name], expected[name])
    values = {"height": shell_heights(expected, "p95")}
    label = reviser.revise(whole, values)
    out = np.full(label.shape, 255, np.uint8)
    for core, block in cut(prob, shard, reviser.halo_vox(spacing_mm), spacing_mm):
        out[core.slices] = reviser.revise(block, values)
    np.testing.assert_array_equal(out, label)


@given(st.lists(st.floats(0, 19.5), min_size=1, max_size=60))
def test_the_height_is_the_sorted_percentile_to_one_bin(heights):
    counts = np.zeros((2, 320), np.int64)
    for value in heights:
        counts[1, int(value * 16)] += 1
    found = shell_heights({"counts": counts, "highest": np.array([0, max(heights)])}, "p95")
    exact = sorted(heights)[math.ceil(0.95 * len(heights)) - 1]
    assert found[0] == 0.0
    assert exact - 1e-6 <= found[1] <= exact + 1 / 16


def score(case, offset, boundary_vox=100, channels=(1,)):
    one = ClassScore(offset, boundary_vox, 1.0, 10, 10, 10, 10)
    return CaseScore(case, one, dict.fromkeys(channels, one))


def test_the_bias_of_the_prediction_is_a_mean_over_cases_in_mm():
    trusted = [score("a", -1.0), score("b", -2.0), score("c", 9.0, boundary_vox=3)]
    spacing = {"a": (3.0, 1.0, 1.0), "b": (2.0, 0.5, 0.5), "c": UNIT}
    assert prediction_bias_mm(trusted, spacing, PolicyParams()) == {1: -1.0}
    assert prediction_bias_mm(trusted[:1], spacing, PolicyParams()) == {1: -1.0}
    assert prediction_bias_mm([score("d", float("nan"))], {"d": UNIT}, PolicyParams()) == {}


def test_the_bias_of_the_given_label_counts_only_where_the_trusted_cases_agree():
    spacing = dict.fromkeys("abcd", UNIT)
    given = [score("a", 1.0), score("b", 0.5), score("c", 0.9), score("d", 5.0)]
    trusted = [score("a", -1.0), score("b", -1.2), score("c", -0.8)]
    (found,) = label_bias_mm(given, trusted, spacing, PolicyParams()).values()
    assert found == pytest.approx((2.0 + 1.7 + 1.7) / 3)
    signs = [score("a", 3.0), score("b", 0.5), score("c", 0.9)]
    assert label_bias_mm(given, signs, spacing, PolicyParams()) == {}
    spread = [score("a", 0.9), score("b", -4.0), score("c", 0.8)]
    assert label_bias_mm(given, spread, spacing, PolicyParams()) == {}
    assert label_bias_mm(given, [], spacing, PolicyParams()) == {}
