"""A label lies on its image when no corner is a tenth of a voxel away, however it is written."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysegclean.voxels.placement import affine_of, displacement, same_place

SHAPE = (40, 128, 128)
IMAGE = affine_of((2.5, 0.8, 0.8), (-30.0, 10.0, 200.0))


def _turned(degrees: float) -> np.ndarray:
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[cos, -sin, 0, 0], [sin, cos, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    return np.asarray(turn @ IMAGE)


def test_what_differs_is_named() -> None:
    assert same_place(IMAGE, IMAGE, SHAPE) == ""
    moved = affine_of((2.5, 0.8, 0.8), (0.0, 10.0, 200.0))
    assert "its origin is 30 x 0 x 0 mm (z, y, x) away" in same_place(IMAGE, moved, SHAPE)
    assert "12 voxels apart" in same_place(IMAGE, moved, SHAPE)
    wide = affine_of((5.0, 0.8, 0.8), (-30.0, 10.0, 200.0))
    assert "spacing is 5 x 0.8 x 0.8, the image's 2.5 x 0.8 x 0.8" in same_place(IMAGE, wide, SHAPE)
    assert "its axes point another way" in same_place(IMAGE, _turned(2), SHAPE)
    assert "its axes point another way" in same_place(IMAGE, IMAGE * [-1, -1, 1, 1], SHAPE)


def test_a_small_entry_counts_where_the_corner_is_far_away() -> None:
    sheared = IMAGE.copy()
    sheared[0, 1] = 1e-4  # a fortieth of a voxel at the far corner of 128 voxels
    assert same_place(IMAGE, sheared, SHAPE) == ""
    assert same_place(IMAGE, sheared, (40, 1300, 128)) != ""


@given(
    st.tuples(*[st.floats(0.2, 6)] * 3),
    st.tuples(*[st.floats(-500, 500)] * 3),
    st.tuples(*[st.floats(-3, 3)] * 3),
)
def test_a_shift_is_measured_in_voxels_of_the_image(spacing, origin, shift_vox) -> None:
    image = affine_of(spacing, origin)
    moved = [o + s * v for o, s, v in zip(origin, spacing, shift_vox, strict=True)]
    apart = displacement(image, affine_of(spacing, (moved[0], moved[1], moved[2])), SHAPE)
    assert apart == pytest.approx(max(map(abs, shift_vox)), abs=1e-6)
