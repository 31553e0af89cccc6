"""The figures by kind of error agree with figures worked by hand."""

import numpy as np
import pytest
from by_kind import case_rows, figures
from cpu import CpuMeter

from raysegclean.simulate.noisy_archive import SIMULATED
from raysegclean.store.archive import Archive, write_case


def row(kind: str, given: float, after: float, **more: object) -> dict[str, object]:
    told = {"case": f"{kind}{given}{after}", "kind": kind, "given": given, "after": after}
    told |= {"kept": 1.0, "hurt_after": after, "gross": kind == "mirror", "review": {}}
    return told | more


def test_error_is_counted_over_all_wrong_cases_together():
    found = figures(
        [
            row("outlines", 0.8, 0.9),
            row("mirror", 0.2, 0.2),
            row("mirror", 0.4, 0.4, review={"class 2: like no other": 2}),
            row("clean", 1.0, 0.9, kept=0.9),
            row("clean", 1.0, 1.0),
        ]
    )
    assert found["error_removed"] == pytest.approx(0.1 / 1.6)
    assert found["gross_kept_silently"] == ["mirror0.20.2"]
    assert (found["clean"], found["clean_mean"], found["clean_worst"]) == (2, 0.95, 0.9)
    mirrored = found["kinds"]["mirror"]
    assert (mirrored["cases"], mirrored["in_review"], mirrored["worse"]) == (2, 1, 0)
    assert mirrored["review_because"] == {"class 2: like no other": 2}


def test_a_case_is_scored_by_the_classes_that_truth_or_label_have(tmp_path):
    archive = Archive.open(tmp_path / "a")
    truth = np.zeros((4, 8, 8), np.uint8)
    truth[:, :4], truth[:, 4:6] = 1, 2
    given = np.where(truth == 2, 0, truth)
    labels = {"organs": given, "organs_truth": truth, "organs_x": truth}
    write_case(archive, "c", truth.astype(np.int16), labels, spacing_mm=(1.0, 1.0, 1.0))
    archive.store.put_json(SIMULATED, {"c": {"noise": "drop", "kind": "forgotten"}})
    table = [{"case": "c", "class": 2, "action": "review", "why": "missing"}]
    (found,) = case_rows(archive, "organs", "organs_x", table)
    assert (found["kind"], found["gross"], found["review"]) == ("forgotten", True, {"missing": 1})
    assert (found["given"], found["after"], found["hurt_after"], found["kept"]) == (0.5, 1, 1, 0.5)


def test_cpu_time_is_that_between_two_moments():
    meter = CpuMeter()
    meter._samples = [(0.0, 0.0), (10.0, 60.0), (20.0, 180.0), (30.0, 240.0)]
    assert meter.minutes() == 4
    assert meter.minutes(10.0, 25.0) == 2
