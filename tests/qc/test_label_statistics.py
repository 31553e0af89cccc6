"""Facts of a label are those of the whole case, however it was cut, and what they say is true."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from raysegclean.evidence.cases import Intensity
from raysegclean.qc.label_statistics import (
    BlockStatistics,
    LabelStatistics,
    block_statistics,
    label_statistics,
)
from raysegclean.voxels.geometry import Box, Grid

INTENSITY = Intensity(-1000.0, -900.0, 900.0, 1000.0, 10.0, 100.0)


def about(shape_zyx, intensity=INTENSITY):
    return LabelStatistics(
        case="a",
        shape_zyx=shape_zyx,
        spacing_mm=(1.0, 1.0, 1.0),
        affine=None,
        image_key="",
        label_key="",
        intensity=intensity,
    )


def blocks_of(label, image, shard_zyx):
    grid = Grid(label.shape, shard_zyx)
    for index in grid.indices():
        core = grid.box(index)
        window = Box(core.start_zyx, tuple(b + 1 for b in core.stop_zyx))
        window = window.clipped(Box.whole(label.shape))
        grey = None if image is None else image[window.slices]
        yield block_statistics(label[window.slices], window, core, label.shape, grey, INTENSITY)


def facts_of(label, image=None, shard_zyx=None):
    blocks = blocks_of(label, image, shard_zyx or label.shape)
    return label_statistics(blocks, about(label.shape))


def told(facts):
    """Facts as text, in which an unknown number (NaN) equals itself."""
    return repr(facts)


@st.composite
def scenes(draw):
    shape = tuple(draw(st.integers(1, 9)) for _ in range(3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rough = ndimage.gaussian_filter(rng.random(shape), draw(st.sampled_from([0.0, 1.0])))
    label = np.digitize(rough, np.quantile(rough, [0.5, 0.8])).astype(np.uint16) * 300
    image = rng.normal(0, 200, shape).astype(np.int16)
    shard = tuple(draw(st.integers(1, 9)) for _ in range(3))
    return label, image, shard


@settings(max_examples=80)
@given(scenes())
def test_facts_do_not_depend_on_the_cut(scene):
    label, image, shard = scene
    assert told(facts_of(label, image, shard)) == told(facts_of(label, image))


@settings(max_examples=40)
@given(scenes(), st.integers(0, 99))
def test_merging_is_associative_and_commutative(scene, seed):
    label, image, shard = scene
    blocks = list(blocks_of(label, image, shard))
    whole = told(label_statistics(blocks, about(label.shape)))
    order = np.random.default_rng(seed).permutation(len(blocks))
    shuffled = [blocks[i] for i in order]
    half = len(blocks) // 2
    zero = BlockStatistics.zero(label.shape)
    left, right = zero, zero
    for block in shuffled[:half]:
        left = left.merge(block)
    for block in shuffled[half:]:
        right = block.merge(right)
    assert told(label_statistics([left, right], about(label.shape))) == whole
    assert told(label_statistics([right.merge(left)], about(label.shape))) == whole


@settings(max_examples=30)
@given(scenes())
def test_a_block_survives_the_ledger(scene):
    label, image, shard = scene
    blocks = list(blocks_of(label, image, shard))
    again = [BlockStatistics.from_text(block.to_text()) for block in blocks]
    expected = told(label_statistics(blocks, about(label.shape)))
    assert told(label_statistics(again, about(label.shape))) == expected


@settings(max_examples=40)
@given(scenes())
def test_what_the_facts_say_is_what_is_counted_voxel_by_voxel(scene):
    label, image, shard = scene
    found = facts_of(label, image, shard)
    assert sorted(found.classes) == sorted(set(np.unique(label).tolist()) - {0})
    for value, one in found.classes.items():
        mask = label == value
        where = np.argwhere(mask)
        assert one.voxels == mask.sum()
        assert one.centre_vox == pytest.approx(tuple(where.mean(axis=0)))
        assert one.low_vox == tuple(where.min(axis=0))
        assert one.high_vox == tuple(where.max(axis=0) + 1)
        ids, count = ndimage.label(mask)
        assert one.components == count
        sizes = np.bincount(ids[mask])[1:]
        assert one.parts == (sizes >= 0.1 * mask.sum()).sum()
        inside = (image[mask].astype(float) - 10) / 100
        assert one.grey == pytest.approx(inside.mean(), abs=0.003)
        assert one.grey_sd == pytest.approx(inside.std(), abs=0.006)
        steps = [
            abs(float(image[v]) - float(image[w])) / 100
            for v in product(*map(range, label.shape))
            for w in neighbours_above(v, label.shape)
            if mask[v] != mask[w]
        ]
        assert one.step == pytest.approx(
            np.mean(steps) if steps else np.nan, abs=0.005, nan_ok=True
        )


def neighbours_above(voxel, shape):
    for axis in range(3):
        if voxel[axis] + 1 < shape[axis]:
            yield tuple(n + (a == axis) for a, n in enumerate(voxel))


def test_skipped_slices_and_flat_ends_are_seen():
    label = np.zeros((20, 12, 12), np.uint8)
    label[2:9, 2:10, 2:10] = label[11:16, 2:10, 2:10] = 1
    label[1, 5, 5] = 1
    (one,) = facts_of(label).classes.values()
    (gap,) = one.gaps
    assert (gap.axis, gap.start, gap.slices, gap.flank) == (0, 9, 2, 1.0)
    assert one.ends[:2] == (1 / 64, 1.0)


def test_an_ignored_value_is_no_class_and_hides_gaps_and_ends_but_not_where_it_is_small():
    label = np.zeros((20, 12, 12), np.uint8)
    label[2:9, 2:10, 2:10] = label[11:16, 2:10, 2:10] = 1
    label[9:11] = label[16] = 255
    blocks = list(blocks_of(label, None, label.shape))
    facts = label_statistics(blocks, about(label.shape), 255)
    assert list(facts.classes) == [1]
    assert facts.classes[1].gaps == ()
    assert facts.classes[1].ends[:2] == (1.0, 0.0)
    label[label == 255] = 0
    label[:, 0, 0] = 255
    one = label_statistics(blocks_of(label, None, label.shape), about(label.shape), 255).classes[1]
    assert [(gap.axis, gap.slices) for gap in one.gaps] == [(0, 2)]
    assert one.ends[:2] == (1.0, 1.0)


def test_without_an_image_intensities_are_unknown():
    label = np.ones((2, 2, 2), np.uint8)
    (one,) = facts_of(label).classes.values()
    assert np.isnan([one.grey, one.grey_sd, one.step]).all()


def test_equal_labels_have_one_key_and_others_another():
    rng = np.random.default_rng(0)
    label = (rng.random((4, 5, 6)) > 0.5).astype(np.uint8)
    moved = np.roll(label, 1, axis=2)
    assert facts_of(label).label_key == facts_of(label.astype(np.int32), None, (2, 3, 2)).label_key
    assert facts_of(label).label_key != facts_of(moved).label_key
    assert facts_of(label).label_key != facts_of(label * 2).label_key
