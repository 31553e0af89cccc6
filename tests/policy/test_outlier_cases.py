"""Groups that stand out by how badly they fit, on what a policy read of a real archive."""

from collections import Counter

import pyarrow.parquet as pq
from cells import MEASURED, read_cell

from raysegclean.evidence.case_scores import scores_of
from raysegclean.policy.default import decide
from raysegclean.policy.edits import Review

CELL = "hippocampus.200.s1.uncertainty"
HARD = "fits the networks worse than in most cases"
OF_THE_WHOLE = ("shift", "mirror", "swap")
"""Kinds that are undone before the policy sees a case."""


def test_hard_cases_among_those_that_fit_badly_are_not_changed() -> None:
    kept = MEASURED / "defaults"
    kinds = {row["case"]: row["kind"] for row in read_cell(kept / f"{CELL}.json.gz")["rows"]}
    scores = scores_of(pq.read_table(kept / f"{CELL}.evidence.parquet").to_pylist())
    found = decide([one for one in scores if kinds[one.case] not in OF_THE_WHOLE])
    apart = {case for case, one in found.items() if HARD in one.classes[1].why}
    counts = Counter(kinds[case] for case in apart)
    assert counts["clean"] >= 10, "the evidence no longer shows that hard cases are among them"
    assert counts["polygon"] >= 15
    assert all(isinstance(found[case].classes[1].edit, Review) for case in apart)
    assert not [c for c in found if kinds[c] == "clean" and found[c].flagged and c not in apart]
