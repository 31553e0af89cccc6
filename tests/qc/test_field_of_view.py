"""What lies beyond a scan is no error: 40 CTs warped from one patient, with mixed fields of view.

`warped_ct.json.gz` holds what the checks read of 16 groups of organs; 16 of the cases have a noise,
by name. In 29 of the scans the field of view ends within the organs of the upper abdomen.
"""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from raysegclean.evidence.cases import Intensity
from raysegclean.qc import features
from raysegclean.qc.findings import Finding
from raysegclean.qc.integrity import examine
from raysegclean.qc.label_statistics import ClassFacts, Gap, LabelStatistics
from raysegclean.qc.orientation import Frame

STORED = Path(__file__).with_name("warped_ct.json.gz")
CASES = json.loads(gzip.decompress(STORED.read_bytes()))
RIGHT = {case["case"] for case in CASES if not case["noise"]}


def facts(stored):
    gaps = tuple(Gap(**gap) for gap in stored["gaps"])
    return ClassFacts(**{name: _tuples(value) for name, value in stored.items()} | {"gaps": gaps})


def statistics(stored):
    plain = {name: _tuples(value) for name, value in stored.items() if name != "noise"}
    return LabelStatistics(
        **plain
        | {
            "intensity": Intensity(**stored["intensity"]),
            "classes": {int(value): facts(one) for value, one in stored["classes"].items()},
        }
    )


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def said(part: str = "") -> dict[str, list[Finding]]:
    """Return the findings with these words by case."""
    found: dict[str, list[Finding]] = {}
    for finding in examine([statistics(case) for case in CASES]).findings:
        if part in finding.what:
            found.setdefault(finding.case, []).append(finding)
    return found


def test_no_right_case_is_told_to_be_gravely_wrong_and_every_gross_error_is():
    grave = {case for case, found in said().items() if any(one.grave for one in found)}
    assert not grave & RIGHT
    gross = {"swap", "mirror", "shift", "cut", "drop", "merge", "another_case"}
    assert {case["case"] for case in CASES if case["noise"] in gross} <= grave


def test_a_class_beyond_the_scan_is_not_missing_and_one_that_was_not_drawn_is():
    missing = said("is missing")
    assert not missing.keys() & RIGHT
    assert {case["case"] for case in CASES if case["noise"] == "drop"} <= missing.keys()


def test_without_a_look_at_where_it_should_be_three_right_cases_lack_two_classes(monkeypatch):
    monkeypatch.setattr(Frame, "is_inside", lambda *_: True)
    assert len(said("is missing").keys() & RIGHT) == 3


def test_the_rest_of_a_class_that_a_scan_cuts_is_not_judged_by_its_place_and_shape(monkeypatch):
    shown = said()
    monkeypatch.setattr(features, "PARTIAL", 0.0)
    judged = said()
    assert sum(len(judged.get(case, ())) - len(shown.get(case, ())) for case in RIGHT) >= 15
    assert sum(any(one.grave for one in judged.get(case, ())) for case in RIGHT) >= 6


def test_the_room_between_two_organs_of_a_class_is_no_skipped_slice():
    (between,) = said("class 9 is in parts far apart")["warped-0027"]
    assert not between.grave


@pytest.mark.parametrize("anatomical", [True, False])
def test_a_place_is_inside_where_its_voxel_is(anatomical):
    stored = next(case for case in CASES if case["case"] in RIGHT)
    case = statistics(stored if anatomical else stored | {"affine": None})
    frame = Frame([case])
    depth, height, width = case.shape_zyx
    for voxel, inside in (
        ((0.0, 0.0, 0.0), True),
        ((depth - 1.0, height - 1.0, width - 1.0), True),
        ((depth + 0.0, height / 2, width / 2), False),
        ((-1.0, height / 2, width / 2), False),
        ((depth / 2, height / 2, width + 3.0), False),
    ):
        (centre_mm,) = frame.centre_mm(case, np.array([voxel]))
        assert frame.is_inside(case, centre_mm) is inside
