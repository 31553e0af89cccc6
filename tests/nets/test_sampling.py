"""Patch draws: pure, fair, resumable, and inside the case."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegclean.errors import CaseError, ConfigError, InputError
from raysegclean.evidence.cases import BlockCounts, CaseInfo, Intensity, LabelSummary, block_grid
from raysegclean.nets.sampling import (
    build_table,
    draw,
    flip,
    patch_box,
    place_patch,
    present_channels,
)
from raysegclean.voxels.channels import IGNORE, channels_of, pad_to_box
from raysegclean.voxels.geometry import Box
from raysegclean.voxels.resampling import WorkingGrid


def info_of(case: str, label_zyx: np.ndarray) -> CaseInfo:
    """Index one label the slow way."""
    grid = block_grid(label_zyx.shape)
    values = [int(v) for v in np.unique(label_zyx)]
    blocks = {
        value: tuple(
            (flat, int((label_zyx[grid.box(index).slices] == value).sum()))
            for flat, index in enumerate(grid.indices())
            if (label_zyx[grid.box(index).slices] == value).any()
        )
        for value in values
        if value
    }
    voxels = {value: int((label_zyx == value).sum()) for value in values}
    packed = {value: BlockCounts.of(pairs) for value, pairs in blocks.items()}
    summary = LabelSummary("organs", "uint8", voxels, packed, "v1")
    intensity = Intensity(0, 0, 1, 1, 0.5, 0.1)
    return CaseInfo(
        case=case, patient=case, site=None, annotator=None, shape_zyx=label_zyx.shape,
        channels=1, image_dtype="int16", spacing_mm=(1, 1, 1), intensity=intensity,
        labels=(summary,), image_version="v1",
    )  # fmt: skip


def archive() -> dict[str, np.ndarray]:
    """Two cases over several blocks; class 2 is rare and in one of them only."""
    big = np.zeros((70, 130, 65), np.uint8)
    big[2:10, 2:60, 2:60] = 1
    big[66, 128, 64] = 2
    small = np.zeros((20, 20, 20), np.uint8)
    small[5:9, 5:9, 5:9] = 1
    return {"big": big, "small": small}


LABELS = archive()
TABLE = build_table([info_of(case, label) for case, label in LABELS.items()], "organs", (0, 1, 2))


def many(steps: int, batch: int = 4, **options):
    return [one for step in range(steps) for one in draw(0, step, 0, batch, TABLE, **options)]


def test_a_draw_depends_on_seed_step_and_rank_alone() -> None:
    ahead = [draw(3, step, 1, 4, TABLE) for step in range(5)]
    assert draw(3, 4, 1, 4, TABLE) == ahead[4], "resuming at step 4 needs no earlier step"
    assert len({str(draws) for draws in ahead}) == 5
    assert draw(3, 0, 0, 4, TABLE) != ahead[0]
    assert draw(4, 0, 1, 4, TABLE) != ahead[0]


def test_draws_are_frozen_numbers() -> None:
    # A change here makes every resumed training another training: bump the algorithm version.
    first, second = draw(0, 0, 0, 2, TABLE)
    assert (first.case, first.class_value, first.block.start_zyx) == ("big", 1, (0, 0, 0))
    assert first.u == (0.5644146216071337, 0.5023796042735054, 0.27760557688455356)
    assert (second.case, second.class_value, second.block) == (
        "big",
        None,
        Box.whole((70, 130, 65)),
    )


def test_half_of_a_batch_is_by_class_and_half_uniform() -> None:
    for batch, by_class in ((1, {0: 1, 1: 0}), (2, {0: 1}), (5, {0: 3, 1: 3})):
        for step, expected in by_class.items():
            draws = draw(0, step, 0, batch, TABLE)
            assert sum(one.class_value is not None for one in draws) == expected
            assert len(draws) == batch


def test_classes_are_even_however_rare_and_cases_even_however_big() -> None:
    draws = many(1500)
    classes = Counter(one.class_value for one in draws if one.class_value is not None)
    assert set(classes) == {1, 2}
    assert abs(classes[1] / sum(classes.values()) - 0.5) < 0.03
    holders = Counter(one.case for one in draws if one.class_value == 1)
    assert abs(holders["big"] / sum(holders.values()) - 0.5) < 0.04
    uniform = Counter(one.case for one in draws if one.class_value is None)
    assert abs(uniform["big"] / sum(uniform.values()) - 0.5) < 0.03


def native(shape: tuple[int, int, int]) -> WorkingGrid:
    return WorkingGrid.of(shape, (1.0, 1.0, 1.0), None)


def test_a_class_draw_always_centres_on_its_class() -> None:
    hits = Counter()
    for one in many(300):
        if one.class_value is None:
            continue
        label = LABELS[one.case]
        assert (label[one.block.slices] == one.class_value).any()
        box = place_patch(one, (1, 1, 1), native(label.shape), label[one.block.slices])
        assert label[box.start_zyx] == one.class_value
        if one.case == "small":
            hits[box.start_zyx] += 1
    assert len(hits) > 50, "64 voxels, 150 draws: nearly all must be visited"


def test_on_a_coarser_grid_a_class_draw_centres_on_the_voxel_that_covers_its_class() -> None:
    for one in many(100):
        if one.class_value is None:
            continue
        label = LABELS[one.case]
        grid = WorkingGrid(label.shape, (1.0, 1.0, 1.0), (2.0, 0.0, 2.0))
        z, y, x = place_patch(one, (1, 1, 1), grid, label[one.block.slices]).start_zyx
        covered = label[2 * z : 2 * z + 2, y, 2 * x : 2 * x + 2]
        assert (covered == one.class_value).any()


def test_blocks_are_drawn_by_how_much_of_the_class_they_hold() -> None:
    label = np.zeros((8, 8, 128), np.uint8)
    label[:, :, 0:60] = 1
    label[:, :, 64:84] = 1
    table = build_table([info_of("a", label)], "organs", (1,))
    draws = [draw(0, step, 0, 2, table)[0] for step in range(2000)]
    left = np.mean([one.block.start_zyx[2] == 0 for one in draws])
    assert left == pytest.approx(0.75, abs=0.03)


def test_uniform_patches_reach_every_place_equally() -> None:
    starts = Counter()
    for one in many(2000):
        if one.class_value is None and one.case == "small":
            starts[place_patch(one, (16, 16, 16), native((20, 20, 20))).start_zyx[1]] += 1
    assert set(starts) == {0, 1, 2, 3, 4}
    assert max(starts.values()) < 1.3 * min(starts.values())


def test_the_excluded_fold_is_never_drawn() -> None:
    infos = [info_of(case, label) for case, label in LABELS.items()]
    table = build_table(infos, "organs", (0, 1, 2), exclude={"big"})
    draws = [one for step in range(200) for one in draw(0, step, 0, 4, table)]
    assert {one.case for one in draws} == {"small"}
    assert {one.class_value for one in draws} == {1, None}, "class 2 went with its only case"
    with pytest.raises(ConfigError, match="none of 2 cases is left"):
        build_table(infos, "organs", (1,), exclude=LABELS)


def test_the_order_in_which_cases_are_listed_does_not_matter() -> None:
    infos = [info_of(case, label) for case, label in LABELS.items()]
    table = build_table(infos[::-1], "organs", (2, 1, 0))
    assert all(draw(0, s, 0, 4, table) == draw(0, s, 0, 4, TABLE) for s in range(20))


def test_cases_without_any_class_give_uniform_patches_only() -> None:
    table = build_table([info_of("empty", np.zeros((4, 4, 4), np.uint8))], "organs", (0, 1))
    assert {one.class_value for one in draw(0, 0, 0, 4, table)} == {None}


def test_a_case_without_the_label_is_named() -> None:
    with pytest.raises(CaseError, match=r"big.*'bones' is missing"):
        build_table([info_of("big", LABELS["big"])], "bones", (1,))


def test_only_named_axes_are_flipped() -> None:
    assert {one.flips for one in many(50)} == {(False, False, False)}
    flips = np.array([one.flips for one in many(500, flip_axes=(0, 2))])
    assert not flips[:, 1].any()
    assert np.abs(flips[:, [0, 2]].mean(0) - 0.5).max() < 0.05


edge = st.integers(1, 40)
triples = st.tuples(edge, edge, edge)


@settings(max_examples=100, deadline=None)
@given(triples, triples, st.data())
def test_patches_hold_their_centre_and_stick_out_only_where_the_case_is_short(
    shape, patch, data
) -> None:
    center = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    box = patch_box(center, patch, shape)
    assert box.shape_zyx == patch
    for a, b, c, n, p in zip(box.start_zyx, box.stop_zyx, center, shape, patch, strict=True):
        assert 0 <= a <= c < b
        assert b <= n or (a == 0 and n < p)


def test_a_class_that_left_its_block_falls_back_to_a_place_in_the_block() -> None:
    one = next(one for one in many(20) if one.class_value == 1)
    gone = np.zeros(one.block.shape_zyx, np.uint8)
    box = place_patch(one, (1, 1, 1), native(LABELS[one.case].shape), gone)
    assert box == box.clipped(one.block)


def test_a_class_draw_without_its_label_block_is_refused() -> None:
    one = next(one for one in many(20) if one.class_value == 1)
    with pytest.raises(InputError, match="needs the label in"):
        place_patch(one, (8, 8, 8), native(LABELS[one.case].shape))


def test_padding_repeats_edges_of_images_and_ignores_labels() -> None:
    image = np.arange(3.0).reshape(1, 1, 1, 3)
    have, want = Box((0, 0, 0), (1, 1, 3)), Box((0, 0, 0), (1, 2, 5))
    np.testing.assert_array_equal(
        pad_to_box(image, have, want)[0, 0], [[0, 1, 2, 2, 2], [0, 1, 2, 2, 2]]
    )
    label = np.ones((1, 1, 3), np.int64)
    assert (pad_to_box(label, have, want, IGNORE) == IGNORE).sum() == 7
    assert pad_to_box(image, have, have) is image


def test_flipping_moves_image_and_label_alike() -> None:
    image = np.arange(24).reshape(1, 2, 3, 4)
    flipped = flip(image, (True, False, True))
    np.testing.assert_array_equal(flipped, image[:, ::-1, :, ::-1])
    np.testing.assert_array_equal(flip(image[0], (True, False, True)), flipped[0])
    assert flipped.flags.c_contiguous


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64, np.float32])
def test_label_values_become_channels_and_strangers_have_no_say(dtype) -> None:
    label = np.array([0, 5, 2, 9, 255], dtype).reshape(1, 1, 5)
    assert channels_of(label, (0, 2, 5)).ravel().tolist() == [0, 2, 1, IGNORE, IGNORE]
    assert channels_of(label, (0, 5, 2)).ravel().tolist() == [0, 1, 2, IGNORE, IGNORE]
    assert channels_of(label, (0, 300, 9)).ravel().tolist() == [0, IGNORE, IGNORE, 2, IGNORE]


def test_negative_label_values_have_no_say() -> None:
    label = np.array([-1, 0, 1], np.int32).reshape(1, 1, 3)
    assert channels_of(label, (0, 1)).ravel().tolist() == [IGNORE, 0, 1]


def test_a_case_holds_the_classes_of_its_whole_label():
    assert present_channels(TABLE, (0, 1, 2)) == {"big": (0, 1, 2), "small": (0, 1)}
    assert present_channels(TABLE, (0, 2, 1))["small"] == (0, 2), "channels, not values"
