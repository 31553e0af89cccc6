"""Eight trusted cases show what all cases share, and the corrector takes over where it is needed.

Two archives: in one every label is too large, which nobody can see without trusted labels (the
networks are lent, with random weights: here the outline alone tells the corrector enough). In the
other some labels are too large and the networks, trained for a few seconds, know it.
"""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from raysegclean.config.settings import Config
from raysegclean.events import Events, Lines
from raysegclean.policy.edits import Reason
from raysegclean.runs.pipeline import clean
from raysegclean.store.archive import Archive, write_case
from raysegclean.store.run import RunFolder

from .scenes import LABEL, Scene, config_for, lend_networks, outputs, two_blobs

pytestmark = [
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.slow,
    pytest.mark.numeric,
    pytest.mark.timeout(1200),
]

EXPERT = "expert"
TRUSTED = tuple(f"trusted{n}" for n in range(8))


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Return the mean Dice of both classes."""
    each = [2 * ((a == c) & (b == c)).sum() / ((a == c).sum() + (b == c).sum()) for c in (1, 2)]
    return float(np.mean(each))


def enlarged(label: np.ndarray) -> np.ndarray:
    """Return the label one voxel larger on all sides."""
    return ndimage.grey_dilation(label, size=(3, 3, 3))


def write_biased(
    folder: Path, scenes: list[Scene], is_wrong: Callable[[str], bool]
) -> tuple[Archive, Mapping[str, np.ndarray]]:
    """Write the scenes, those that are wrong too large; return the archive and the truth."""
    archive, truth = Archive.open(folder), {}
    for number, scene in enumerate(scenes):
        image, label = two_blobs(scene, 50 + number)
        truth[scene.case] = label
        labels = {LABEL: enlarged(label) if is_wrong(scene.case) else label}
        if scene.case in TRUSTED:
            labels[EXPERT] = label
        write_case(archive, scene.case, image, labels, spacing_mm=scene.spacing_mm)
    return archive, truth


def cleaned(config: Config) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the published label and reasons of every case."""
    archive, name = Archive.open(config.archive), config.output.label
    return {
        case: (
            archive.label(case, name).read_all(),
            archive.label(case, f"{name}.reason").read_all(),
        )
        for case in outputs(config)
    }


class Biased:
    """The archive in which every label is too large, and the runs over it."""

    def __init__(self, folder: Path) -> None:
        small = [Scene(name, (16, 44, 48)) for name in (*TRUSTED, "other0", "other1")]
        large = [Scene(f"large{n}", (24, 90, 70)) for n in range(3)]
        self.folder = folder
        self.archive, self.truth = write_biased(folder / "a", small + large, lambda _: True)
        self.before = {case: self.labels(case) for case in self.archive.case_ids()}
        self.lender = lend_networks(self.config("lender"), folder / "lender")

    def labels(self, case: str) -> list[bytes]:
        names = [name for name in (LABEL, EXPERT) if name in self.archive.label_names(case)]
        return [self.archive.label(case, name).read_all().tobytes() for name in names]

    def config(self, name: str, **changes: Any) -> Config:
        settings = {
            "params": {"retrain": False},
            "trusted": {"label": EXPERT},
            "relabel__shard_vox": 64,
            "relabel__max_change": 0.3,
            "resources__relabel": {"actors": 1},
            "output": {"label": name},
            **changes,
        }
        return config_for(self.archive, self.folder / f"run-{name}", **settings)

    def run(self, name: str, **changes: Any) -> Config:
        config = self.config(name, models=self.lender, **changes)
        assert clean(config).exit_code == 0
        return config


@pytest.fixture(scope="module")
def biased(tmp_path_factory: pytest.TempPathFactory) -> Biased:
    return Biased(tmp_path_factory.mktemp("biased"))


@pytest.fixture(scope="module")
def alone(biased: Biased) -> Config:
    """A finished run with one worker."""
    return biased.run("alone")


def test_a_bias_that_all_cases_share_is_taken_back_in_cases_without_a_trusted_label(
    biased: Biased, alone: Config
) -> None:
    for case, (label, reason) in cleaned(alone).items():
        given, truth = biased.archive.label(case, LABEL).read_all(), biased.truth[case]
        assert dice(given, truth) < 0.85
        assert dice(label, truth) > 0.93, case
        assert set(np.unique(reason)) == {Reason.UNCHANGED, Reason.CORRECT}
        assert np.array_equal(label != given, reason == Reason.CORRECT)


def test_the_tables_say_what_the_corrector_did(biased: Biased, alone: Config) -> None:
    run = RunFolder(alone.run)
    rows = run.read_table("cases.parquet")
    assert {row["case"] for row in rows} == set(biased.truth)
    assert {row["action"] for row in rows} == {"correct"}
    assert {row["why"] for row in rows} == {"the corrector, fitted on 8 trusted cases"}
    known = {row["case"] for row in rows if row["trusted_dice"] is not None}
    assert known == set(TRUSTED)
    assert min(row["trusted_dice"] for row in rows if row["case"] in TRUSTED) > 0.9
    assert run.state()["chosen"] == {"corrected": len(biased.truth)}


def test_training_rows_are_kept_as_plain_arrays(biased: Biased, alone: Config) -> None:
    store = RunFolder(alone.run).store
    kept = [info.key for info in store.list("looks")]
    assert len(kept) == len(TRUSTED), "one sample per trusted shard"
    for key in kept:
        with np.load(io.BytesIO(store.get(key)), allow_pickle=False) as arrays:
            counts = {"both_vox", "sum_vox"}
            assert set(arrays) == {"hashes", "features", "targets", "limit"} | counts
            assert not any(arrays[name].dtype.hasobject for name in arrays)
    suffixes = {Path(info.key).suffix for info in store.list()}
    assert not suffixes & {".pkl", ".pickle", ".joblib"}


def test_given_and_trusted_labels_are_not_written(biased: Biased, alone: Config) -> None:
    assert {case: biased.labels(case) for case in biased.before} == biased.before


def test_four_workers_and_this_process_correct_to_the_same_bytes(
    biased: Biased, alone: Config
) -> None:
    four = biased.run("four", resources__relabel={"actors": 4})
    here = biased.run("here", resources__executor="local")
    assert outputs(four) == outputs(alone) == outputs(here)


def test_cases_in_one_shard_are_corrected_as_in_several(biased: Biased, alone: Config) -> None:
    whole = biased.run("whole", relabel__shard_vox=128, relabel__tile_zyx=[24, 96, 96])
    assert outputs(whole) == outputs(alone)


def test_a_second_start_fits_nothing_again_and_a_new_trusted_case_corrects_anew(
    biased: Biased, alone: Config
) -> None:
    before = outputs(alone)
    said: list[str] = []
    assert clean(alone, Events(Lines(said.append))).exit_code == 0
    for stage in ("look-", "revise-"):
        assert [line for line in said if line.startswith(stage) and "0 are left" in line]
    assert outputs(alone) == before

    biased.archive.add_label("other0", EXPERT, biased.truth["other0"], {})
    assert clean(alone).exit_code == 0
    run = RunFolder(alone.run)
    assert {row["why"] for row in run.read_table("cases.parquet")} == {
        "the corrector, fitted on 9 trusted cases"
    }
    for case, (label, _) in cleaned(alone).items():
        assert dice(label, biased.truth[case]) > 0.93, case


def test_where_some_cases_are_wrong_the_corrector_takes_over_in_those_alone(
    tmp_path: Path,
) -> None:
    names = [*TRUSTED, *(f"wrong{n}" for n in range(3)), *(f"right{n}" for n in range(7))]
    wrong = {"trusted0", "trusted1", "trusted2", "wrong0", "wrong1", "wrong2"}
    scenes = [Scene(name, (16, 44, 48)) for name in names]
    archive, truth = write_biased(tmp_path / "a", scenes, wrong.__contains__)
    config = config_for(
        archive,
        tmp_path / "run",
        method="uncertainty",
        params={"members": 1},
        trusted={"label": EXPERT},
        train={"steps": 160, "batch": 2, "patch_zyx": [16, 32, 32]},
        resources__relabel={"actors": 2},
    )
    assert clean(config).exit_code == 0
    rows = RunFolder(config.run).read_table("cases.parquet")
    corrected = {row["case"] for row in rows if row["action"] == "correct"}
    assert corrected >= wrong
    assert len(corrected - wrong) <= 2
    for case, (label, _) in cleaned(config).items():
        given = archive.label(case, LABEL).read_all()
        if case in wrong:
            assert dice(label, truth[case]) > dice(given, truth[case]) + 0.1, case
        else:
            assert dice(label, truth[case]) > 0.95, case
