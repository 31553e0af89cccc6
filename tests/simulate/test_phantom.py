"""Phantoms are the same for ever, hold every organ, and look like CT."""

import numpy as np
import pytest
from scipy import ndimage

from raysegclean.errors import ConfigError
from raysegclean.simulate import phantom
from raysegclean.simulate.phantom import BODY_CLASSES, PHANTOM_CLASSES, body_case, phantom_case

SHAPE = (24, 64, 64)
SPACING = (2.5, 1.5, 1.5)
FULL = np.ones((3, 3, 3))


@pytest.fixture(scope="module")
def cases():
    return [phantom_case(5, index, SHAPE, SPACING) for index in range(12)]


def touching(label, a, b):
    return bool((ndimage.binary_dilation(label == a) & (label == b)).any())


def test_a_case_is_a_function_of_seed_and_index(cases):
    image, label = phantom_case(5, 3, SHAPE, SPACING)
    np.testing.assert_array_equal(image, cases[3][0])
    np.testing.assert_array_equal(label, cases[3][1])
    other, _ = phantom_case(6, 3, SHAPE, SPACING)
    assert (other != image).mean() > 0.5


def test_cases_differ_in_anatomy(cases):
    volumes = np.array([np.bincount(label.ravel(), minlength=5)[1:] for _, label in cases])
    assert (volumes.std(axis=0) / volumes.mean(axis=0) > 0.05).all()


def test_slabs_do_not_show(monkeypatch, cases):
    monkeypatch.setattr(phantom, "SLAB_VOXELS", 5 * 64 * 64)
    image, label = phantom_case(5, 0, SHAPE, SPACING)
    np.testing.assert_array_equal(label, cases[0][1])
    assert np.abs(image.astype(int) - cases[0][0]).max() <= 1  # float32 rounding


def test_dtypes_and_range(cases):
    for image, label in cases:
        assert (image.dtype, label.dtype) == (np.int16, np.uint8)
        assert image.shape == label.shape == SHAPE
        assert -1024 <= image.min() <= -950
        assert 200 < image.max() < 1000


@pytest.mark.parametrize("shape", [(8, 32, 32), (12, 48, 40), SHAPE])
def test_every_organ_is_always_there(shape):
    for index in range(15):
        _, label = phantom_case(1, index, shape, (5.0, 2.0, 2.0))
        assert set(np.unique(label)) == {0, *PHANTOM_CLASSES}


def test_kidneys_are_one_class_of_two_components(cases):
    for _, label in cases:
        ids, count = ndimage.label(label == 3, FULL)
        assert count == 2
        assert np.bincount(ids.ravel())[1:].min() > 30


def test_organs_have_plausible_hu(cases):
    for image, label in cases:
        lungs, liver, kidneys, spine = (np.median(image[label == value]) for value in range(1, 5))
        assert -950 < lungs < -700
        assert 60 < liver < 150
        assert liver < kidneys < 230
        assert 100 < spine < 400


def test_labelled_organs_touch_each_other_in_some_cases(cases):
    liver_lung = sum(touching(label, 2, 1) for _, label in cases)
    liver_kidney = sum(touching(label, 2, 3) for _, label in cases)
    assert liver_lung >= 6
    assert 1 <= liver_kidney < len(cases)


def test_intensity_alone_does_not_segment(cases):
    for image, label in cases:
        smooth = ndimage.gaussian_filter(image.astype(np.float32), 0.7)
        like_liver = (smooth > 80) & (smooth < 130)
        overlap = 2 * (like_liver & (label == 2)).sum() / (like_liver.sum() + (label == 2).sum())
        assert overlap < 0.85


def test_borders_are_blurred_by_partial_volume(cases):
    image, label = cases[0]
    lungs = label == 1
    rim = lungs & ~ndimage.binary_erosion(lungs)
    core = ndimage.binary_erosion(lungs, iterations=3)
    assert image[rim].mean() - image[core].mean() > 50


def test_too_small_a_volume_is_refused():
    with pytest.raises(ConfigError, match="8, 32, 32"):
        phantom_case(0, 0, (8, 31, 32), SPACING)


@pytest.fixture(scope="module")
def bodies():
    return [body_case(5, index, (40, 64, 64), SPACING) for index in range(12)]


def test_a_body_is_a_function_of_seed_and_index(bodies):
    for one, again in zip(bodies[3], body_case(5, 3, (40, 64, 64), SPACING), strict=True):
        np.testing.assert_array_equal(one, again)


def test_bodies_differ_in_voxel_size_and_field_of_view(bodies):
    assert len({spacing for _, _, spacing in bodies}) > 4
    heights_mm = [image.shape[0] * spacing[0] for image, _, spacing in bodies]
    assert min(heights_mm) < 90
    assert max(heights_mm) > 95


def test_sides_look_alike_and_are_told_apart(bodies):
    right, left = (
        [np.median(image[label == value]) for image, label, _ in bodies if (label == value).any()]
        for value in (4, 5)
    )
    assert np.mean(right) == pytest.approx(np.mean(left), abs=12)
    for _, label, _ in bodies:
        for right, left in ((1, 2), (4, 5)):
            x = [np.argwhere(label == value)[:, 2] for value in (right, left)]
            if len(x[0]) and len(x[1]):
                assert x[0].mean() < label.shape[2] / 2 < x[1].mean()


def test_vertebrae_follow_each_other_from_below(bodies):
    for _, label, _ in bodies:
        heights = {
            value: np.argwhere(label == value)[:, 0].mean()
            for value in range(8, 14)
            if (label == value).any()
        }
        assert len(heights) >= 3
        assert [*heights] == list(range(min(heights), max(heights) + 1)), "none is left out"
        assert sorted(heights.values()) == [*heights.values()]
    assert {v for _, label, _ in bodies for v in np.unique(label)} <= {0, *BODY_CLASSES}
