"""Noise is seeded, keeps dtype and classes, and does what its paper says."""

import inspect
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegclean.errors import ConfigError
from raysegclean.evaluate.metrics import dice
from raysegclean.simulate.contours import interpolate, smooth
from raysegclean.simulate.gross import cut, drop, leak, merge, mirror, shift, swap
from raysegclean.simulate.noise import NOISES, case_rng, corrupt
from raysegclean.simulate.outlines import bias, boundary

ISOTROPIC = (1.0, 1.0, 1.0)
MAY_EMPTY = ("drop", "cut", "swap", "merge")


def ball(shape_zyx, centre_zyx, radius, value=1, dtype=np.uint8):
    distance = sum(
        (np.arange(n).reshape([-1 if i == a else 1 for i in range(3)]) - c) ** 2
        for a, (n, c) in enumerate(zip(shape_zyx, centre_zyx, strict=True))
    )
    return ((distance <= radius**2) * value).astype(dtype)


def two_touching_boxes():
    label = np.zeros((12, 16, 20), np.int16)
    label[3:9, 4:12, 3:10] = 4
    label[3:9, 4:12, 10:17] = 9
    return label


@st.composite
def labels(draw):
    depth = draw(st.sampled_from([1, 1, 3, 8]))
    shape = (depth, draw(st.integers(4, 14)), draw(st.integers(4, 14)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(st.sampled_from([np.uint8, np.int16, np.uint32, np.int64]))
    label = np.zeros(shape, dtype)
    for value in (1, 2, 7)[: draw(st.integers(0, 3))]:
        low = [int(rng.integers(0, n)) for n in shape]
        size = [int(rng.integers(1, 7)) for _ in shape]
        label[tuple(slice(a, a + s) for a, s in zip(low, size, strict=True))] = value
    return label


@settings(max_examples=120, deadline=None)
@given(labels(), st.sampled_from(sorted(NOISES)), st.integers(0, 99))
def test_every_noise_is_seeded_and_keeps_dtype_shape_and_classes(label, noise, seed):
    before = label.copy()
    first = corrupt(label, noise, case_rng(seed, "a"), (3.0, 1.0, 1.0))
    again = corrupt(label, noise, case_rng(seed, "a"), (3.0, 1.0, 1.0))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(label, before)
    assert (first.dtype, first.shape) == (label.dtype, label.shape)
    assert not np.shares_memory(first, label)
    present, left = set(np.unique(label)) - {0}, set(np.unique(first)) - {0}
    assert left <= present
    if noise not in MAY_EMPTY:
        assert left == present


def test_bias_grows_and_shrinks_a_ball_by_its_amount():
    label = ball((41, 41, 41), (20, 20, 20), 12)
    for amount in (1.0, 3.0):
        for sign in (1, -1):
            out = bias(label, None, amount=amount, sign=sign)
            radius = (3 * out.sum() / (4 * np.pi)) ** (1 / 3)
            assert radius == pytest.approx(12 + sign * amount, abs=0.45)


def test_bias_in_mm_respects_thick_slices():
    label = np.zeros((9, 21, 21), np.uint8)
    label[4, 8:13, 8:13] = 1
    out = bias(label, None, (5.0, 1.0, 1.0), amount=3.0, unit="mm")
    assert np.unique(np.nonzero(out)[0]).tolist() == [4]
    assert out[4].sum() > label.sum()


def test_one_voxel_of_dilation_is_one_layer_of_face_neighbours():
    label = np.zeros((5, 5, 5), np.uint8)
    label[2, 2, 2] = 1
    assert bias(label, None, amount=1.0).sum() == 7


def test_touching_classes_keep_their_common_border_when_eroded():
    label = two_touching_boxes()
    out = bias(label, None, amount=1.0, sign=-1)
    assert (out[4:8, 5:11, 9] == 4).all()
    assert (out[4:8, 5:11, 10] == 9).all()
    assert not out[3].any()


def test_dilated_voxels_go_to_the_nearest_class():
    label = np.zeros((1, 5, 21), np.uint8)
    label[0, 2, 4], label[0, 2, 14] = 1, 2
    out = bias(label, None, amount=9.0)
    assert (out[0, 2, :9] == 1).all()
    assert (out[0, 2, 10:] == 2).all()


def test_boundary_noise_draws_both_directions_and_all_amounts():
    label = ball((31, 31, 31), (15, 15, 15), 10)
    rng = np.random.default_rng(0)
    sizes = {int(boundary(label, rng, n_max=2).sum()) for _ in range(40)}
    assert len(sizes) == 4
    assert min(sizes) < label.sum() < max(sizes)


def test_a_real_radius_lies_between_whole_ones():
    label = ball((31, 31, 31), (15, 15, 15), 10)
    sizes = [bias(label, None, amount=a).sum() for a in (1.0, 2.0)]
    rng = np.random.default_rng(1)
    grown = [boundary(label, rng, low_vox=1.42, high_vox=1.9).sum() for _ in range(20)]
    assert any(sizes[0] < n < sizes[1] for n in grown)


def test_erosion_does_less_to_a_class_that_it_would_delete():
    label = ball((31, 31, 31), (15, 15, 10), 8)
    label[14:17, 14:17, 24:27] = 2
    out = bias(label, None, amount=6.0, sign=-1)
    assert 0 < (out == 2).sum() < 27
    assert 0 < (out == 1).sum() < (label == 1).sum() / 4


def test_a_label_cut_by_the_border_of_the_scan_is_not_eroded_there():
    label = np.zeros((10, 12, 12), np.uint8)
    label[:5, 3:9, 3:9] = 1
    out = bias(label, None, amount=1.0, sign=-1)
    assert out[0].any()
    assert not out[4].any()


def test_polygons_of_more_vertices_are_closer_to_the_truth():
    label = ball((15, 64, 64), (7, 32, 32), 20) + ball((15, 64, 64), (7, 8, 8), 6, value=2)
    scores = [
        np.mean(list(dice(label, corrupt(label, "polygon", case_rng(0, "a"), vertices=k)).values()))
        for k in (3, 5, 7, 40)
    ]
    assert scores == sorted(scores)
    assert scores[0] < 0.75
    assert scores[-1] > 0.95


def test_a_polygon_of_a_disc_has_the_area_of_a_regular_polygon():
    label = ball((1, 201, 201), (0, 100, 100), 80)
    for k in (3, 6):
        area = corrupt(label, "polygon", case_rng(3, "a"), vertices=k).sum()
        # outlines in pixels are longer than circles, so vertices are not exactly regular
        assert area / label.sum() == pytest.approx(
            k / (2 * np.pi) * np.sin(2 * np.pi / k), abs=0.06
        )


def test_polygon_keeps_tiny_components():
    label = np.zeros((2, 12, 12), np.uint8)
    label[0, 2:4, 2:6] = 1
    label[1, 5, 5] = 3
    np.testing.assert_array_equal(corrupt(label, "polygon", case_rng(0, "a"), vertices=3), label)


def star(points: int, size: int = 121) -> np.ndarray:
    """A disc of radius 40 whose rim waves by 10 pixels, `points` times around."""
    y, x = np.mgrid[:size, :size] - size // 2
    rim = 40 + 10 * np.cos(points * np.arctan2(y, x))
    return (np.hypot(y, x) <= rim).astype(np.uint8)[None]


def test_a_smooth_outline_keeps_slow_waves_and_loses_fast_ones():
    disc = ball((1, 121, 121), (0, 60, 60), 40)
    slow, fast = star(3), star(8)
    assert dice(slow, smooth(slow, case_rng(0, "a"), descriptors=8))[1] > 0.97
    assert dice(disc, smooth(fast, case_rng(0, "a"), descriptors=8))[1] > 0.95
    assert dice(fast, smooth(fast, case_rng(0, "a"), descriptors=20))[1] > 0.95
    # Holes between spikes are filled and spikes are cut: the area stays.
    assert smooth(fast, case_rng(0, "a")).sum() / fast.sum() == pytest.approx(1, abs=0.06)


def test_two_descriptors_make_an_ellipse_of_any_outline():
    label = np.zeros((1, 60, 100), np.uint8)
    label[0, 10:50, 10:90] = 1
    out = smooth(label, case_rng(0, "a"), descriptors=2)[0]
    y, x = np.nonzero(out)
    moments = np.cov(np.stack([y, x]))
    # Of an ellipse with half axes a and b the variances are a^2 / 4 and b^2 / 4, the area pi a b.
    assert out.sum() == pytest.approx(4 * np.pi * np.sqrt(np.linalg.det(moments)), rel=0.02)
    assert (y.mean(), x.mean()) == pytest.approx((29.5, 49.5), abs=0.5)


def test_smooth_outlines_may_leave_the_box_of_their_class_but_take_no_other_class():
    label = np.zeros((1, 60, 100), np.uint8)
    label[0, 10:50, 10:90], label[0, :8] = 1, 2
    out = smooth(label, case_rng(0, "a"), descriptors=2)
    assert (out[0, 9] == 1).any()
    assert not (out[label == 2] == 1).any()


def test_swap_exchanges_a_class_with_its_nearest_neighbour():
    label = np.zeros((4, 10, 40), np.int16)
    label[:, 2:5, 2:6], label[:, 2:8, 10:14], label[:, 2:5, 30:34] = 4, 9, 5
    out = swap(label, case_rng(0, "a"), value=4)
    renamed = np.select([label == 4, label == 9], [9, 4], label)
    np.testing.assert_array_equal(out, renamed)
    stretched = swap(label.transpose(2, 1, 0), case_rng(0, "a"), (0.1, 9.0, 9.0), value=5)
    assert np.unique(stretched[30:34]).tolist() == [0, 4], "nearest in mm"


def test_swap_of_a_component_gives_it_the_neighbours_name_and_leaves_the_neighbour():
    label = np.zeros((4, 10, 40), np.uint8)
    label[:, 2:5, 2:6] = label[:, 2:5, 20:24] = 1
    label[:, 2:5, 28:32] = 2
    for seed in range(6):
        out = swap(label, case_rng(seed, "a"), target="component", value=1)
        assert (out == 1).sum() == (out == 2).sum() - (label == 2).sum() == (label == 2).sum()
        assert (out[label == 2] == 2).all()
    alone = np.where(label == 1, label, 0)
    np.testing.assert_array_equal(swap(alone, case_rng(0, "a")), alone)


def test_drop_removes_one_class_or_one_component_only():
    label = np.zeros((6, 20, 20), np.uint16)
    label[1:5, 2:8, 2:8] = label[1:5, 12:18, 2:8] = 300
    label[1:5, 2:8, 12:18] = 2
    label[0, 19, 19] = 300  # a speck is no structure
    gone = drop(label, case_rng(0, "a"), value=300)
    assert set(np.unique(gone)) == {0, 2}
    part = drop(label, case_rng(0, "a"), target="component", value=300)
    assert (part == 300).sum() == 4 * 36 + 1
    assert (part == 2).sum() == 4 * 36


@pytest.mark.parametrize("noise", [drop, swap])
def test_one_of_many_equal_lesions_can_be_the_structure(noise):
    label = np.zeros((4, 40, 60), np.uint8)
    for y in range(3):
        for x in range(4):
            label[1:3, 5 + 12 * y : 9 + 12 * y, 5 + 12 * x : 9 + 12 * x] = 1
    label[0, 0, :3] = 2
    found = noise(label, np.random.default_rng(0), target="component", value=1)
    changed = found != label
    assert changed.sum() == 32, "one lesion of 12, each less than a tenth of them all"
    assert set(found[changed]) == {0 if noise is drop else 2}


@pytest.mark.parametrize("edge", [0.3, 0.33, 0.6])
@pytest.mark.parametrize("sign", [-1, 1])
def test_an_amount_of_three_voxels_in_mm_is_three_layers(edge, sign):
    label = np.zeros((1, 40, 40), np.uint8)
    label[0, 10:30] = 1
    spacing = (5.0, edge, edge)
    found = bias(label, None, spacing, amount=3 * edge, sign=sign, unit="mm")
    assert found.sum() == (20 + 6 * sign) * 40


def test_drop_chooses_among_all_classes():
    label = np.arange(4, dtype=np.uint8).reshape(1, 2, 2)
    left = {tuple(drop(label, np.random.default_rng(s)).ravel()) for s in range(30)}
    assert left == {(0, 0, 2, 3), (0, 1, 0, 3), (0, 1, 2, 0)}


def test_shift_moves_by_its_length_and_keeps_the_shape():
    label = ball((40, 40, 40), (20, 20, 20), 5)
    for seed in range(5):
        out = shift(label, np.random.default_rng(seed), length=6.0)
        moved = np.argwhere(out).mean(0) - np.argwhere(label).mean(0)
        assert np.linalg.norm(moved) == pytest.approx(6, abs=0.9)
        assert out.sum() == label.sum()


def test_shift_of_one_slice_stays_in_its_plane_and_always_moves():
    label = ball((1, 30, 30), (0, 15, 15), 5)
    out = shift(label, np.random.default_rng(0), length=0.1)
    assert (out != label).any()
    assert out.sum() == label.sum()


def test_shift_in_mm_counts_thick_slices():
    label = ball((40, 40, 40), (20, 20, 20), 5)
    out = shift(label, np.random.default_rng(2), (5.0, 1.0, 1.0), length=20.0, unit="mm")
    moved = (np.argwhere(out).mean(0) - np.argwhere(label).mean(0)) * (5.0, 1.0, 1.0)
    assert np.linalg.norm(moved) == pytest.approx(20, abs=3)


def test_a_case_has_its_own_generator_whatever_the_others():
    assert case_rng(1, "a").random() == case_rng(1, "a").random()
    assert case_rng(1, "a").random() != case_rng(1, "b").random()
    assert case_rng(1, "a").random() != case_rng(2, "a").random()


def test_a_share_of_the_classes_is_drawn_each_in_its_own_way():
    label = np.zeros((20, 40, 90), np.uint8)
    for value in range(1, 5):
        label[5:15, 10:30, 22 * value - 16 : 22 * value - 4] = value
    ways = set()
    for seed in range(8):
        out = boundary(label, np.random.default_rng(seed), n_max=1, share=0.5)
        changes = [int((out == value).sum()) - 2400 for value in range(1, 5)]
        assert sum(change != 0 for change in changes) == 2
        ways.add(tuple(sorted(np.sign(changes))))
    assert (-1, 0, 0, 1) in ways, "one grows, one shrinks"


def test_slices_between_drawn_ones_are_interpolated():
    radii = [0, 0, 0, 4, 6, 8, 10, 12, 14, 16, 14, 12, 10, 0, 0]
    label = np.concatenate([ball((1, 41, 41), (0, 20, 20), r) * (r > 0) for r in radii])
    for seed in range(6):
        out = interpolate(label, np.random.default_rng(seed))
        kept = (out == label).all(axis=(1, 2))
        assert any(kept[first::3].all() for first in range(3))
        assert not kept.all()
        assert min(dice(label[z : z + 1], out[z : z + 1])[1] for z in range(6, 11)) > 0.8


def test_a_class_that_fills_its_slices_is_interpolated_too():
    label = np.ones((7, 6, 6), np.uint8)
    label[5:] = 0
    with np.errstate(all="raise"):
        out = interpolate(label, np.random.default_rng(0))
    assert out[:4].all()
    assert not out[6].any()


def test_a_class_that_no_drawn_slice_has_stays_as_given():
    label = np.zeros((9, 10, 10), np.uint8)
    label[:, 2:5, 2:5] = 1
    label[4, 7:9, 7:9] = 2
    outs = [interpolate(label, np.random.default_rng(seed)) for seed in range(9)]
    assert all((out == 2).any() for out in outs)


def test_a_leak_floods_background_beside_its_class_within_its_radius():
    label = ball((40, 40, 40), (20, 20, 14), 10) + ball((40, 40, 40), (20, 20, 35), 3, value=2)
    for seed in range(6):
        out = leak(label, np.random.default_rng(seed))
        new = out != label
        assert set(out[new]) == {1}, "a class of fewer than 500 voxels does not leak"
        assert not label[new].any()
        extent = np.ptp(np.argwhere(new), axis=0)
        assert 5 <= extent.max() <= 16


def test_a_leak_is_round_in_mm():
    label = np.zeros((12, 60, 60), np.uint8)
    label[5, 25:35, 25:35] = 1
    new = np.argwhere(leak(label, np.random.default_rng(0), (4.0, 1.0, 1.0), low_vox=8.0) != label)
    assert np.ptp(new[:, 0]) <= 4
    assert np.ptp(new[:, 1]) >= 8


def test_a_cut_takes_one_end_of_what_is_labelled():
    label = np.zeros((30, 12, 12), np.uint8)
    label[5:25, 2:10, 2:10] = 1
    ends = set()
    for seed in range(8):
        left = np.flatnonzero(cut(label, np.random.default_rng(seed)).any(axis=(1, 2)))
        assert 10 <= len(left) <= 14
        assert left[0] == 5 or left[-1] == 24
        ends.add(left[0] == 5)
    assert ends == {True, False}
    assert 4 <= cut(label[6:7], np.random.default_rng(0)).any(axis=2).sum() < 8


def test_a_mirrored_label_is_itself_when_mirrored_again():
    label = two_touching_boxes()
    for axis in ("z", "y", "x"):
        out = mirror(label, None, axis=axis)
        np.testing.assert_array_equal(mirror(out, None, axis=axis), label)
    np.testing.assert_array_equal(mirror(label, None), label[:, :, ::-1])


def test_a_merged_class_has_its_neighbours_name():
    label = np.zeros((4, 10, 40), np.int16)
    label[:, 2:5, 2:6], label[:, 2:8, 10:14], label[:, 2:5, 30:34] = 4, 9, 5
    np.testing.assert_array_equal(
        merge(label, case_rng(0, "a"), value=5), np.where(label == 5, 9, label)
    )


def test_named_pairs_are_exchanged_as_left_and_right():
    label = np.arange(6, dtype=np.uint8).reshape(1, 2, 3)
    out = swap(label, case_rng(0, "a"), pairs="2:3 5:4")
    assert out.ravel().tolist() == [0, 1, 3, 2, 5, 4]


def test_several_classes_can_be_forgotten():
    label = np.arange(6, dtype=np.uint8).reshape(1, 2, 3)
    left = {len(np.unique(drop(label, np.random.default_rng(s), count=2))) for s in range(9)}
    assert left == {4}
    assert not drop(label, case_rng(0, "a"), count=9).any()


@pytest.mark.parametrize(
    ("noise", "params", "message"),
    [
        ("boundry", {}, "did you mean 'boundary'"),
        ("polygon", {"vertex": 3}, "did you mean 'vertices'"),
        ("boundary", {"n_max": 0}, "at least 1"),
        ("boundary", {"low_vox": 2.0, "high_vox": 1.0}, "low_vox <= high_vox"),
        ("boundary", {"n_max": 2.5}, "boundary.n_max must be of type int"),
        ("drop", {"value": "liver"}, "drop.value must be of type int"),
        ("bias", {"sign": 0}, "sign"),
        ("bias", {"unit": "inch"}, "unit"),
        ("polygon", {"vertices": 2}, "at least 3"),
        ("drop", {"target": "organ"}, "component"),
        ("shift", {"length": 0.0}, "length"),
        ("smooth", {"descriptors": 1}, "at least 2"),
        ("swap", {"target": "organ"}, "component"),
        ("swap", {"pairs": "2-3"}, "pairs as"),
        ("swap", {"pairs": "2:3 3:4"}, "each class once"),
        ("boundary", {"share": 0.0}, "share above 0"),
        ("drop", {"count": 0}, "at least 1"),
        ("leak", {"low_vox": 9.0}, "low_vox <= high_vox"),
        ("cut", {"high_share": 1.5}, "high_share <= 1"),
        ("mirror", {"axis": "left"}, '"z", "y" or "x"'),
        ("interpolate", {"every": 1}, "every >= 2"),
        ("markov", {"th1": 1.5}, "th1 from 0 to 1"),
        ("markov", {"steps": -1}, "steps >= 0"),
        ("markov", {"smoothing": "strong"}, "published, none"),
    ],
)
def test_wrong_names_and_values_are_refused_with_a_remedy(noise, params, message):
    with pytest.raises(ConfigError, match=message):
        corrupt(two_touching_boxes(), noise, case_rng(0, "a"), ISOTROPIC, **params)


@pytest.mark.parametrize("name", NOISES)
def test_the_page_names_every_parameter_with_its_default(name):
    page = (Path(__file__).resolve().parents[2] / "docs" / "methods.md").read_text()
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
    for parameter in inspect.signature(NOISES[name]).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            value = {None: "null", "": '""'}.get(parameter.default, parameter.default)
            shown = f"{value:g}" if isinstance(value, float) else value
            assert f"`{parameter.name}={shown}`" in row
