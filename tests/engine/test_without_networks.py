"""What trains nothing: `combine`, `integrity`, and the shift of labels by trusted ones."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raysegclean.config.settings import Config
from raysegclean.errors import ConfigError, InputError
from raysegclean.events import Events, Lines
from raysegclean.policy.edits import reason_name
from raysegclean.qc.check import check
from raysegclean.runs.pipeline import clean
from raysegclean.runs.plan_report import plan
from raysegclean.runs.preflight import prepare
from raysegclean.runs.undo import undo
from raysegclean.runs.verify import verify
from raysegclean.simulate.noise import case_rng, corrupt
from raysegclean.simulate.phantom import phantom_case
from raysegclean.store.archive import Archive, write_case
from raysegclean.store.run import RunFolder

from .scenes import LABEL, Scene, config_for, outputs, write_archive

pytestmark = pytest.mark.usefixtures("local_executor")

VOTES = ("by_one", "by_two", "by_three")
SCENES = (
    Scene("big", (20, 150, 91), (3.0, 1.0, 1.0)),
    *(Scene(f"odd{n}", (5 + n % 4, 21 - n, 17 + n), (2.0, 1.0, 1.0)) for n in range(9)),
)
PARAMS: Mapping[str, Any] = {"labels": " ".join(VOTES), "agree": 2}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """Labels of three methods: the given one, each with its own changes."""
    archive = write_archive(tmp_path_factory.mktemp("archive") / "a", SCENES)
    for case in archive.case_ids():
        given = archive.label(case, LABEL).read_all()
        for number, name in enumerate(VOTES):
            moved = corrupt(given, "shift", case_rng(number, case), length=1.0 + number)
            archive.add_label(case, name, np.where(moved > 0, moved, given), {})
    return archive


def _config(archive: Archive, run: Path, **more: Any) -> Config:
    settings = {
        "method": "combine",
        "params": PARAMS,
        "group": "patient",  # nobody has one, and nobody asks
        "relabel__shard_vox": 64,
        "relabel__max_change": 1.0,
        "output": {"label": run.name},
        **more,
    }
    return config_for(archive, run, **settings)


def _expected(archive: Archive, case: str, agree: int) -> np.ndarray:
    """The label that results, counted value by value."""
    given = archive.label(case, LABEL).read_all()
    votes = np.stack([archive.label(case, name).read_all() for name in VOTES])
    new = given.copy()
    for voxel in np.argwhere((votes != given).any(axis=0)):
        cast = votes[:, *voxel].tolist()
        against = [value for value in cast if value != given[tuple(voxel)]]
        best = max(against, key=cast.count)
        if cast.count(best) >= agree:
            new[tuple(voxel)] = best
    return new


def test_labels_vote_and_reasons_record_who(archive: Archive, tmp_path: Path) -> None:
    config = _config(archive, tmp_path / "voted")
    assert clean(config).exit_code == 0
    run = RunFolder(config.run)
    assert not list(run.store.list("models")), "nothing was trained"
    named = set()
    for case in archive.case_ids():
        given = archive.label(case, LABEL).read_all()
        label = archive.label(case, "voted").read_all()
        np.testing.assert_array_equal(label, _expected(archive, case, agree=2))
        reasons = archive.label(case, "voted.reason").read_all()
        votes = [archive.label(case, name).read_all() for name in VOTES]
        who = sum((one == label).astype(np.uint8) << bit for bit, one in enumerate(votes))
        np.testing.assert_array_equal(reasons, np.where(label != given, 128 | who, 0))
        named |= {reason_name(code, VOTES) for code in np.unique(reasons[reasons > 0]).tolist()}
    assert {row["reason"] for row in run.read_table("changes.parquet")} == named
    assert "vote:by_one+by_two" in named
    assert run.read_json("actions.json")["reasons"]["131"] == "vote:by_one+by_two"
    assert verify(config.run).exit_code == 0


@pytest.mark.slow
def test_either_executor_other_shards_and_a_resume_publish_the_same(
    archive: Archive, tmp_path: Path, ray_cluster: None
) -> None:
    results = []
    for executor, shard in (("local", 64), ("ray", 128)):
        changes = {"relabel__shard_vox": shard, "resources__executor": executor}
        config = _config(archive, tmp_path / executor, **changes)
        clean(config)
        said: list[str] = []
        clean(config, Events(Lines(said.append)))
        assert any("0 are left" in line for line in said)
        results.append(outputs(config))
    assert results[0] == results[1]


@pytest.mark.slow
def test_undo_of_one_vote_and_of_all_votes(archive: Archive, tmp_path: Path) -> None:
    config = _config(archive, tmp_path / "undone")
    clean(config)
    undo(config.run, reason="vote:by_one+by_two")
    codes = {
        code
        for case in archive.case_ids()
        for code in np.unique(archive.label(case, "undone.reason").read_all()).tolist()
    }
    assert 128 | 0b011 not in codes
    assert 128 | 0b111 in codes
    with pytest.raises(ConfigError, match=r"--reason who: expected one of shift.*vote:by_one"):
        undo(config.run, reason="who")
    undo(config.run, reason="vote")
    for case, (label, reasons) in outputs(config).items():
        assert label == archive.label(case, LABEL).read_all().tobytes()
        assert not any(reasons)


def test_a_case_that_lacks_a_vote_fails_alone_and_a_new_vote_is_counted_again(
    tmp_path: Path,
) -> None:
    archive = write_archive(tmp_path / "a", SCENES[1:5])
    for case in archive.case_ids():
        given = archive.label(case, LABEL).read_all()
        archive.add_label(case, "by_one", _half_swapped(given), {})
        archive.begin_label(case, "by_two", like=LABEL)
        if case != "odd2":
            archive.publish_label(case, "by_two")
    config = _config(archive, tmp_path / "clean", params={"labels": "by_one by_two", "agree": 2})
    report = clean(config)
    assert [one.case for one in report.failed] == ["odd2"]
    assert "'by_two', which votes, is missing" in report.failed[0].error
    assert report.changed_vox == 0, "by_two is all background, so nobody agrees"
    archive.delete_label("odd1", "by_two")
    given = archive.label("odd1", LABEL).read_all()
    archive.add_label("odd1", "by_two", _half_swapped(given), {})
    clean(config)
    np.testing.assert_array_equal(archive.label("odd1", "clean").read_all(), _half_swapped(given))
    kept = archive.label("odd3", LABEL).read_all()
    np.testing.assert_array_equal(archive.label("odd3", "clean").read_all(), kept)
    undo(config.run, case="odd1")
    np.testing.assert_array_equal(archive.label("odd1", "clean").read_all(), given)


def test_a_class_that_all_votes_give_to_its_neighbour_is_held_for_a_person(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "a", SCENES[1:3])
    for case in archive.case_ids():
        given = archive.label(case, LABEL).read_all()
        for name in ("by_one", "by_two"):
            archive.add_label(case, name, np.where(given == 1, 2, given), {})
    config = _config(archive, tmp_path / "held", params={"labels": "by_one by_two", "agree": 2})
    report = clean(config)
    assert (report.review_cases, report.changed_cases, report.changed_vox) == (2, 0, 0)
    rows = RunFolder(config.run).read_table("cases.parquet")
    held = [row for row in rows if row["class"] == 1]
    assert {row["action"] for row in held} == {"review"}
    assert all("nothing of the class as drawn would be left" in row["why"] for row in held)


def test_a_case_that_joined_a_finished_run_can_be_undone_alone(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "a", SCENES[1:3])
    config = _config(archive, tmp_path / "joined", params={"labels": "by_one by_two", "agree": 2})
    for scene in SCENES[1:4]:
        if scene.case not in archive.case_ids():
            write_archive(tmp_path / "a", [scene])
        given = archive.label(scene.case, LABEL).read_all()
        for name in ("by_one", "by_two"):
            archive.add_label(scene.case, name, _half_swapped(given), {})
    clean(config.with_settings({"cases": ["odd0", "odd1"]}))
    clean(config)
    assert archive.label("odd2", "joined.reason").read_all().any()
    undo(config.run, case="odd2")
    for case in ("odd1", "odd2"):
        given = archive.label(case, LABEL).read_all()
        found = archive.label(case, "joined").read_all()
        assert np.array_equal(found, given) == (case == "odd2")


def _half_swapped(label: np.ndarray) -> np.ndarray:
    """Return the label with class 1 given to class 2 in every other column."""
    odd = np.arange(label.shape[2]) % 2 == 1
    return np.where((label == 1) & odd, 2, label)


def test_labels_that_cannot_vote_are_refused_before_anything_runs(
    archive: Archive, tmp_path: Path
) -> None:
    for name, told in ((LABEL, "the given label"), ("mine", "the output label")):
        params = {"labels": f"by_one {name}"}
        with pytest.raises(ConfigError, match=told):
            prepare(_config(archive, tmp_path / "mine", params=params))
    with pytest.raises(InputError, match="'nobody', which votes, is missing"):
        prepare(_config(archive, tmp_path / "mine", params={"labels": "by_one nobody"}))


def test_the_plan_of_a_vote_has_no_networks(archive: Archive, tmp_path: Path) -> None:
    shown = plan(_config(archive, tmp_path / "planned"))
    assert (shown.networks, shown.forward_voxels) == (0, 0)


def _wider(label: np.ndarray) -> np.ndarray:
    """Return the label with every class grown by a voxel into background."""
    grown = label.copy()
    for axis in range(3):
        for step in (-1, 1):
            moved = np.roll(label, step, axis)
            grown = np.where(grown == 0, moved, grown)
    return grown


def _dice(label: np.ndarray, truth: np.ndarray) -> float:
    return float(2 * ((label > 0) & (truth > 0)).sum() / ((label > 0).sum() + (truth > 0).sum()))


def test_the_bias_of_one_site_is_undone_there_and_no_network_is_trained(tmp_path: Path) -> None:
    archive = Archive.open(tmp_path / "a")
    spacing = (2.0, 2.0, 2.0)
    for site in ("rome", "oslo", "bern"):
        for number in range(4):
            image, truth = phantom_case(0, number, (24, 48, 48), spacing)
            labels = {LABEL: _wider(truth) if site != "oslo" else truth}
            if number < 2 and site != "bern":
                labels["expert"] = truth
            write_case(archive, f"{site}-{number}", image, labels, spacing_mm=spacing)
    params = {"rule": "shift", "gamma": 1.0, "site": "^([a-z]+)-"}
    more = {"method": "spatial", "trusted": {"label": "expert"}}
    config = _config(archive, tmp_path / "shifted", params=params, **more)
    assert clean(config).exit_code == 0
    assert not list(RunFolder(config.run).store.list("models")), "nothing was trained"
    for number in range(4):
        truth = archive.label(f"oslo-{number}", LABEL).read_all()
        given, found = (
            archive.label(f"rome-{number}", name).read_all() for name in (LABEL, "shifted")
        )
        assert _dice(given, truth) < 0.9
        assert _dice(found, truth) > 0.95
        for site in ("oslo", "bern"):
            case = f"{site}-{number}"
            kept = archive.label(case, "shifted").read_all()
            np.testing.assert_array_equal(kept, archive.label(case, LABEL).read_all())


def test_integrity_as_a_method_says_what_check_says_and_changes_nothing(tmp_path: Path) -> None:
    archive = Archive.open(tmp_path / "a")
    for number in range(12):
        shape = (16, 70, 40) if number == 3 else (16, 40, 40)
        image, label = phantom_case(0, number, shape, (3.0, 2.0, 2.0))
        if number == 5:
            label[label == 3] = 0
        write_case(archive, f"c{number:02}", image, {LABEL: label}, spacing_mm=(3.0, 2.0, 2.0))
    names = {"lungs": 1, "spine": 3}
    config = _config(archive, tmp_path / "looked", method="integrity", params={}, classes=names)
    report = clean(config)
    assert (report.exit_code, report.changed_vox) == (0, 0)
    run = RunFolder(config.run)
    rows = run.read_table("cases.parquet")
    review = {(row["case"], row["class"]): row["why"] for row in rows if row["action"] == "review"}
    findings = check(archive.store.uri, LABEL).findings
    said = {(finding.case, finding.label_value) for finding in findings}
    assert set(review) == {pair for pair in said if pair[1] is not None}
    assert (report.review_cases, report.classes["review"]) == (
        len({c for c, _ in review}),
        len(review),
    )
    assert len(report.look_at) == report.review_cases
    assert any(
        line.startswith("c05, class 3 spine: class 3 spine is missing") for line in report.look_at
    ), report.look_at
    assert {row["class"]: row["name"] for row in rows} | {2: "", 4: ""} == {
        1: "lungs",
        3: "spine",
        2: "",
        4: "",
    }
    assert undo(config.run, cls="spine").changed_vox == 0
    with pytest.raises(ConfigError, match="the classes 1 lungs, 2, 3 spine"):
        undo(config.run, cls="liver")
    assert "class 3 spine is missing" in review["c05", 3]
    assert {row["action"] for row in rows} == {"not judged", "review"}
    for case, (label, reasons) in outputs(config).items():
        assert label == archive.label(case, LABEL).read_all().tobytes()
        assert not any(reasons)
    again: list[str] = []
    clean(config, Events(Lines(again.append)))
    assert any("check" in line and "0 are left" in line for line in again)
