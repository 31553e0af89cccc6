"""Repairs of gross errors: a block of the case gives what the whole case gives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegclean.policy.edits import (
    CaseEdits,
    Cut,
    Displace,
    Exchange,
    Mirror,
    Reason,
    Region,
    Review,
)
from raysegclean.policy.gross_apply import UNSEEN, repair_gross, restated
from raysegclean.voxels.geometry import Box, Grid, Index3
from raysegclean.voxels.packing import mask_to_text

SHAPE = (7, 9, 11)


def _repaired(
    label: np.ndarray, seen: np.ndarray, edits: CaseEdits, core: Box
) -> tuple[np.ndarray, np.ndarray]:
    given_core = label[core.slices]
    out, reason = given_core.copy(), np.zeros(given_core.shape, np.uint8)
    wanted = restated(lambda box: label[box.slices], core, SHAPE, edits)
    repair_gross(out, reason, seen[core.slices], edits, wanted, core.start_zyx)
    return out, reason


def _blob(seed: int) -> Region:
    mask = np.random.default_rng(seed).random((4, 3, 5)) < 0.6
    return Region(box=Box((2, 1, 3), (6, 4, 8)), voxels=mask_to_text(mask))


steps = st.integers(-4, 4)
repairs = st.one_of(
    st.just({1: Exchange(becomes=2), 2: Exchange(becomes=1)}),
    st.integers(0, 2).map(lambda axis: dict.fromkeys((1, 2, 3), Mirror(axis=axis))),
    st.tuples(steps, steps, steps).map(lambda by: dict.fromkeys((1, 2, 3), Displace(by_zyx=by))),
    st.tuples(st.integers(0, 2), st.integers(0, 6), st.booleans()).map(
        lambda cut: {1: Cut(axis=cut[0], plane_vox=cut[1], upwards=cut[2]), 2: Review()}
    ),
    st.integers(0, 99).map(lambda seed: {1: _blob(seed), 3: Review()}),
)


@settings(max_examples=60, deadline=None)
@given(repairs, st.integers(0, 99), st.tuples(*(st.integers(1, 11) for _ in range(3))))
def test_any_cut_into_blocks_gives_the_same_label_and_reasons(
    classes: dict, seed: int, shard_zyx: Index3
) -> None:
    rng = np.random.default_rng(seed)
    label, seen = (rng.integers(0, 4, SHAPE).astype(np.uint8) for _ in range(2))
    edits = CaseEdits(classes)
    whole = _repaired(label, seen, edits, Box.whole(SHAPE))
    grid = Grid(SHAPE, shard_zyx)
    for index in grid.indices():
        core = grid.box(index)
        part = _repaired(label, seen, edits, core)
        for mine, all_of_it in zip(part, whole, strict=True):
            assert np.array_equal(mine, all_of_it[core.slices])
    changed = whole[0] != label
    assert np.array_equal(changed, whole[1] > 0)
    closed = [c for c, edit in classes.items() if isinstance(edit, Review)]
    assert not np.isin(label[changed], closed).any()
    assert not np.isin(whole[0][changed], closed).any()


def test_what_a_displaced_label_says_nothing_of_is_the_networks() -> None:
    label, seen = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    label[2:5, 0:3, 2:5] = 1
    seen[2:5, 0:6, 2:5] = 1
    edits = CaseEdits({1: Displace(by_zyx=(0, 3, 0))})
    wanted = restated(lambda box: label[box.slices], Box.whole(SHAPE), SHAPE, edits)
    assert wanted is not None
    assert (wanted[:, :3] == UNSEEN).all()
    out, reason = _repaired(label, seen, edits, Box.whole(SHAPE))
    assert np.array_equal(out, seen)
    assert set(np.unique(reason)) == {0, Reason.DISPLACE}


@pytest.mark.parametrize("upwards", [True, False])
def test_a_cut_is_filled_on_its_side_only(*, upwards: bool) -> None:
    label, seen = np.zeros(SHAPE, np.uint8), np.ones(SHAPE, np.uint8)
    edits = CaseEdits({1: Cut(axis=0, plane_vox=3, upwards=upwards)})
    out, _ = _repaired(label, seen, edits, Box.whole(SHAPE))
    filled = out.any(axis=(1, 2))
    assert np.flatnonzero(filled).tolist() == ([3, 4, 5, 6] if upwards else [0, 1, 2, 3])
