"""A label value that is ignored: neither judged nor changed, and of no weight for all the rest."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raysegclean.config.settings import Config
from raysegclean.policy.edits import Reason
from raysegclean.runs.pipeline import clean
from raysegclean.runs.undo import undo
from raysegclean.runs.verify import verify
from raysegclean.store.archive import Archive, write_case
from raysegclean.store.run import RunFolder

from ..policy.gross_scenes import body
from .every_edit import EDITS
from .every_edit import SHAPE as EDITED_ZYX
from .scenes import BY_INTENSITY, LABEL, Scene, config_for, lend_networks, teach, two_blobs

CLEAN = 9
WRONG = ("exchange", "mirror", "region")
CASES = (*(f"clean{number:02d}" for number in range(CLEAN)), *WRONG)
OUTPUT = "clean"


def _given(number: int, how: str) -> np.ndarray:
    """Return a label of two shards' length, with the error of this name."""
    truth = np.pad(body(number), ((0, 0), (0, 0), (14, 10)))
    if how == "exchange":
        return np.array([0, 2, 1, 3], np.uint8)[truth]
    if how == "mirror":
        return truth[:, :, ::-1].copy()
    if how == "region":
        away = np.indices(truth.shape) - np.array([9, 4, 26])[:, None, None, None]
        return np.where(((away**2).sum(axis=0) <= 49) & (truth == 0), 1, truth).astype(np.uint8)
    return truth


def _archive(uri: Path, ignored: dict[str, np.ndarray], value: int) -> Archive:
    archive = Archive.open(str(uri))
    for number, case in enumerate(CASES):
        truth, label = _given(number, ""), _given(number, case)
        image = 400.0 * truth + np.random.default_rng(number).normal(0, 60, truth.shape)
        if case in ignored:
            label[ignored[case]] = value
        write_case(archive, case, image.astype(np.int16), {LABEL: label}, spacing_mm=(1.0,) * 3)
    return archive


def _cleaned(archive: Archive, run: Path, lender: str, **more: Any) -> Config:
    config = config_for(archive, run, models=lender, **SETTINGS, **more)
    assert clean(config).exit_code == 0
    return config


SETTINGS: dict[str, Any] = {
    "method": "uncertainty",
    "network": BY_INTENSITY,
    "output": {"label": OUTPUT},
    "relabel__shard_vox": 64,
    "resources__executor": "local",
}


def _actions(config: Config) -> dict[tuple[str, int], str]:
    rows = RunFolder(config.run).read_table("cases.parquet")
    return {(row["case"], row["class"]): row["action"] for row in rows}


@pytest.fixture(scope="module")
def lender(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("lender")
    archive = _archive(folder / "a", {}, 0)
    config = config_for(archive, folder / "none", **SETTINGS)
    uri = lend_networks(config, folder / "run")
    teach(config, uri, archive)
    return uri


def test_ignoring_what_nobody_doubts_changes_no_decision_and_no_other_voxel(
    lender: str, tmp_path: Path
) -> None:
    # The corners are mirrored into one another, and have no organ in them, right or wrong.
    corner = np.zeros(_given(0, "").shape, np.bool_)
    corner[:4, :, :8] = corner[:4, :, -8:] = True
    assert not any(_given(number, case)[corner].any() for number, case in enumerate(CASES))
    corners = dict.fromkeys(CASES, corner)
    plain, with_ignored = _archive(tmp_path / "a", {}, 0), _archive(tmp_path / "b", corners, 200)
    before = _cleaned(plain, tmp_path / "run-a", lender)
    config = _cleaned(with_ignored, tmp_path / "run-b", lender, label_ignore=200)
    assert _actions(config) == _actions(before)
    assert set(WRONG) <= set(_actions(config).values())
    for case in CASES:
        found = with_ignored.label(case, OUTPUT).read_all()
        assert (found[corner] == 200).all()
        expected = plain.label(case, OUTPUT).read_all()
        assert np.array_equal(found[~corner], expected[~corner]), case
        reason = with_ignored.label(case, f"{OUTPUT}.reason").read_all()
        assert not reason[corner].any()
    assert verify(config.run).exit_code == 0
    assert undo(config.run).exit_code == 0
    for case in CASES:
        given, back = (with_ignored.label(case, name).read_all() for name in (LABEL, OUTPUT))
        assert np.array_equal(given, back)


def test_ignored_voxels_stay_in_the_midst_of_what_is_repaired_whatever_their_value(
    lender: str, tmp_path: Path
) -> None:
    # Slabs through every organ, in every third case.
    slabs = {}
    for number, case in enumerate(CASES):
        slabs[case] = np.zeros(_given(number, case).shape, np.bool_)
        slabs[case][::5] = number % 3 == 0 or case in WRONG
    outputs = []
    for value in (255, 77):
        archive = _archive(tmp_path / f"a{value}", slabs, value)
        config = _cleaned(archive, tmp_path / f"run{value}", lender, label_ignore=value)
        assert "exchange" in _actions(config).values()
        found = {case: archive.label(case, OUTPUT).read_all() for case in slabs}
        for case, slab in slabs.items():
            assert (found[case][slab] == value).all()
            assert (found[case][~slab] != value).all()
            assert not archive.label(case, f"{OUTPUT}.reason").read_all()[slab].any()
        outputs.append([np.where(slab, 0, found[case]) for case, slab in slabs.items()])
    for one, other in zip(*outputs, strict=True):
        assert np.array_equal(one, other)


def test_ignored_voxels_stay_where_every_kind_of_edit_is_made(tmp_path: Path) -> None:
    archive = Archive.open(str(tmp_path / "a"))
    for seed, reason in enumerate(EDITS):
        image, label = two_blobs(Scene(reason.name, EDITED_ZYX), seed)
        given = np.roll(label > 0, 2, axis=2).astype(np.uint8)
        # Some slices are not labelled at all, and single voxels everywhere.
        given[np.random.default_rng(seed).random(given.shape) < 0.1] = 255
        given[3:5] = 255
        image = (1200.0 * (label > 0) + image).astype(np.int16)
        write_case(archive, reason.name, image, {LABEL: given}, spacing_mm=(2.0, 1.0, 1.0))
    settings = SETTINGS | {"method": "tests.engine.every_edit:METHOD", "label_ignore": 255}
    settings["relabel__max_change"] = 1.0
    lent = config_for(archive, tmp_path / "none", **settings)
    uri = lend_networks(lent, tmp_path / "lender")
    teach(lent, uri, archive)
    config = config_for(archive, tmp_path / "run", models=uri, **settings)
    assert clean(config).exit_code == 0
    for reason in EDITS:
        given, found, why = (
            archive.label(reason.name, name).read_all()
            for name in (LABEL, OUTPUT, f"{OUTPUT}.reason")
        )
        assert np.array_equal(found == 255, given == 255)
        assert np.array_equal(why > 0, found != given)
        assert reason is Reason.FILL or reason is Reason.FLIP or (why > 0).any(), reason.name
    assert verify(config.run).exit_code == 0
