"""Components found block by block are those of the whole volume, whatever the cut."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from raysegclean.errors import InputError
from raysegclean.voxels.components import BlockComponents, block_components, merge_components
from raysegclean.voxels.geometry import Box, Grid


def whole_volume_components(key_zyx, weight_zyx):
    """Return (key, voxels, weight, start, stop, anchor) by scipy, one key at a time."""
    found = []
    for key in np.unique(key_zyx[key_zyx > 0]):
        ids, count = ndimage.label(key_zyx == key)  # scipy's default is 6-connectivity
        for one in range(1, count + 1):
            voxels = np.argwhere(ids == one)
            found.append(
                (
                    int(key),
                    len(voxels),
                    int(weight_zyx[ids == one].sum()),
                    tuple(voxels.min(axis=0).tolist()),
                    tuple((voxels.max(axis=0) + 1).tolist()),
                    tuple(voxels[0].tolist()),
                )
            )
    return sorted(found, key=lambda row: row[-1])


def cut_and_merge(key_zyx, weight_zyx, shard_zyx, order=None):
    grid = Grid(key_zyx.shape, shard_zyx)
    blocks = []
    for index in grid.indices():
        box = grid.box(index)
        blocks.append(block_components(key_zyx[box.slices], box, weight_zyx=weight_zyx[box.slices]))
    if order is not None:
        blocks = [blocks[i] for i in order.permutation(len(blocks))]
    return [
        (c.key, c.voxels, c.weight, c.box.start_zyx, c.box.stop_zyx, c.anchor_zyx)
        for c in merge_components(blocks)
    ]


@st.composite
def cut_volumes(draw):
    shape = tuple(draw(st.integers(1, 9)) for _ in range(3))
    shard = tuple(draw(st.integers(1, 6)) for _ in range(3))
    return shape, shard, draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([0.2, 0.5, 0.8]))


@settings(max_examples=150, deadline=None)
@given(cut_volumes())
def test_any_cut_gives_the_components_of_the_whole_volume(scene):
    shape, shard, seed, density = scene
    rng = np.random.default_rng(seed)
    key = (rng.random(shape) < density) * rng.integers(1, 4, shape).astype(np.uint16)
    weight = rng.integers(0, 256, shape).astype(np.uint8)
    expected = whole_volume_components(key, weight)
    assert cut_and_merge(key, weight, shard, order=rng) == expected
    assert cut_and_merge(key, weight, shape) == expected


@pytest.mark.parametrize("dtype", [np.uint8, np.uint32, np.uint64])
def test_a_spiral_through_all_blocks_is_one_component(dtype):
    key = np.zeros((6, 12, 12), dtype)
    key[0, 0, :] = key[0, :, 11] = key[0, 11, :] = key[:, 11, 0] = key[5, 4:, 0] = 7
    (only,) = cut_and_merge(key, np.ones_like(key, np.uint8), (2, 3, 5))
    assert only[:3] == (7, int((key == 7).sum()), int((key == 7).sum()))
    assert only[3:5] == ((0, 0, 0), (6, 12, 12))


def test_equal_keys_that_touch_only_at_a_corner_stay_apart():
    key = np.zeros((2, 4, 4), np.uint8)
    key[0, 1, 1] = key[1, 2, 2] = 1
    assert len(cut_and_merge(key, np.zeros_like(key), (1, 2, 2))) == 2


def test_other_keys_across_a_face_stay_apart():
    key = np.ones((1, 1, 8), np.uint8)
    key[..., 4:] = 2
    assert [row[:2] for row in cut_and_merge(key, key, (1, 1, 4))] == [(1, 4), (2, 4)]


def test_records_survive_plain_arrays(tmp_path):
    rng = np.random.default_rng(1)
    key = rng.integers(0, 3, (5, 6, 7)).astype(np.uint8)
    grid = Grid((5, 6, 7), (3, 4, 4))
    blocks = [block_components(key[grid.box(i).slices], grid.box(i)) for i in grid.indices()]
    stored = []
    for number, block in enumerate(blocks):
        np.savez(tmp_path / f"{number}.npz", **block.to_arrays())
        with np.load(tmp_path / f"{number}.npz", allow_pickle=False) as data:
            stored.append(BlockComponents.from_arrays(dict(data)))
    assert merge_components(stored) == merge_components(blocks)


def test_nothing_gives_no_component():
    box = Box.whole((4, 4, 4))
    empty = block_components(np.zeros((4, 4, 4), np.uint8), box)
    assert merge_components([empty]) == []
    assert merge_components([]) == []


def test_a_block_with_halo_is_refused():
    with pytest.raises(InputError, match="without halo"):
        block_components(np.zeros((4, 4, 5), np.uint8), Box.whole((4, 4, 4)))


def test_a_block_that_comes_twice_is_refused():
    block = block_components(np.ones((2, 2, 2), np.uint8), Box.whole((2, 2, 2)))
    with pytest.raises(InputError, match="twice"):
        merge_components([block, block])


def test_blocks_of_different_grids_are_refused():
    low = block_components(np.ones((2, 2, 2), np.uint8), Box((0, 0, 0), (2, 2, 2)))
    high = block_components(np.ones((2, 2, 3), np.uint8), Box((2, 0, 0), (4, 2, 3)))
    with pytest.raises(InputError, match="one grid"):
        merge_components([low, high])
