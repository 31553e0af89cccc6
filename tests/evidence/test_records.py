"""Counts of shards add up to those of their case, in whatever order they come."""

from dataclasses import fields
from functools import reduce

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysegclean.evidence.records import ChangeCounts

NAMES = [one.name for one in fields(ChangeCounts)]


@given(
    shards=st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=2), min_size=1, max_size=5),
    counted=st.sets(st.sampled_from(NAMES)),
)
def test_counts_add_up_and_what_was_not_counted_stays_empty(shards, counted):
    parts = [ChangeCounts(**{name: tuple(one) for name in counted}) for one in shards]
    merged = reduce(ChangeCounts.merge, parts, ChangeCounts())
    assert merged == reduce(ChangeCounts.merge, reversed(parts))
    total = tuple(np.sum(shards, axis=0).tolist())
    assert all(getattr(merged, name) == (total if name in counted else ()) for name in NAMES)


@pytest.mark.parametrize(("kept", "changed"), [((6, 4), 0), ((6, 1), 3), ((0, 0), 10)])
def test_what_was_not_kept_has_changed(kept, changed):
    assert ChangeCounts(given_vox=(6, 4), kept_vox=kept).changed_vox == changed
