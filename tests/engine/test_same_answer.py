"""The answer does not depend on tiles, shards, workers or restarts."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raysegclean.cluster.proposal_folder import ProposalFolder
from raysegclean.cluster.train_loop import model_key
from raysegclean.config.settings import Config
from raysegclean.errors import RunConflict
from raysegclean.events import Events, Lines
from raysegclean.evidence.records import ApplyRecord, ProposeRecord
from raysegclean.nets.weights import load_network
from raysegclean.planning.plan import RunPlan
from raysegclean.runs.pipeline import clean
from raysegclean.runs.undo import undo
from raysegclean.runs.verify import verify
from raysegclean.store.archive import Archive
from raysegclean.store.run import RunFolder
from raysegclean.voxels.geometry import Box

from .scenes import LABEL, Scene, config_for, lend_networks, outputs, write_archive

pytestmark = pytest.mark.usefixtures("ray_cluster")

SCENES = (
    Scene("big", (37, 150, 91), (3.0, 1.0, 1.0)),
    *(Scene(f"odd{n}", (5 + n, 21 - n, 17 + 2 * n), (2.0, 1.0, 1.0)) for n in range(9)),
)
VOTERS: Mapping[str, dict[str, Any]] = {
    "coseg": {"method": "coseg", "params": {"alpha": 0.5, "retrain": False}},
    "ensemble": {"method": "uncertainty", "params": {"members": 2, "rule": "safe", "delta": 0.24}},
    "dropout": {
        "method": "uncertainty",
        "params": {"voters": "dropout", "members": 1, "passes": 3, "rule": "safe", "delta": 0.2},
    },
}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return write_archive(tmp_path_factory.mktemp("archive") / "a", SCENES)


def _config(archive: Archive, folder: Path, kind: str, actors: int, **more: Any) -> Config:
    """Every run has an output label of its own, so that runs can be compared on one archive."""
    settings = {
        "relabel__shard_vox": 64,
        "relabel__tile_zyx": [16, 32, 32],
        "relabel__max_change": 1.0,
        "resources__relabel": {"actors": actors},
        "output": {"label": f"{folder.name}-{kind}-{actors}"},
        **VOTERS[kind],
        **more,
    }
    return config_for(archive, folder / f"run-{kind}-{actors}", **settings)


def _lent(archive: Archive, folder: Path, kind: str, actors: int, **more: Any) -> Config:
    lender = folder / f"lender-{kind}"
    if not lender.exists():
        lend_networks(_config(archive, folder, kind, 1), lender)
    return _config(archive, folder, kind, actors, models=str(lender), **more)


@pytest.mark.parametrize(
    "kind",
    [
        "coseg",
        pytest.param("ensemble", marks=pytest.mark.slow),
        pytest.param("dropout", marks=pytest.mark.slow),
    ],
)
def test_one_and_four_workers_publish_the_same_bytes(
    archive: Archive, tmp_path: Path, kind: str
) -> None:
    results = []
    for actors in (1, 4):
        config = _lent(archive, tmp_path, kind, actors)
        report = clean(config)
        assert report.exit_code == 0
        assert any("Learnt 0 of 2 classes; not learnt: 1 (." in note for note in report.notes)
        results.append(outputs(config))
    assert len(results[0]) == len(SCENES)
    assert results[0] == results[1]
    assert any(np.frombuffer(reasons, np.uint8).any() for _, reasons in results[0].values())


@pytest.mark.slow
def test_two_workers_with_other_tiles_and_shards_publish_the_same_labels(
    archive: Archive, tmp_path: Path
) -> None:
    first = _lent(archive, tmp_path, "coseg", 1)
    other = _lent(
        archive, tmp_path, "coseg", 2, relabel__shard_vox=128, relabel__tile_zyx=[40, 64, 64]
    )
    clean(first)
    clean(other)
    assert outputs(first) == outputs(other)


def test_tiles_with_halo_propose_what_the_whole_volume_predicts(
    archive: Archive, tmp_path: Path
) -> None:
    config = _lent(archive, tmp_path, "ensemble", 2)
    clean(config)
    run = RunFolder(config.run)
    plan = RunPlan.from_json((run.resolved() or {})["plan"])
    assert config.models is not None
    for name in ("big", "odd3"):
        case = plan.case(name)
        expected = _whole_volume_mean(archive, plan, name, config.models)
        records = run.ledger("propose", ProposeRecord).records()
        key = next(r.key for r in records if r.case == name)
        proposal = ProposalFolder.of(run.store, plan, case, key).read(Box.whole(case.shape_zyx))
        given = archive.label(name, LABEL).read_all()
        top = np.sort(expected, axis=0)
        clear = top[-1] - top[-2] > 1e-4
        assert np.array_equal(proposal.predicted_zyx(given)[clear], expected.argmax(axis=0)[clear])
        differs = clear & (given != expected.argmax(axis=0))
        levels = proposal.confidence_zyx[differs].astype(int)
        assert np.abs(levels - np.floor(256 * top[-1][differs])).max(initial=0) <= 1


def _whole_volume_mean(archive: Archive, plan: RunPlan, name: str, lender: str) -> np.ndarray:
    """One forward pass per network over the whole case, padded at its far ends."""
    case = plan.case(name)
    image = plan.normaliser.apply(archive.image(name).read_all()[None], case.intensity)
    stride = np.prod(np.array(plan.network.strides), axis=0)
    widths = [(0, 0), *((0, int(-n % s)) for n, s in zip(case.shape_zyx, stride, strict=True))]
    padded = torch.from_numpy(np.pad(image, widths, mode="edge"))[None]
    store, key = RunFolder(lender).store, plan.train_key()
    frozen = RunFolder(lender).resolved() or {}
    key = frozen["train_key"]
    means = []
    for member in range(plan.voters.members):
        net, _, _ = load_network(store.get(model_key(key, case.fold, member)))
        with torch.no_grad():
            means.append(torch.softmax(net(padded), dim=1)[0].numpy())
    z, y, x = case.shape_zyx
    return np.mean(means, axis=0)[:, :z, :y, :x]


def test_a_second_start_reuses_everything_and_other_settings_are_refused(
    archive: Archive, tmp_path: Path
) -> None:
    config = _lent(archive, tmp_path, "coseg", 1)
    clean(config)
    before = outputs(config)
    said: list[str] = []
    assert RunFolder(config.run).ledger("propose", ProposeRecord).compact(least=1) > 0
    clean(config, Events(Lines(said.append)))
    assert outputs(config) == before
    assert any("0 are left" in line for line in said)
    clean(config.with_settings({"relabel.tile_zyx": [16, 16, 16]}), Events(Lines(said.append)))
    assert outputs(config) == before
    assert not any("0 were committed" in line for line in said)
    with pytest.raises(RunConflict, match="halo"):
        clean(config.with_settings({"relabel.halo": 3}))


def test_a_tile_of_which_the_answer_depends_belongs_to_the_run(
    archive: Archive, tmp_path: Path
) -> None:
    settings = {"output": {"label": "clean-short"}, "relabel__halo": 1}
    config = _lent(archive, tmp_path, "coseg", 1, **settings)
    clean(config)
    with pytest.raises(RunConflict, match="tile_zyx"):
        clean(config.with_settings({"relabel.tile_zyx": [16, 16, 16]}))


def test_another_number_of_the_policy_neither_trains_nor_proposes_again(
    archive: Archive, tmp_path: Path
) -> None:
    settings = {"method": "uncertainty", "params": {}, "output": {"label": "clean-policy"}}
    config = _lent(archive, tmp_path, "ensemble", 1, **settings)
    clean(config)
    run = RunFolder(config.run)
    before = run.ledger("propose", ProposeRecord).records()
    clean(config.with_settings({"policy.min_cases": 5}))
    assert run.ledger("propose", ProposeRecord).records() == before
    assert (run.resolved() or {})["config"]["policy"]["min_cases"] == 8, "frozen at the first start"
    assert (run.read_json("config.json") or {})["policy"]["min_cases"] == 5


def test_undo_takes_back_one_case_and_leaves_the_others(archive: Archive, tmp_path: Path) -> None:
    config = _lent(archive, tmp_path, "ensemble", 1, output={"label": "clean-undo"})
    clean(config)
    before = outputs(config)
    changed = [c for c, (_, reasons) in before.items() if np.frombuffer(reasons, np.uint8).any()]
    assert verify(config.run).exit_code == 0
    undo(config.run, case=changed[0])
    after = outputs(config)
    assert {c for c in after if after[c] != before[c]} == {changed[0]}
    assert after[changed[0]][0] == archive.label(changed[0], LABEL).read_all().tobytes()
    assert verify(config.run).exit_code == 0
    undo(config.run)
    given = {case: archive.label(case, LABEL).read_all().tobytes() for case in archive.case_ids()}
    assert {case: label for case, (label, _) in outputs(config).items()} == given


def test_undo_from_another_folder_makes_one_case_again_and_no_other(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = _lent(archive, tmp_path, "ensemble", 1, output={"label": "clean-near"})
    near = config.with_settings({"run": "near", "archive": os.path.relpath(config.archive)})
    clean(near)
    before = outputs(config)
    changed = [c for c, (_, reasons) in before.items() if np.frombuffer(reasons, np.uint8).any()]
    (tmp_path / "far").mkdir()
    monkeypatch.chdir(tmp_path / "far")
    for _ in range(2):
        undo("../near/", case=changed[0])
    run = RunFolder(str(tmp_path / "near"))
    assert len(run.read_json("undone.json") or []) == 1
    shards = [record.task for record in run.ledger("apply", ApplyRecord).records()]
    assert {task.split("/")[0] for task in shards if shards.count(task) > 1} == {changed[0]}
    after = outputs(config)
    assert {c for c in after if after[c] != before[c]} == {changed[0]}


def test_another_output_label_of_a_run_is_written_and_not_published_empty(
    archive: Archive, tmp_path: Path
) -> None:
    config = _lent(archive, tmp_path, "ensemble", 1, output={"label": "clean-first"})
    clean(config)
    other = config.with_settings({"output.label": "clean-second"})
    clean(other)
    assert outputs(other) == outputs(config)
    assert len(outputs(other)) == len(SCENES)
    clean(config)
    assert verify(config.run).exit_code == 0
    assert outputs(other) == outputs(config)


def test_an_output_that_was_deleted_is_written_again_and_not_published_empty(
    archive: Archive, tmp_path: Path
) -> None:
    config = _lent(archive, tmp_path, "ensemble", 1, output={"label": "clean-gone"})
    clean(config)
    before = outputs(config)
    archive.delete_label("odd3", "clean-gone")
    archive.at("big").delete("labels/clean-gone/0/c/0/0/0")
    assert clean(config).exit_code == 0
    assert outputs(config) == before
    assert verify(config.run).exit_code == 0


def test_verify_misses_what_the_ledger_or_the_archive_has_lost(
    archive: Archive, tmp_path: Path
) -> None:
    config = _lent(archive, tmp_path, "ensemble", 1, output={"label": "clean-lost"})
    clean(config)
    archive.withdraw_label("odd1", "clean-lost")
    assert verify(config.run).failed == ("odd1: label 'clean-lost' is not published; run again",)
    archive.at("odd2").delete("labels/clean-lost/0/zarr.json")
    archive.at("odd3").put("labels/zarr.json", b"{")
    told = verify(config.run, recompute=0).failed
    assert "odd1: label 'clean-lost' is not published; run again" in told
    for case in ("odd2", "odd3"):
        assert any(case in text for text in told), told
    RunFolder(config.run).store.delete_all("ledger")
    assert len(verify(config.run).failed) == len(SCENES)


def test_verify_finds_a_damaged_object(archive: Archive, tmp_path: Path) -> None:
    config = _lent(archive, tmp_path, "coseg", 1, output={"label": "clean-damaged"})
    clean(config)
    store = archive.at("odd4")
    key = "labels/clean-damaged/0/c/0/0/0"
    data = bytearray(store.get(key))
    data[len(data) // 3] ^= 1
    store.put(key, bytes(data))
    report = verify(config.run)
    assert report.exit_code == 1
    assert any("odd4" in text for text in report.failed)
