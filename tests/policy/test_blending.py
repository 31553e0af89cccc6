"""Blending: rough outlines come nearer to the truth, sound ones and other classes stay."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from raysegclean.evidence.case_scores import CaseScore, ClassScore
from raysegclean.policy.blending import Shrinkage, blend_halo_vox, blend_label, solve_blends
from raysegclean.policy.params import PolicyParams
from raysegclean.voxels.geometry import Box, Grid

SHAPE = (28, 28, 28)
WHOLE = Box.whole(SHAPE)
KEEPS_ALL = Shrinkage(shift_vox=0.0, coarse=1.0, fine=1.0)


def ball_depth(radius, shape=SHAPE):
    centre = (np.array(shape) - 1) / 2
    away = np.indices(shape) - centre.reshape(3, 1, 1, 1)
    return radius - np.sqrt((away**2).sum(axis=0))


def networks(depth_zyx):
    """Probabilities of one class from how deep inside it a voxel lies."""
    prob = 1 / (1 + np.exp(-2 * np.clip(depth_zyx, -4, 4)))
    return np.stack([1 - prob, prob]).astype(np.float32)


def rough_ball(radius, seed, vox=1.0):
    wander = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 1.0)
    return (ball_depth(radius) + vox * wander / wander.std() > 0).astype(np.uint8)


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def case(name, offset=0.0, spread=0.5, rough=0.3):
    one = ClassScore(offset, 500, 1.0, 10, 10, 10, 10, spread_vox=spread, roughness_vox=rough)
    return CaseScore(name, one, {1: one})


def test_a_rough_outline_is_smoothed_by_networks_that_err_otherwise():
    truth = (ball_depth(9) > 0).astype(np.uint8)
    label = rough_ball(9, seed=1, vox=0.7)
    prob = networks(np.roll(ball_depth(9), 1, axis=0))  # off by a voxel along z
    some = Shrinkage(shift_vox=0.0, coarse=0.8, fine=0.3)
    blended = blend_label(label, prob, {1: some}, core=WHOLE)
    predicted = (prob[1] > 0.5).astype(np.uint8)
    assert dice(blended, truth) > max(dice(label, truth), dice(predicted, truth)) + 0.01


def test_what_is_believed_whole_stays_as_it_is():
    label = rough_ball(9, seed=2)
    blended = blend_label(label, networks(ball_depth(7)), {1: KEEPS_ALL}, core=WHOLE)
    np.testing.assert_array_equal(blended, label)


def test_nothing_believed_is_the_prediction():
    nothing = Shrinkage(shift_vox=0.0, coarse=0.0, fine=0.0)
    prob = networks(ball_depth(7))
    blended = blend_label(rough_ball(9, seed=3), prob, {1: nothing}, core=WHOLE)
    np.testing.assert_array_equal(blended, prob[1] > 0.5)


def test_a_class_without_a_blend_neither_loses_nor_takes_a_voxel():
    label = rough_ball(9, seed=4)
    label[:, :, 14:] *= 2
    depth = ball_depth(6)
    left = networks(np.where(np.arange(28) < 14, depth, -4.0))
    right = networks(np.where(np.arange(28) < 14, -4.0, depth))
    foreground = np.stack([left[1], right[1]])
    prob = np.concatenate([1 - foreground.sum(axis=0, keepdims=True), foreground])
    nothing = Shrinkage(shift_vox=0.0, coarse=0.0, fine=0.0)
    blended = blend_label(label, prob.astype(np.float32), {1: nothing}, core=WHOLE)
    np.testing.assert_array_equal(blended == 2, label == 2)
    assert (blended == 1).sum() < 0.6 * (label == 1).sum()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    shape=st.tuples(st.integers(1, 9), st.integers(3, 17), st.integers(3, 17)),
    shard=st.tuples(st.integers(2, 9), st.integers(3, 9), st.integers(3, 9)),
    spacing_mm=st.sampled_from([None, (1.0, 1.0, 1.0), (3.0, 0.7, 0.7)]),
)
def test_blocks_are_blended_like_the_case(seed, shape, shard, spacing_mm):
    rng = np.random.default_rng(seed)
    label = (ndimage.gaussian_filter(rng.random(shape), 1.0) * 40).astype(np.uint8) % 3
    prob = rng.dirichlet((1, 1, 1), size=shape).astype(np.float32)
    prob = np.ascontiguousarray(np.moveaxis(prob, -1, 0))
    blends = {1: Shrinkage(0.3, 0.6, 0.4), 2: Shrinkage(-0.2, 0.9, 0.1)}
    whole = blend_label(label, prob, blends, core=Box.whole(shape), spacing_mm=spacing_mm)
    out = np.full_like(label, 255)
    grid = Grid(shape, shard)
    for core in map(grid.box, grid.indices()):
        window = core.grown(blend_halo_vox(spacing_mm)).clipped(Box.whole(shape))
        out[core.slices] = blend_label(
            label[window.slices],
            np.ascontiguousarray(prob[(slice(None), *window.slices)]),
            blends,
            core=core.relative_to(window),
            spacing_mm=spacing_mm,
        )
    np.testing.assert_array_equal(out, whole)


def test_what_is_believed_is_the_ratio_of_the_variances_clean_over_noisy():
    clean = [case(f"c{i}", 0.1 + 0.1 * (-1) ** i, spread=0.5, rough=0.3) for i in range(10)]
    noisy = [case(f"n{i}", 0.6 + 0.2 * (-1) ** i, spread=0.9, rough=0.6) for i in range(10)]
    names = [{one.case for one in group} for group in (noisy, clean)]
    blends = solve_blends([*noisy, *clean], {1: names[0]}, {1: names[1]}, PolicyParams())
    assert set(blends) == names[0]
    one = blends["n0"][1]
    coarse = (0.5**2 - 0.3**2) / (0.9**2 - 0.6**2)
    assert one.fine == pytest.approx(0.25) and one.coarse == pytest.approx(coarse)
    # A case of the group's mean offset, 0.6, ends at that of the clean cases, 0.1.
    assert one.shift_vox + coarse * 0.8 == pytest.approx(0.1 + 0.25 * 0.2)


def test_labels_that_stray_no_more_than_clean_ones_are_believed_whole():
    clean = [case(f"c{i}", 0.1 * i) for i in range(10)]
    noisy = [case(f"n{i}", 0.1 * i) for i in range(10)]
    blends = solve_blends(
        [*noisy, *clean], {1: {s.case for s in noisy}}, {1: {s.case for s in clean}}, PolicyParams()
    )
    found = np.array(
        [[b.shift_vox, b.coarse, b.fine] for one in blends.values() for b in one.values()]
    )
    np.testing.assert_allclose(found, np.tile([0.0, 1.0, 1.0], (10, 1)), atol=1e-12)


def test_few_or_unmeasured_cases_are_not_blended():
    clean = [case(f"c{i}") for i in range(10)]
    noisy = [case(f"n{i}", spread=0.9, rough=0.6) for i in range(10)]
    names, right = {s.case for s in noisy}, {1: {s.case for s in clean}}
    assert not solve_blends([*noisy, *clean], {1: names}, {1: {"c0", "c1"}}, PolicyParams())
    assert not solve_blends([*noisy, *clean], {1: {"n0"}}, right, PolicyParams())
    unknown = [
        CaseScore(s.case, s.foreground, {1: replace(s.classes[1], roughness_vox=float("nan"))})
        for s in noisy
    ]
    assert not solve_blends([*unknown, *clean], {1: names}, right, PolicyParams())
