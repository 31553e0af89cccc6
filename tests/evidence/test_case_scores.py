"""Scores become rows of a table and come back to the bit."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from raysegclean.evidence.case_scores import CaseScore, ClassScore, Kind, evidence_rows, scores_of

reals = st.floats(width=64, allow_infinity=False)
counts = st.integers(0, 2**40)
histograms = st.lists(counts, min_size=4, max_size=4).map(lambda one: np.array(one, np.int64))
classes = st.builds(
    ClassScore, reals, counts, reals, counts, counts, counts, counts, reals, reals,
    st.dictionaries(st.sampled_from(list(Kind)), histograms),
)  # fmt: skip
cases = st.builds(
    CaseScore,
    st.text("abc", min_size=1),
    classes,
    st.dictionaries(st.integers(1, 5), classes, min_size=1),
    st.integers(0, 3),
)
archives = st.lists(cases, unique_by=lambda score: score.case)


def through_parquet(rows):
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return pq.read_table(io.BytesIO(buffer.getvalue())).to_pylist()


def plain(score: CaseScore):
    """Return the score as text, in which NaN equals NaN and every bit counts."""
    parts = {0: score.foreground, **score.classes}
    return score.case, score.fold, [
        (key, repr([getattr(one, name) for name in ("offset_vox", "nats", "spread_vox",
         "roughness_vox", "boundary_vox", "union_vox", "given_vox", "predicted_vox", "both_vox")]),
         {kind: list(values) for kind, values in one.candidates.items()})
        for key, one in parts.items()
    ]  # fmt: skip


@given(archives, archives)
def test_scores_come_back_as_they_were(scores, trusted) -> None:
    rows = through_parquet(evidence_rows(scores, trusted))
    assert [*map(plain, scores_of(rows))] == [*map(plain, scores)]
    assert [*map(plain, scores_of(rows, "trusted"))] == [*map(plain, trusted)]
