"""The worst given label comes first, what nothing is known of last."""

from pathlib import Path
from typing import Any

import pytest

import raysegclean as rsc
from raysegclean.errors import InputError
from raysegclean.store.run import RunFolder


def row(case: str, cls: int, quality: float | None) -> dict[str, Any]:
    low, high = (None, None) if quality is None else (quality - 0.1, 1.0)
    about = {"case": case, "class": cls, "action": "keep", "why": f"of {cls}"}
    return about | {"quality": quality, "quality_low": low, "quality_high": high}


def test_cases_are_ranked_by_the_mean_of_their_classes(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path / "run"))
    run.freeze({"identity": {}})
    rows = [
        row("good", 1, 0.98),
        row("good", 2, 0.96),
        row("unknown", 1, None),
        row("unknown", 2, None),
    ]
    run.write_table("cases.parquet", [*rows, row("bad", 1, 0.9), row("bad", 2, 0.1)])
    found = rsc.rank(run.uri).cases
    assert [one.case for one in found] == ["bad", "good", "unknown"]
    assert (found[0].quality, found[0].worst_class, found[0].why) == (0.5, 2, "of 2")
    assert found[1].low == pytest.approx(0.87)
    assert "unknown" in rsc.rank(run.uri).text()


def test_a_run_that_has_not_judged_cannot_be_ranked(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path / "run"))
    run.freeze({"identity": {}})
    with pytest.raises(InputError, match=r"cases\.parquet is missing"):
        rsc.rank(run.uri)
