"""Groups that stand out by how badly they fit, on what a policy read of a real archive."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

from raysegclean.evidence.case_scores import scores_of
from raysegclean.policy.default import decide
from raysegclean.policy.edits import Review
from raysegclean.policy.outlier_cases import CORRUPTION

MEASURED = Path(__file__).resolve().parents[2] / "benchmarks" / "measured" / "defaults"
CELL = MEASURED / "hippocampus.200.s1.uncertainty"
OF_THE_WHOLE = ("shift", "mirror", "swap")
"""Kinds that are undone before the policy sees a case."""


def test_hard_cases_among_those_that_fit_badly_are_not_changed() -> None:
    cell = json.loads(gzip.decompress(CELL.with_name(f"{CELL.name}.json.gz").read_bytes()))
    kinds = {row["case"]: row["kind"] for row in cell["rows"]}
    scores = scores_of(pq.read_table(CELL.with_name(f"{CELL.name}.evidence.parquet")).to_pylist())
    found = decide([one for one in scores if kinds[one.case] not in OF_THE_WHOLE])
    apart = {case for case, one in found.items() if CORRUPTION in one.classes[1].why}
    counts = Counter(kinds[case] for case in apart)
    assert counts["clean"] >= 10, "the evidence no longer shows that hard cases are among them"
    assert counts["polygon"] >= 15
    assert all(isinstance(found[case].classes[1].edit, Review) for case in apart)
    assert not [c for c in found if kinds[c] == "clean" and found[c].flagged and c not in apart]
