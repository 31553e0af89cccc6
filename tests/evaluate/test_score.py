"""Scores of an archive are those of its labels, as plain rows."""

import json

import numpy as np
import pytest

from raysegclean.errors import InputError
from raysegclean.evaluate.metrics import changes, dice
from raysegclean.evaluate.score import score_archive, score_labels, summarise
from raysegclean.store.archive import Archive, write_case
from raysegclean.voxels.surface import surface_distances

SHAPE, SPACING = (6, 16, 16), (3.0, 1.0, 1.0)


def boxes(x_start):
    label = np.zeros(SHAPE, np.uint8)
    label[1:5, 3:12, x_start : x_start + 6] = 1
    label[1:5, 3:12, 13:15] = 4
    return label


@pytest.fixture
def archive(tmp_path):
    made = Archive.open(tmp_path / "archive")
    image = np.zeros(SHAPE, np.int16)
    for case, shift in (("a", 0), ("b", 2)):
        labels = {"given": boxes(3 + shift), "clean": boxes(3 + shift // 2), "truth": boxes(3)}
        about = {"patient": f"p-{case}"}
        write_case(made, case, image, labels, spacing_mm=SPACING, attributes=about)
    return made


def test_rows_hold_the_measures_of_each_case_and_class(archive):
    report = score_archive(archive, "clean", "truth")
    assert [(row.case, row.label_value) for row in report.rows] == [
        ("a", 1), ("a", 4), ("b", 1), ("b", 4),
    ]  # fmt: skip
    row = report.rows[2]
    clean, truth = boxes(4), boxes(3)
    assert row.patient == "p-b"
    assert row.dice == dice(clean, truth)[1]
    assert row.hd95_mm == surface_distances(clean == 1, truth == 1, SPACING).hausdorff(0.95)
    in_voxels = surface_distances(clean == 1, truth == 1, (1.0, 1.0, 1.0))
    assert row.nsd == in_voxels.overlap(1.0)
    assert row.change is None


def test_with_the_given_label_rows_tell_what_the_cleaning_did(archive):
    row = score_archive(archive, "clean", "truth", given="given").rows[2]
    counts = changes(boxes(5), boxes(4), boxes(3))[1]
    assert row.change.dice_given == dice(boxes(5), boxes(3))[1] < row.dice
    assert row.change.dice_to_given == dice(boxes(5), boxes(4))[1]
    assert (row.change.fixed, row.change.harmed) == (counts.fixed, counts.harmed)
    assert (row.change.harm, row.change.precision) == (0.0, 1.0)


def test_a_case_that_cannot_be_scored_is_reported(archive):
    write_case(archive, "c", np.zeros(SHAPE, np.int16), {"clean": boxes(3)}, spacing_mm=SPACING)
    report = score_archive(archive, "clean", "truth")
    assert [fault.case for fault in report.failed] == ["c"]
    assert len(report.rows) == 4
    assert report.exit_code == 1
    assert score_archive(archive, "clean", "clean").exit_code == 0
    assert score_archive(archive, "clean", "typo").exit_code == 2


@pytest.mark.parametrize("begun", [("begun", "truth"), ("clean", "begun"), ("clean", "truth")])
def test_a_label_that_was_never_published_has_no_score(archive, begun):
    archive.begin_label("a", "begun", like="clean")
    given = None if "begun" in begun else "begun"
    reasons = [fault.reason for fault in score_archive(archive, *begun, given=given).failed]
    assert "label 'begun' was begun but not published" in reasons[0]
    assert "label 'begun' is missing" in reasons[1]


def test_the_report_is_strict_json_even_with_undefined_distances(archive):
    empty = np.zeros(SHAPE, np.uint8)
    labels = {"given": boxes(3), "clean": empty, "truth": boxes(3)}
    write_case(archive, "d", np.zeros(SHAPE, np.int16), labels, spacing_mm=SPACING)
    document = json.loads(
        score_archive(archive, "clean", "truth", given="given").as_json(),
        parse_constant=pytest.fail,
    )
    lost = document["rows"][-1]
    assert (lost["case"], lost["dice"], lost["hd95_mm"], lost["nsd"]) == ("d", 0.0, None, 0.0)
    assert lost["change"]["harm"] == 1.0
    one = document["classes"][0]
    assert (one["label_value"], one["cases"], one["hd95_missing"]) == (1, 3, 1)


def test_a_class_that_was_rightly_removed_has_a_row_but_no_part_in_the_means():
    given_zyx, truth_zyx = boxes(3), np.where(boxes(3) == 4, 0, boxes(3))
    rows = score_labels(truth_zyx, truth_zyx, SPACING, given_zyx=given_zyx)
    assert [row.label_value for row in rows] == [1, 4]
    assert (rows[1].change.harmed, rows[1].change.precision) == (0, 1.0)
    assert [one.label_value for one in summarise(rows)] == [1]


def test_an_archive_without_cases_is_refused(tmp_path):
    with pytest.raises(InputError, match="no case here"):
        score_archive(Archive.open(tmp_path), "a", "b")
