"""`raysegclean check` finds what needs no network to be found."""

from pathlib import Path

import numpy as np
import pytest

from raysegclean.check import check
from raysegclean.errors import InputError
from raysegclean.store.archive import Archive, write_case


def _case(archive: Archive, name: str, label: np.ndarray, seed: int) -> None:
    image = np.random.default_rng(seed).normal(0, 100, label.shape).astype(np.int16)
    write_case(archive, name, image, {"organs": label}, spacing_mm=(2.0, 1.0, 1.0))


def _label(size: int = 8, classes: tuple[int, ...] = (1, 2)) -> np.ndarray:
    label = np.zeros((12, 24, 24), np.uint8)
    for place, value in enumerate(classes):
        label[2 : 2 + size, 2 : 2 + size, 2 + 10 * place : 2 + size + 10 * place] = value
    return label


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    archive = Archive.open(tmp_path / "archive")
    for number in range(10):
        _case(archive, f"good{number}", _label(), number)
    return archive


def test_an_archive_without_faults_has_no_findings(archive: Archive) -> None:
    report = check(archive.store.uri, "organs")
    assert report.findings == ()
    assert (report.cases, report.exit_code) == (10, 0)


def test_grave_findings_come_first_and_name_case_and_remedy(archive: Archive) -> None:
    _case(archive, "tiny", _label(size=2), 20)
    _case(archive, "lacks2", _label(classes=(1,)), 21)
    _case(archive, "empty", np.zeros((12, 24, 24), np.uint8), 22)
    _case(archive, "twin", _label(), 3)
    report = check(archive.store.uri, "organs")
    found = {(finding.case, finding.grave) for finding in report.findings}
    assert {("lacks2", True), ("empty", True), ("tiny", False), ("twin", False)} == found
    assert [f.grave for f in report.findings] == sorted(
        (f.grave for f in report.findings), reverse=True
    )
    assert all(finding.what and finding.remedy for finding in report.findings)
    assert report.exit_code == 1


def test_a_case_without_the_label_is_a_grave_finding(archive: Archive) -> None:
    label = {"other": _label()}
    write_case(archive, "nolabel", _label().astype(np.int16), label, spacing_mm=(1.0, 1.0, 1.0))
    (finding,) = check(archive.store.uri, "organs").findings
    assert (finding.case, finding.grave) == ("nolabel", True)
    assert "organs" in finding.what


def test_an_empty_archive_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ingest"):
        check(str(tmp_path), "organs")
