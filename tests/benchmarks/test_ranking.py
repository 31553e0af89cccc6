"""How well scores rank cases: of made rows, and of the stored evidence of two archives."""

from pathlib import Path

import pytest
from cells import MEASURED, read_cell
from ranking import ranking, scored

from raysegclean.store.parquet import from_parquet


def test_the_true_order_reaches_the_ceiling_and_gross_cases_come_first() -> None:
    kinds = ["cut"] * 6 + ["clean"] * 6
    rows = [
        {"case": f"c{n}", "kind": kind, "gross": n < 3, "given": min(1, n / 6)}
        for n, kind in enumerate(kinds)
    ]
    found = ranking(rows, {f"c{n}": n / 12 for n in range(12)})
    assert found["spearman"] == pytest.approx(found["ceiling"])
    assert 0.9 < found["ceiling"] < 1
    assert found["gross_auc"] == 1
    assert ranking(rows, {f"c{n}": -n for n in range(12)})["gross_auc"] == 0


@pytest.mark.parametrize(
    ("name", "spearman", "gross_auc"),
    [("hippocampus.200.s1", 0.88, 0.97), ("ct.40.s1", 0.79, 0.92)],
)
def test_stored_evidence_ranks_as_well_as_it_did(
    name: str, spearman: float, gross_auc: float
) -> None:
    stem = MEASURED / "defaults" / f"{name}.uncertainty"
    evidence = Path(f"{stem}.evidence.parquet").read_bytes()
    found = ranking(
        read_cell(Path(f"{stem}.json.gz"))["rows"], scored(from_parquet(evidence).to_pylist())
    )
    assert found["spearman"] >= spearman, found
    assert found["gross_auc"] >= gross_auc, found
