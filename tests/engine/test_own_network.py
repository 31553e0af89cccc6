"""Voters that users bring: a module by import path, and a TorchScript file."""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raysegclean.config.settings import Config
from raysegclean.errors import ConfigError, InputError, RunConflict
from raysegclean.nets.networks import build_network
from raysegclean.nets.unet import NetworkSpec
from raysegclean.runs.pipeline import clean
from raysegclean.runs.plan_report import plan
from raysegclean.store.archive import Archive
from raysegclean.store.run import RunFolder
from tests.nets.nnunet_models import write_folder

from .scenes import LABEL, Scene, config_for, lend_networks, outputs, write_archive

pytestmark = pytest.mark.usefixtures("local_executor")

SCENES = (
    Scene("big", (20, 90, 70), (3.0, 1.0, 1.0)),
    *(Scene(f"odd{n}", (5 + n, 21 - n, 17 + 2 * n), (2.0, 1.0, 1.0)) for n in range(3)),
)
WINDOWED = {"name": "tests.nets.own_networks:instance", "widths": [4], "strides": []}
SAFE = {"members": 2, "rule": "safe", "delta": 0.24}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return write_archive(tmp_path_factory.mktemp("archive") / "a", SCENES)


def _config(archive: Archive, run: Path, **changes: Any) -> Config:
    settings = {
        "method": "uncertainty",
        "params": SAFE,
        "output": {"label": f"{run.parent.name}-{run.name}"},
        "relabel__max_change": 1.0,
        "relabel__shard_vox": 64,
        **changes,
    }
    return config_for(archive, run, **settings)


@pytest.mark.slow
def test_averaged_windows_publish_the_same_bytes_on_any_shards_and_executor(
    archive: Archive, tmp_path: Path, ray_cluster: None
) -> None:
    first = _config(archive, tmp_path / "lender", network=WINDOWED)
    lender = lend_networks(first, tmp_path / "lender")
    results = []
    for executor, shard in (("local", 64), ("ray", 128)):
        config = _config(
            archive,
            tmp_path / executor,
            network=WINDOWED,
            models=lender,
            resources__executor=executor,
            resources__relabel={"actors": 2},
            relabel__shard_vox=shard,
        )
        report = clean(config)
        results.append(outputs(config))
        assert any("looks at its whole window" in note for note in report.notes)
        assert any("differ by 0." in note for note in report.notes)
        assert RunFolder(config.run).state()["notes"] == list(report.notes)
    assert results[0] == results[1]
    assert any(np.frombuffer(reasons, np.uint8).any() for _, reasons in results[0].values())


def test_the_plan_says_that_seams_are_blended_and_how_far_they_differ(
    archive: Archive, tmp_path: Path
) -> None:
    report = plan(_config(archive, tmp_path / "windowed", network=WINDOWED))
    assert report.averaged
    assert 1e-3 < report.seam_error < 1
    assert any("instance looks at its whole window" in note for note in report.notes)
    plain = plan(_config(archive, tmp_path / "plain"))
    assert (plain.averaged, plain.seam_error, plain.notes) == (False, 0.0, ())


def test_an_own_network_is_trained_and_votes(archive: Archive, tmp_path: Path) -> None:
    config = _config(archive, tmp_path / "run", network=WINDOWED, params={"members": 1})
    report = clean(config)
    assert report.exit_code == 0
    assert len(outputs(config)) == len(SCENES)


def test_lent_networks_of_a_module_that_the_user_did_not_name_are_refused(
    archive: Archive, tmp_path: Path
) -> None:
    lender = lend_networks(_config(archive, tmp_path / "l", network=WINDOWED), tmp_path / "l")
    with pytest.raises(ConfigError, match=r"lends networks 'tests\.nets.*if you trust"):
        plan(_config(archive, tmp_path / "run", models=lender))


def test_dropout_voters_of_a_network_without_keyed_dropout_are_refused_by_the_plan(
    archive: Archive, tmp_path: Path
) -> None:
    params = {"voters": "dropout", "members": 1, "passes": 2}
    with pytest.raises(ConfigError, match="ChannelDropout"):
        plan(_config(archive, tmp_path / "run", network=WINDOWED, params=params))


def _save_script(path: Path, classes: int = 3, seed: int = 4) -> dict[str, Any]:
    """Save a traced network; return the config's section that names it."""
    spec = NetworkSpec(classes=classes, widths=(4, 6), strides=((1, 2, 2),), dropout=0.0)
    data = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(build_network(spec, seed).eval(), torch.zeros(1, 1, 4, 8, 8))
        torch.jit.save(traced, data)
    path.write_bytes(data.getvalue())
    return {"torchscript": str(path)}


def test_a_torchscript_file_votes_and_nothing_is_trained(archive: Archive, tmp_path: Path) -> None:
    network = _save_script(tmp_path / "net.pt")
    config = _config(
        archive, tmp_path / "run", network=network, group="patient", method="coseg", params={}
    )
    report = clean(config)  # no case has a patient: crossfit is not asked for
    assert report.exit_code == 0
    assert len(outputs(config)) == len(SCENES)
    assert any("may have been trained on the cases" in note for note in report.notes)
    models = [info.key for info in RunFolder(config.run).store.list("models")]
    assert [key.rsplit("/", 1)[1] for key in models] == ["network.torchscript"]
    assert plan(config).networks == 0


@pytest.mark.slow
def test_another_file_under_the_same_name_is_another_run(archive: Archive, tmp_path: Path) -> None:
    config = _config(archive, tmp_path / "run", network=_save_script(tmp_path / "net.pt"))
    clean(config)
    before = outputs(config)
    (tmp_path / "moved.pt").write_bytes((tmp_path / "net.pt").read_bytes())
    moved = _config(archive, tmp_path / "run", network={"torchscript": str(tmp_path / "moved.pt")})
    clean(moved)
    assert outputs(moved) == before, "the same bytes elsewhere resume the run"
    _save_script(tmp_path / "net.pt", seed=5)
    with pytest.raises(RunConflict, match=r"network\.torchscript"):
        clean(config)


def test_a_file_that_was_changed_in_the_run_folder_is_not_loaded(
    archive: Archive, tmp_path: Path
) -> None:
    config = _config(archive, tmp_path / "run", network=_save_script(tmp_path / "net.pt"))
    clean(config)
    store = RunFolder(config.run).store
    (key,) = (info.key for info in store.list("models"))
    _save_script(tmp_path / "other.pt", seed=6)
    store.put(key, (tmp_path / "other.pt").read_bytes())
    store.delete_all("ledger/propose")
    with pytest.raises(InputError, match="Somebody changed it"):
        clean(config)


def test_a_torchscript_file_with_other_classes_is_refused_before_anything_runs(
    archive: Archive, tmp_path: Path
) -> None:
    network = _save_script(tmp_path / "net.pt", classes=5)
    with pytest.raises(ConfigError, match="one channel for each of 3 classes"):
        clean(_config(archive, tmp_path / "run", network=network))
    with pytest.raises(InputError, match="is not there"):
        plan(_config(archive, tmp_path / "r", network={"torchscript": str(tmp_path / "no.pt")}))
    for other in ({"models": "somewhere"}, {"network": network | {"name": "own.module:build"}}):
        with pytest.raises(ConfigError, match="Keep one of"):
            _config(archive, tmp_path / "run", **({"network": network} | other))
    assert LABEL in archive.label_names("big")


def test_an_nnunet_folder_votes_and_nothing_is_trained(archive: Archive, tmp_path: Path) -> None:
    settings = {
        "group": "patient",
        "method": "coseg",
        "params": {},
        "classes": {"liver": 1, "spleen": 2},
    }
    settings["cases"] = "odd*"
    window = {"patch_size": [8, 24, 24]}
    network = write_folder(tmp_path / "m", folds=("0", "1"), configuration=window)
    config = _config(archive, tmp_path / "run", network=network, **settings)
    report = clean(config)  # no case has a patient: crossfit is not asked for
    assert report.exit_code == 0
    assert len(outputs(config)) == len(SCENES) - 1
    assert any("a finished nnU-Net: it may have been trained" in note for note in report.notes)
    models = [info.key for info in RunFolder(config.run).store.list("models")]
    assert [key.rsplit("/", 1)[1] for key in models] == ["fold_0.network", "fold_1.network"]
    told = plan(config)
    assert (told.networks, told.averaged, told.seam_error) == (0, True, None)
    (tmp_path / "m").rename(tmp_path / "moved")
    network = {"nnunet": str(tmp_path / "moved")}
    assert clean(_config(archive, tmp_path / "run", network=network, **settings)).exit_code == 0
    write_folder(tmp_path / "moved", folds=("1", "7"), configuration=window)
    with pytest.raises(RunConflict, match=r"network\.nnunet"):
        clean(_config(archive, tmp_path / "run", network=network, **settings))
