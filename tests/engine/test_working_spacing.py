"""On a working grid of its own a run gives one answer, and labels stay on their own voxels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raysegclean.config.settings import Config
from raysegclean.errors import RunConflict
from raysegclean.planning.plan import RunPlan
from raysegclean.runs.pipeline import clean
from raysegclean.runs.plan_report import plan
from raysegclean.store.archive import Archive
from raysegclean.store.objects import Store
from raysegclean.store.run import RunFolder

from .scenes import (
    BY_INTENSITY,
    LABEL,
    Scene,
    config_for,
    lend_networks,
    outputs,
    teach,
    write_archive,
)

pytestmark = pytest.mark.usefixtures("local_executor")

SCENES = (
    Scene("big", (37, 90, 71), (3.0, 1.0, 1.0)),
    Scene("fine", (40, 60, 66), (1.0, 0.7, 0.7)),
    Scene("thick", (9, 40, 36), (5.0, 1.3, 1.3)),
    Scene("slice", (1, 40, 36), (5.0, 1.6, 1.6)),
    *(Scene(f"odd{n}", (8 + n, 27 - n, 22 + 2 * n), (2.0, 1.0, 1.0)) for n in range(6)),
)
SPACING = [2.0, 1.6, 1.6]
EXPERT = "expert"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return write_archive(tmp_path_factory.mktemp("spacing") / "a", SCENES)


def config_of(archive: Archive, folder: Path, name: str, **more: Any) -> Config:
    """Every run has an output label of its own, so that runs can be compared on one archive."""
    settings = {
        "method": "uncertainty",
        "params": {"members": 2, "rule": "safe", "delta": 0.24},
        "relabel": {"shard_vox": 64, "tile_zyx": [16, 32, 32], "max_change": 1.0},
        "output": {"label": f"{folder.name}-{name}"},
        "network": {"widths": [4, 8], "strides": [[1, 2, 2]], "spacing_mm": SPACING},
    }
    return config_for(archive, folder / f"run-{name}", **settings | more)


def test_other_tiles_and_shards_publish_the_same_labels_on_native_voxels(
    archive: Archive, tmp_path: Path
) -> None:
    lender = lend_networks(config_of(archive, tmp_path, "lender"), tmp_path / "lender")
    results = []
    for name, relabel in [
        ("small", {"shard_vox": 64, "tile_zyx": [8, 16, 20], "max_change": 1.0}),
        ("large", {"shard_vox": 128, "max_change": 1.0}),
    ]:
        config = config_of(archive, tmp_path, name, relabel=relabel, models=lender)
        report = clean(config)
        assert report.exit_code == 0
        assert any("9 of 10 cases are resampled" in note for note in report.notes), report.notes
        results.append(outputs(config))
    assert len(results[0]) == len(SCENES)
    assert results[0] == results[1]
    assert any(np.frombuffer(reasons, np.uint8).any() for _, reasons in results[0].values())


def test_networks_that_know_the_classes_agree_with_the_labels_after_the_way_back(
    archive: Archive, tmp_path: Path
) -> None:
    network = BY_INTENSITY | {"spacing_mm": [2.0, 1.5, 1.5]}
    more = {"network": network, "params": {"members": 1, "rule": "safe", "delta": 0.24}}
    lender = lend_networks(config_of(archive, tmp_path, "lend", **more), tmp_path / "lender")
    teach(config_of(archive, tmp_path, "lend", **more), lender, archive)
    config = config_of(archive, tmp_path, "taught", **more, models=lender)
    clean(config)
    for case in ("big", "fine"):
        given = archive.label(case, LABEL).read_all() > 0
        cleaned = archive.label(case, config.output.label).read_all() > 0
        assert 2 * np.sum(given & cleaned) / (given.sum() + cleaned.sum()) > 0.93
        assert (given != cleaned).any()


def test_networks_are_trained_on_the_working_grid_and_go_by_its_name(
    archive: Archive, tmp_path: Path
) -> None:
    config = config_of(archive, tmp_path, "trained")
    assert clean(config).exit_code == 0
    frozen = RunFolder(config.run).resolved() or {}
    trained = RunPlan.from_json(frozen["plan"])
    assert trained.spacing_mm == (2.0, 1.6, 1.6)
    native = RunPlan.from_json({**frozen["plan"], "spacing_mm": None})
    assert native.train_key() != trained.train_key()
    with pytest.raises(RunConflict, match="spacing_mm"):
        clean(config.with_settings({"network.spacing_mm": [3.0, 1.6, 1.6]}))


def test_a_run_of_a_version_without_working_grids_goes_on_natively(
    archive: Archive, tmp_path: Path
) -> None:
    config = config_of(archive, tmp_path, "old", network={"widths": [4, 8], "spacing_mm": None})
    clean(config)
    before, store = outputs(config), Store.open(config.run)
    frozen = store.get_json("resolved.json")
    del frozen["identity"]["network"]["spacing_mm"]
    del frozen["plan"]["spacing_mm"]
    store.put_json("resolved.json", frozen)
    clean(config.with_settings({"network.spacing_mm": "auto"}))
    assert outputs(config) == before


def test_the_plan_speaks_of_millimetres(archive: Archive, tmp_path: Path) -> None:
    report = plan(config_of(archive, tmp_path, "plan"))
    assert report.seen_mm == (2.0, 1.6, 1.6)
    assert report.patch_mm == (16.0, 25.6, 25.6)
    assert report.halo_mm[0] == report.halo_vox[0] * 2.0
    assert any("2 x 1.6 x 1.6 mm" in note for note in report.notes)
    network = {"widths": [4, 8], "strides": [[1, 2, 2]], "spacing_mm": [4.0, 2.0, 2.0]}
    coarser = plan(config_of(archive, tmp_path, "plan", network=network))
    assert coarser.forward_voxels < 0.6 * report.forward_voxels


def test_second_looks_see_features_and_probabilities_on_native_voxels(
    archive: Archive, tmp_path: Path
) -> None:
    for case in ("odd1", "odd4"):
        label = archive.label(case, LABEL).read_all()
        expert = np.where(np.roll(label, 1, axis=2) > 0, label, 0)
        archive.add_label(case, EXPERT, expert, {})
    more: dict[str, Any] = {
        "method": "transition",
        "params": {"rule": "published", "rows": 4000, "members": 1},
        "trusted": {"label": EXPERT},
    }
    lender = lend_networks(config_of(archive, tmp_path, "lender", **more), tmp_path / "lender")
    config = config_of(archive, tmp_path, "looks", **more, models=lender)
    assert clean(config).exit_code == 0
    assert list(Path(config.run).glob("looks/**/*.npz"))
    assert len(outputs(config)) == len(SCENES)
