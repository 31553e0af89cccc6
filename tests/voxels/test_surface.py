"""Surface distances agree with brute force, and areas with the published marching-cubes table."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raysegclean.voxels.surface import surface_distances

SPACING = (3.0, 1.0, 0.7)

# Area by 2 x 2 x 2 pattern (bit 4 z + 2 y + x), one of each symmetry class, at unit spacing: the
# figures of DeepMind's table for 1 mm voxels.
PUBLISHED_AREAS = {
    1: 0.216506, 3: 0.707107, 6: 0.433013, 7: 1.149519, 15: 1.0, 22: 0.649519, 23: 1.299038,
    24: 0.433013, 25: 0.923613, 27: 1.573132, 30: 1.366025, 31: 1.149519, 60: 1.414214,
    61: 0.923613, 63: 0.707107, 105: 0.866025, 107: 0.649519, 111: 0.433013, 126: 0.433013,
    127: 0.216506,
}  # fmt: skip


def surface_points(mask, spacing):
    """Return the corners around which voxels are neither all inside nor all outside."""
    padded = np.pad(mask, 1)
    points = [
        np.multiply((z, y, x), spacing)
        for z, y, x in itertools.product(*(range(n - 1) for n in padded.shape))
        if 0 < padded[z : z + 2, y : y + 2, x : x + 2].sum() < 8
    ]
    return np.array(points).reshape(-1, 3)


def brute_quantile(distances, areas, share):
    reached, total = 0.0, areas.sum()
    for distance, area in sorted(zip(distances, areas, strict=True)):
        reached += area
        if reached / total >= share - 1e-12:
            return distance
    return max(distances)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 0.9), st.floats(0.5, 4.0))
@example(122, 0.1, 1.0)  # 95 % of the area is reached exactly
def test_distances_quantiles_and_overlap_are_those_of_brute_force(seed, density, tolerance):
    a, b = np.random.default_rng(seed).random((2, 4, 5, 5)) < density
    points_a, points_b = surface_points(a, SPACING), surface_points(b, SPACING)
    if len(points_a) == 0 or len(points_b) == 0:
        return
    found = surface_distances(a, b, SPACING)
    between = np.linalg.norm(points_a[:, None] - points_b[None], axis=2)
    a_to_b, b_to_a = between.min(axis=1), between.min(axis=0)
    np.testing.assert_allclose(found.a_to_b, a_to_b, rtol=1e-5)
    np.testing.assert_allclose(found.b_to_a, b_to_a, rtol=1e-5)
    quantiles = (
        brute_quantile(a_to_b, found.area_a, 0.95),
        brute_quantile(b_to_a, found.area_b, 0.95),
    )
    assert found.hausdorff(0.95) == pytest.approx(max(quantiles), rel=1e-5)
    near_a, near_b = (d <= tolerance * (1 + 1e-5) for d in (a_to_b, b_to_a))
    expected = found.area_a[near_a].sum() + found.area_b[near_b].sum()
    assert found.overlap(tolerance) == pytest.approx(
        expected / (found.area_a.sum() + found.area_b.sum())
    )


@pytest.mark.parametrize(("code", "area"), PUBLISHED_AREAS.items())
def test_each_pattern_has_its_published_area(code, area):
    pattern = ((code >> np.arange(8)) & 1).reshape(2, 2, 2).astype(bool)
    found = surface_distances(pattern, pattern, (1.0, 1.0, 1.0))
    points = surface_points(pattern, (1.0, 1.0, 1.0))
    middle = (points == (1, 1, 1)).all(axis=1)  # the only corner with eight voxels around it
    assert found.area_a[middle] == pytest.approx(area, abs=1e-5)


def test_a_lone_voxel_has_eight_triangles_scaled_by_the_spacing():
    voxel = np.zeros((3, 3, 3), bool)
    voxel[1, 1, 1] = True
    z, y, x = np.array(SPACING) / 2
    triangle = np.linalg.norm(np.cross((-z, y, 0), (-z, 0, x))) / 2
    areas = surface_distances(voxel, voxel, SPACING).area_a
    np.testing.assert_allclose(areas, np.full(8, triangle), rtol=1e-5)


def test_a_flat_face_has_one_voxel_face_per_element():
    slab = np.zeros((4, 6, 6), bool)
    slab[1:3] = True
    areas = surface_distances(slab, slab, SPACING).area_a
    assert np.isclose(areas, 1.0 * 0.7, rtol=1e-5).sum() == 2 * 25


def test_area_of_a_ball_is_nearly_that_of_a_sphere():
    grid = np.indices((29, 29, 29)) - 14
    ball = (grid**2).sum(axis=0) <= 12.3**2
    area = surface_distances(ball, ball, (1.0, 1.0, 1.0)).area_a.sum()
    assert area == pytest.approx(4 * math.pi * 12.3**2, rel=0.1)  # stairs of voxels add 9 %


def test_a_contour_in_2d_is_weighted_by_length():
    square = np.zeros((1, 5, 6), bool)
    square[0, 1:4, 1:5] = True
    lengths = surface_distances(square, square, SPACING).area_a
    diagonal = math.hypot(1.0, 0.7) / 2
    expected = 2 * 2 * 1.0 + 2 * 3 * 0.7 + 4 * diagonal  # sides without their rounded corners
    assert lengths.sum() == pytest.approx(expected)


def test_a_slab_moved_by_two_slices_is_two_slices_away():
    a = np.zeros((12, 8, 8), bool)
    a[2:6] = True
    found = surface_distances(a, np.roll(a, 2, axis=0), SPACING)
    assert found.hausdorff(0.95) == pytest.approx(6.0, rel=1e-5)
    assert found.overlap(6.0) == pytest.approx(1.0)
    assert found.overlap(5.9) < 0.85


def test_one_slice_is_measured_in_2d_but_a_thin_organ_of_a_volume_in_3d():
    flat, deep = np.zeros((1, 9, 9), bool), np.zeros((5, 9, 9), bool)
    flat[0, 2:7, 2:7] = deep[2, 2:7, 2:7] = True
    in_2d, in_3d = (
        surface_distances(one, np.roll(one, 1, axis=2), (1.0, 1.0, 1.0)).overlap(0.5)
        for one in (flat, deep)
    )
    assert in_2d == pytest.approx(0.5, abs=0.01)  # the edges along the motion stay
    assert in_3d > 0.6  # so do the large faces above and below


def test_a_mask_cut_by_the_volume_has_a_surface_there():
    full = np.ones((3, 3, 3), bool)
    assert surface_distances(full, full, (1.0, 1.0, 1.0)).area_a.size == 4**3 - 2**3


def test_far_apart_masks_are_measured_right():
    a, b = np.zeros((2, 3, 3, 90), bool)
    a[1, 1, 2] = b[1, 1, 82] = True
    assert surface_distances(a, b, SPACING).hausdorff(0.95) == pytest.approx(80 * 0.7, rel=1e-5)
