"""`raysegclean check` finds what needs no network to be found."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from raysegclean.errors import ConfigError, InputError
from raysegclean.interface.cli import main
from raysegclean.qc.check import CheckReport, check, save_findings
from raysegclean.simulate.noise import case_rng, corrupt
from raysegclean.simulate.phantom import phantom_case
from raysegclean.store.archive import Archive, write_case

SHAPE, SPACING = (20, 64, 64), (3.0, 2.0, 2.0)
AFFINE = np.array([[-2.0, 0, 0, 90], [0, 2.0, 0, -90], [0, 0, 3.0, 0], [0, 0, 0, 1]])
MIRRORED = np.diag([-1.0, 1.0, 1.0, 1.0]) @ AFFINE
PLANTED = {"drop": {}, "shift": {"length": 6.0}, "swap": {}}
CASES = 60


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


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """Sixty phantoms with affines, six of which are wrong in six ways."""
    archive = Archive.open(tmp_path_factory.mktemp("phantoms") / "archive")
    for number in range(CASES - 6):
        image, label = phantom_case(0, number, SHAPE, SPACING)
        _phantom(archive, f"good{number:02}", image, label)
    for number, (noise, params) in enumerate(PLANTED.items()):
        image, label = phantom_case(1, number, SHAPE, SPACING)
        _phantom(archive, noise, image, corrupt(label, noise, case_rng(3, noise), **params))
    image, label = phantom_case(1, 3, SHAPE, SPACING)
    label[15][label[15] == 1] = 0
    _phantom(archive, "skipped", image, label)
    _phantom(archive, "mirrored", *phantom_case(1, 4, SHAPE, SPACING), affine=MIRRORED)
    image, label = phantom_case(0, 5, SHAPE, SPACING)
    _phantom(archive, "twin", image, label)
    return archive


def _phantom(
    archive: Archive,
    case: str,
    image: np.ndarray,
    label: np.ndarray,
    affine: np.ndarray = AFFINE,
) -> None:
    write_case(archive, case, image, {"organs": label}, spacing_mm=SPACING, affine=affine)


@pytest.fixture(scope="module")
def report(phantoms: Archive) -> CheckReport:
    return check(phantoms.store.uri, "organs")


def test_planted_errors_rank_in_the_worst_tenth(report: CheckReport) -> None:
    planted = {*PLANTED, "skipped", "mirrored", "twin"}
    assert set(report.worst_first[: CASES // 10]) == planted
    assert len(report.worst_first) == report.cases == CASES
    grave = {finding.case for finding in report.findings if finding.grave}
    assert planted - {"twin"} <= grave <= planted
    assert report.exit_code == 1


def test_what_was_planted_is_named(report: CheckReport) -> None:
    said = {case: "; ".join(f.what for f in report.findings if f.case == case) for case in
            (*PLANTED, "skipped", "mirrored", "twin")}  # fmt: skip
    assert "is missing" in said["drop"]
    assert "follows edges of the image less" in said["shift"]
    assert "the wrong way round" in said["swap"]
    assert "class 1 skips slices" in said["skipped"]
    assert "further left than class" in said["mirrored"] or "further right" in said["mirrored"]
    assert "as case good05" in said["twin"]


def test_a_clean_phantom_raises_nothing_grave(tmp_path: Path) -> None:
    archive = Archive.open(tmp_path / "clean")
    for number in range(20):
        _phantom(archive, f"good{number:02}", *phantom_case(2, number, SHAPE, SPACING))
    report = check(archive.store.uri, "organs")
    assert not [finding for finding in report.findings if finding.grave]
    assert report.exit_code == 0
    assert report.notes == ()


def test_labels_alone_tell_much_without_reading_an_image(phantoms: Archive) -> None:
    report = check(phantoms.store.uri, "organs", with_image=False)
    assert {"drop", "swap", "skipped", "mirrored"} <= set(report.worst_first[:6])
    assert not [finding for finding in report.findings if "image inside" in finding.what]


def test_the_table_is_saved_and_shown_worst_first(
    phantoms: Archive, report: CheckReport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = phantoms.store.uri
    assert main(["check", uri, "--label", "organs", "--out", str(tmp_path / "a.csv")]) == 1
    text = capsys.readouterr().out
    assert text.splitlines()[0].startswith(f"{CASES} cases, ")
    assert text.index("is missing") < text.index("as case good05")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text())))
    assert [row["what"] for row in rows] == [finding.what for finding in report.findings]
    save_findings(report, str(tmp_path / "a.parquet"))
    table = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert [row["score"] for row in table] == [finding.score for finding in report.findings]
    with pytest.raises(ConfigError, match=r"\.csv or \.parquet"):
        save_findings(report, str(tmp_path / "a.txt"))
    # Said before the archive is read, which there is none of here.
    assert main(["check", str(tmp_path / "none"), "--label", "organs", "--out", "a.txt"]) == 2
    assert ".csv or .parquet" in capsys.readouterr().err


def test_json_holds_every_finding(
    phantoms: Archive, report: CheckReport, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", phantoms.store.uri, "--label", "organs", "--json"]) == 1
    shown = json.loads(capsys.readouterr().out)
    assert len(shown["findings"]) == len(report.findings)
    assert shown["worst_first"] == list(report.worst_first)


def test_a_value_that_was_not_declared_is_grave(
    archive: Archive, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["check", archive.store.uri, "--label", "organs", "--classes"]
    assert main([*words, "1,2"]) == 0
    assert main([*words, "1"]) == 1
    assert "value 2 is in this label" in capsys.readouterr().out
    assert main([*words, "liver"]) == 2


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
    worst = {}
    for finding in report.findings:
        worst.setdefault(finding.case, finding)
    assert {case: f.grave for case, f in worst.items()} == {
        "empty": True,
        "lacks2": True,
        "tiny": True,
        "twin": False,
    }
    assert [f.grave for f in report.findings] == sorted(
        (f.grave for f in report.findings), reverse=True
    )
    assert all(finding.what and finding.remedy for finding in report.findings)
    assert report.worst_first[:4] == ("empty", "lacks2", "tiny", "twin")
    assert report.exit_code == 1


def test_a_case_that_cannot_be_read_is_a_finding_and_stops_no_other(archive: Archive) -> None:
    _case(archive, "lacks2", _label(classes=(1,)), 21)
    check(archive.store.uri, "organs")
    store = archive.at("good3")
    data = bytearray(store.get("labels/organs/0/c/0/0/0"))
    data[len(data) // 3] ^= 1
    store.put("labels/organs/0/c/0/0/0", bytes(data))
    report = check(archive.store.uri, "organs")
    assert report.worst_first[:2] == ("good3", "lacks2")
    assert report.cases == 11


def test_a_case_without_the_label_is_a_grave_finding(archive: Archive) -> None:
    label = {"other": _label()}
    write_case(archive, "nolabel", _label().astype(np.int16), label, spacing_mm=(1.0, 1.0, 1.0))
    (finding,) = check(archive.store.uri, "organs").findings
    assert (finding.case, finding.grave) == ("nolabel", True)
    assert "organs" in finding.what


def test_an_empty_archive_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ingest"):
        check(str(tmp_path), "organs")


def test_a_label_that_no_case_has_is_a_wrong_argument(archive: Archive) -> None:
    with pytest.raises(ConfigError, match=r"no case has the label 'organ'\. Its cases have organs"):
        check(archive.store.uri, "organ")
