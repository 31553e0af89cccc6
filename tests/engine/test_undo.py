"""Undo by every reason, in a run that changed voxels for all of them."""

from pathlib import Path

import numpy as np
import pytest

from raysegclean.policy.edits import Reason
from raysegclean.runs.pipeline import clean
from raysegclean.runs.undo import undo
from raysegclean.runs.verify import verify
from raysegclean.store.archive import Archive, write_case
from raysegclean.store.run import RunFolder

from .every_edit import EDITS, SHAPE
from .scenes import BY_INTENSITY, LABEL, Scene, taught_run, two_blobs

NAMES = tuple(reason.name for reason in EDITS)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """A case for every reason, with its outline moved sideways; that to fill has no label."""
    archive = Archive.open(str(tmp_path_factory.mktemp("undo") / "a"))
    for seed, name in enumerate(NAMES):
        image, label = two_blobs(Scene(name, SHAPE), seed)
        whole = (label > 0).astype(np.uint8)
        # Little noise, and a corner with all greys between, of which the network is unsure.
        image = (whole * 1200.0 + 2 * (image - label * 60.0)).astype(np.int16)
        image[0, :, :4] = np.linspace(360, 840, 96).reshape(24, 4)
        given = np.roll(whole, 2, axis=2) if name != "FILL" else np.zeros_like(whole)
        write_case(archive, name, image, {LABEL: given}, spacing_mm=(2.0, 1.0, 1.0))
    return archive


def _codes(archive: Archive, case: str) -> set[int]:
    """Return the reasons of a case's changes, all votes as one; check them against its label."""
    given, label, reason = (
        archive.label(case, name).read_all() for name in (LABEL, "clean", "clean.reason")
    )
    assert np.array_equal(given != label, reason > 0), case
    return {min(code, 128) for code in np.unique(reason[reason > 0]).tolist()}


def test_changes_are_taken_back_by_every_reason_and_no_others(
    archive: Archive, tmp_path: Path
) -> None:
    settings = {
        "method": "tests.engine.every_edit:METHOD",
        "network": BY_INTENSITY,
        "output": {"label": "clean"},
        "relabel__max_change": 1.0,
        "resources__executor": "local",
    }
    config = taught_run(archive, tmp_path, **settings)
    assert clean(config).exit_code == 0
    left = {case: _codes(archive, case) for case in NAMES}
    assert left == {name: {128 if name == "VOTE" else Reason[name]} for name in NAMES}
    assert verify(config.run).exit_code == 0
    rows = RunFolder(config.run).read_table("cases.parquet")
    edits = {row["case"]: row["action"] for row in rows}
    assert edits == {reason.name: edit.action for reason, (edit, _) in EDITS.items()}
    for name in NAMES:
        assert undo(config.run, reason=name.lower()).exit_code == 0
        left[name] = set()
        assert {case: _codes(archive, case) for case in NAMES} == left
    assert verify(config.run).exit_code == 0
