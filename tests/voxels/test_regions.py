"""Changed regions carry one change and one reason; classes may not vanish unseen."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegclean.errors import InputError
from raysegclean.evidence import voxel_evidence as evidence
from raysegclean.voxels import regions
from raysegclean.voxels.geometry import Box, Grid
from raysegclean.voxels.regions import (
    change_components,
    change_regions,
    class_components,
)


def regions_of(given_zyx, output_zyx, shard_zyx, **layers):
    grid = Grid(given_zyx.shape, shard_zyx)
    blocks = []
    for index in grid.indices():
        box = grid.box(index)
        cut = {name: array[box.slices] for name, array in layers.items()}
        blocks.append(change_components(given_zyx[box.slices], output_zyx[box.slices], box, **cut))
    return change_regions("c1", blocks, (2.0, 0.5, 0.5), range(256))


def test_a_liver_rim_given_back_across_two_shards_is_one_region():
    given_zyx = np.zeros((4, 8, 8), np.uint8)
    given_zyx[:, 2:6, 1:7] = 2
    output_zyx = given_zyx.copy()
    output_zyx[:, 2, 1:7] = 0
    confidence_zyx = np.where(given_zyx != output_zyx, 200, 9).astype(np.uint8)
    reason_zyx = np.where(given_zyx != output_zyx, 3, 0).astype(np.uint8)
    (region,) = regions_of(
        given_zyx, output_zyx, (4, 8, 4), confidence_zyx=confidence_zyx, reason_zyx=reason_zyx
    )
    assert (region.class_from, region.class_to, region.reason) == (2, 0, 3)
    assert (region.voxels, region.mm3) == (24, 12.0)
    assert (region.start_zyx, region.stop_zyx) == ((0, 2, 1), (4, 3, 7))
    assert region.anchor_zyx == (0, 2, 1)
    assert region.confidence == pytest.approx(200.5 / 256)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.tuples(*[st.integers(1, 4)] * 3))
def test_regions_do_not_depend_on_the_cut(seed, shard):
    rng = np.random.default_rng(seed)
    shape = (4, 5, 6)
    given_zyx = rng.integers(0, 3, shape).astype(np.uint8)
    output_zyx = rng.integers(0, 3, shape).astype(np.uint8)
    output_zyx[0, 0, 0] = 249
    layers = {
        "reason_zyx": rng.integers(1, 3, shape).astype(np.uint8),
        "confidence_zyx": rng.integers(0, 256, shape).astype(np.uint8),
    }
    whole = regions_of(given_zyx, output_zyx, shape, **layers)
    assert regions_of(given_zyx, output_zyx, shard, **layers) == whole
    assert sum(r.voxels for r in whole) == int((given_zyx != output_zyx).sum())
    for region in whole:
        at = region.anchor_zyx
        assert region.class_from == given_zyx[at]
        assert region.class_to == output_zyx[at]
        assert region.reason == layers["reason_zyx"][at]


def test_a_change_of_reason_splits_a_region():
    given_zyx = np.ones((1, 1, 6), np.uint8)
    output_zyx = np.zeros((1, 1, 6), np.uint8)
    reason_zyx = np.array([[[1, 1, 1, 2, 2, 2]]], np.uint8)
    found = regions_of(given_zyx, output_zyx, (1, 1, 4), reason_zyx=reason_zyx)
    assert [(r.reason, r.voxels) for r in found] == [(1, 3), (2, 3)]


def test_without_confidences_none_is_claimed():
    label = np.ones((1, 1, 2), np.uint8)
    block = change_components(label, label * 0, Box.whole((1, 1, 2)))
    (region,) = change_regions("c", [block], (1.0, 1.0, 1.0), (0, 7), with_confidence=False)
    assert region.confidence is None


def test_levels_are_those_of_the_evidence():
    assert regions.LEVELS == evidence.LEVELS


def test_a_region_tells_classes_of_any_size():
    given_zyx = np.full((1, 1, 2), 249, np.uint8)
    block = change_components(given_zyx, given_zyx - 1, Box.whole((1, 1, 2)))
    values = [*range(248), 614454277, 2**63 + 5]
    (region,) = change_regions("c", [block], (1.0, 1.0, 1.0), values)
    assert (region.class_from, region.class_to) == (2**63 + 5, 614454277)


def test_negative_classes_are_refused():
    with pytest.raises(InputError, match="negative"):
        class_components(np.full((1, 1, 1), -1), Box.whole((1, 1, 1)))
