"""Labels that are wrong as a whole, in an archive: each is repaired as what it is, and undone."""

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from raysegclean.policy.edits import Reason
from raysegclean.runs.pipeline import clean
from raysegclean.runs.replay import replay
from raysegclean.runs.undo import undo
from raysegclean.runs.verify import verify
from raysegclean.store.archive import Archive, write_case
from raysegclean.store.run import RunFolder

from ..policy.gross_scenes import body
from .scenes import BY_INTENSITY, LABEL, taught_run

CLEAN = 11
TRUTH = "truth"
WRONG = ("exchange", "mirror", "displace", "cut", "region")


def _wrong(truth: np.ndarray, how: str) -> np.ndarray:
    """Return the label with the error that the edit of this name repairs."""
    out = truth.copy()
    match how:
        case "exchange":
            return np.array([0, 2, 1, 3], np.uint8)[truth]
        case "mirror":
            return truth[:, :, ::-1].copy()
        case "displace":
            return np.asarray(ndimage.shift(truth, (2, -3, 8), order=0))
        case "cut":
            out[:, :, 44:] = 0
        case "region":
            away = np.indices(truth.shape) - np.array([9, 4, 26])[:, None, None, None]
            out[((away**2).sum(axis=0) <= 49) & (truth == 0)] = 1
    return out


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """Write cases of two shards; the images show the organs, with a little noise."""
    archive = Archive.open(str(tmp_path_factory.mktemp("gross") / "a"))
    for number, case in enumerate([f"clean{n:02d}" for n in range(CLEAN)] + list(WRONG)):
        truth = np.pad(body(number), ((0, 0), (0, 0), (14, 10)))
        image = 400.0 * truth + np.random.default_rng(number).normal(0, 60, truth.shape)
        labels = {LABEL: _wrong(truth, case), TRUTH: truth}
        write_case(archive, case, image.astype(np.int16), labels, spacing_mm=(1.0, 1.0, 1.0))
    return archive


def test_every_error_is_repaired_as_what_it_is_and_taken_back_alone(
    archive: Archive, tmp_path: Path
) -> None:
    settings = {
        "method": "uncertainty",
        "network": BY_INTENSITY,
        "output": {"label": "clean"},
        "relabel__shard_vox": 64,
        "resources__executor": "local",
    }
    config = taught_run(archive, tmp_path, **settings)
    assert clean(config).exit_code == 0
    rows = RunFolder(config.run).read_table("cases.parquet")
    told = {(row["case"], row["class"]): (row["action"], row["why"]) for row in rows}
    for case in archive.case_ids():
        given, truth, found, reason = (
            archive.label(case, name).read_all() for name in (LABEL, TRUTH, "clean", "clean.reason")
        )
        actions = {action for (mine, _), (action, _) in told.items() if mine == case}
        if case not in WRONG:
            assert np.array_equal(found, given), (case, told)
            assert actions == {"keep"}
            continue
        assert actions - {"keep"} == {case}, told
        assert set(np.unique(reason)) == {0, Reason[case.upper()]}
        for value in (1, 2, 3):
            mine, right = found == value, truth == value
            assert 2 * (mine & right).sum() / (mine.sum() + right.sum()) > 0.97, (case, value)
    assert verify(config.run).exit_code == 0
    again = replay(config.run, {})
    assert not again.not_replayed
    assert {edit: again.edits[edit] for edit in WRONG} == {
        edit: sum(action == edit for action, _ in told.values()) for edit in WRONG
    }

    for case in WRONG:
        assert undo(config.run, reason=case).exit_code == 0
        same = [
            np.array_equal(*(archive.label(one, name).read_all() for name in (LABEL, "clean")))
            for one in WRONG
        ]
        assert same == [WRONG.index(one) <= WRONG.index(case) for one in WRONG]
