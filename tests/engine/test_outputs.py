"""What a run leaves behind: standard files, an untouched input, and a list of every change."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts
import zarr
from ome_zarr_models.v05.image_label import ImageLabel
from ome_zarr_models.v05.labels import Labels
from scipy import ndimage

from raysegclean.config.settings import Config
from raysegclean.policy.edits import Reason
from raysegclean.runs.pipeline import clean
from raysegclean.store.archive import Archive
from raysegclean.store.run import RunFolder

from .scenes import LABEL, Scene, config_for, lend_networks, outputs, write_archive

pytestmark = pytest.mark.usefixtures("local_executor")

SCENES = (
    Scene("big", (30, 100, 70), (2.5, 1.0, 1.0)),
    *(Scene(f"small{n}", (8 + n, 20, 24), (1.0, 1.0, 1.0)) for n in range(8)),
)


def _digests(archive: Archive, case: str) -> dict[str, str]:
    """Every byte of the case but what the run may write: its own labels and the list of labels."""
    store = archive.at(case)
    return {
        info.key: hashlib.sha256(store.get(info.key)).hexdigest()
        for info in store.list()
        if not info.key.startswith(f"labels/{LABEL}_clean") and info.key != "labels/zarr.json"
    }


@pytest.fixture(scope="module")
def cleaned(
    local_executor: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Archive, Config, dict[str, dict[str, str]]]:
    folder = tmp_path_factory.mktemp("outputs")
    archive = write_archive(folder / "archive", SCENES)
    before = {case: _digests(archive, case) for case in archive.case_ids()}
    settings = {
        "method": "uncertainty",
        "params": {"rule": "safe", "delta": 0.24},
        "relabel__shard_vox": 64,
        "relabel__max_change": 1.0,
    }
    lender = lend_networks(config_for(archive, folder / "x", **settings), folder / "lender")
    config = config_for(archive, folder / "run", models=lender, **settings)
    assert clean(config).exit_code == 0
    return archive, config, before


def test_no_byte_that_came_in_was_written(cleaned) -> None:
    archive, _, before = cleaned
    assert {case: _digests(archive, case) for case in archive.case_ids()} == before


def test_outputs_are_ome_zarr_and_other_readers_see_the_same_voxels(cleaned) -> None:
    archive, config, _ = cleaned
    for case, (label, _) in outputs(config).items():
        root = f"{archive.store.uri}/{case}.ome.zarr"
        Labels.from_zarr(zarr.open_group(f"{root}/labels", mode="r"))
        ImageLabel.from_zarr(zarr.open_group(f"{root}/labels/{LABEL}_clean", mode="r"))
        by_zarr = zarr.open_array(f"{root}/labels/{LABEL}_clean/0", mode="r")[:]
        kvstore = {"driver": "file", "path": f"{root}/labels/{LABEL}_clean/0"}
        by_tensorstore = ts.open({"driver": "zarr3", "kvstore": kvstore}).result().read().result()
        assert by_zarr.tobytes() == by_tensorstore.tobytes() == label


def test_changes_lists_exactly_the_connected_regions_of_the_whole_volumes(cleaned) -> None:
    archive, config, _ = cleaned
    rows = RunFolder(config.run).read_table("changes.parquet")
    for case in archive.case_ids():
        given = archive.label(case, LABEL).read_all().astype(int)
        after = archive.label(case, f"{LABEL}_clean").read_all().astype(int)
        reason = archive.label(case, f"{LABEL}_clean.reason").read_all()
        expected = []
        for source, target in {*zip(given[given != after], after[given != after], strict=True)}:
            regions, count = ndimage.label((given == source) & (after == target))
            sizes = np.bincount(regions.ravel())[1:]
            assert len(sizes) == count
            expected += [(int(source), int(target), int(size)) for size in sizes]
        mine = [row for row in rows if row["case"] == case]
        found = [(row["class_from"], row["class_to"], row["voxels"]) for row in mine]
        assert sorted(found) == sorted(expected)
        assert {row["reason"] for row in mine} <= {"replace"}
        assert np.array_equal(reason == Reason.REPLACE, given != after)
    assert any(row["case"] == "big" for row in rows)


def test_the_run_folder_tells_what_happened_to_every_class_of_every_case(cleaned) -> None:
    archive, config, _ = cleaned
    run = RunFolder(config.run)
    rows = run.read_table("cases.parquet")
    assert {(row["case"], row["class"]) for row in rows} == {
        (case, value) for case in archive.case_ids() for value in (1, 2)
    }
    for row in rows:
        after = archive.label(row["case"], f"{LABEL}_clean").read_all()
        assert row["after_vox"] == int((after == row["class"]).sum())
        assert row["status"] == "published"
    state = run.state()
    assert state["status"] == "complete"
    assert state["cases"] == len(SCENES)


@pytest.mark.slow
def test_two_hundred_tiny_cases_have_the_same_bytes_here_and_on_four_workers(
    tmp_path: Path, ray_cluster: None
) -> None:
    scenes = [Scene(f"tiny{n:03d}", (5 + n % 3, 9 + n % 7, 11 + n % 5)) for n in range(200)]
    archive = write_archive(tmp_path / "archive", scenes)
    settings = {"method": "coseg", "params": {"retrain": False}, "relabel__max_change": 1.0}
    lender = lend_networks(config_for(archive, tmp_path / "x", **settings), tmp_path / "lender")
    results = []
    for executor in ("local", "ray"):
        config = config_for(
            archive,
            tmp_path / executor,
            models=lender,
            output={"label": f"clean-{executor}"},
            resources__executor=executor,
            resources__relabel={"actors": 4},
            **settings,
        )
        assert clean(config).exit_code == 0
        results.append(outputs(config))
    assert len(results[0]) == 200
    assert results[0] == results[1]
