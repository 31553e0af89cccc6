"""What every method owes: the same answer on any workers, and no change for nothing.

Each method runs with its default settings and its own way of training. Where it needs trusted
labels, or labels that vote, it gets copies.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raysegclean.config.settings import METHODS, Config
from raysegclean.evidence.records import ApplyRecord, ProposeRecord, ShardRecord
from raysegclean.runs.pipeline import clean
from raysegclean.store.archive import Archive, write_case
from raysegclean.store.run import RunFolder

from .scenes import BY_INTENSITY, LABEL, Scene, config_for, lend_networks, outputs, teach, two_blobs

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]

CASES = 10
TRUSTED, VOTES = "expert", ("first", "second")
MORE: Mapping[str, Mapping[str, Any]] = {
    "spatial": {"trusted": {"label": TRUSTED}},
    "reweight": {"trusted": {"label": TRUSTED}},
    "combine": {"params": {"labels": " ".join(VOTES)}},
}
"""What a method needs beside its name."""


FORMS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "adele": ("adele", {"rule": "published", "tau": 0.4, "epochs": 5, "ratio": 0.1}),
    "cleanlab": ("confident", {"rule": "cleanlab"}),
    "cores": ("cores", {"rule": "published"}),
    "coseg": ("coseg", {"alpha": 0.5}),
    "coteaching": ("coteaching", {"rule": "published"}),
    "dropout": ("uncertainty", {"voters": "dropout", "members": 1, "rule": "safe"}),
    "forward": ("transition", {"rule": "published", "loss": "forward"}),
    "relabelling": ("uncertainty", {"relabel_from": 1, "rule": "safe", "delta": 0.25}),
    "shift": ("spatial", {"rule": "shift", "gamma": 1.0}),
    "spatial": ("spatial", {"rule": "published"}),
    "transition": ("transition", {"rule": "published"}),
    "views": ("uncertainty", {"voters": "tta", "members": 1, "rule": "safe"}),
}
"""Forms that edit voxel by voxel, or all cases alike."""


def write_scenes(uri: Path, *, noise: float, wide: bool = False) -> Archive:
    """Write cases of two blobs, whose votes and, in some, expert's label equal the given one.

    Where `wide`, the given label alone is a voxel wider in its plane.
    """
    archive = Archive.open(str(uri))
    for number in range(CASES):
        width = 24 if number else 70  # the first is cut into two shards
        scene = Scene(f"case{number}", (8, 18 + number, width), (2.0, 1.0, 1.0))
        _, label = two_blobs(scene, number)
        rng = np.random.default_rng(number)
        image = (label * 600.0 + noise * rng.normal(0, 1, label.shape)).astype(np.int16)
        labels = dict.fromkeys((LABEL, *VOTES, *([TRUSTED] if number < 8 else [])), label)
        if wide:
            near = [np.roll(label, step, axis) for axis in (1, 2) for step in (-1, 1)]
            labels[LABEL] = np.where(label == 0, np.maximum.reduce(near), label)
        write_case(archive, scene.case, image, labels, spacing_mm=scene.spacing_mm)
    return archive


def config_of(method: str, archive: Archive, run: Path, **changes: Any) -> Config:
    settings = {
        "method": method,
        "output": {"label": f"{run.parent.name}-{run.name}"},
        "relabel__shard_vox": 64,
        **MORE.get(method, {}),
        **changes,
    }
    return config_for(archive, run, **settings)


@pytest.fixture(scope="module")
def noisy_images(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return write_scenes(tmp_path_factory.mktemp("noisy") / "a", noise=200.0)


@pytest.fixture(scope="module")
def plain_images(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return write_scenes(tmp_path_factory.mktemp("plain") / "a", noise=0.0)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_trained_twice_on_one_and_on_four_workers_it_publishes_the_same_bytes_and_resumes(
    noisy_images: Archive, tmp_path: Path, method: str
) -> None:
    published, proposed = [], []
    for actors in (1, 4):
        workers = {"resources__relabel": {"actors": actors}}
        config = config_of(method, noisy_images, tmp_path / f"run{actors}", **workers)
        assert clean(config).exit_code == 0
        published.append(outputs(config))
        proposed.append(records(RunFolder(config.run))["propose"])
    assert len(published[0]) == CASES
    assert published[0] == published[1]
    assert proposed[0] == proposed[1], "what could change is the same too, down to checksums"

    ledger = sorted(info.key for info in RunFolder(config.run).store.list("ledger"))
    assert clean(config).exit_code == 0
    assert outputs(config) == published[1]
    assert sorted(info.key for info in RunFolder(config.run).store.list("ledger")) == ledger

    run = RunFolder(config.run)
    committed = records(run)
    lose_every_other_commit(run)
    assert any(len(records(run)[stage]) < len(committed[stage]) for stage in committed)
    assert clean(config).exit_code == 0
    assert outputs(config) == published[1]
    assert records(run) == committed


@pytest.fixture(scope="module")
def wide_labels(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return write_scenes(tmp_path_factory.mktemp("wide") / "a", noise=400.0, wide=True)


@pytest.mark.parametrize("form", sorted(FORMS))
def test_a_form_that_edits_many_voxels_edits_the_same_ones_on_one_and_on_four_workers(
    wide_labels: Archive, tmp_path: Path, form: str
) -> None:
    method, params = FORMS[form]
    published = []
    for actors in (1, 4):
        settings = {"resources__relabel": {"actors": actors}, "relabel__max_change": 1.0}
        settings |= {"params": params, "trusted": {"label": TRUSTED}}
        config = config_of(method, wide_labels, tmp_path / f"run{actors}", **settings)
        report = clean(config)
        assert report.exit_code == 0
        assert report.changed_vox > 0
        published.append(outputs(config))
    assert published[0] == published[1]


KINDS = {"propose": ProposeRecord, "rehearse": ApplyRecord, "apply": ApplyRecord}


def records(run: RunFolder) -> Mapping[str, Mapping[str, ShardRecord]]:
    """Return what was committed, by stage and task, with the checksums of all objects."""
    return {
        stage: {record.task: record for record in run.ledger(stage, kind).records()}
        for stage, kind in KINDS.items()
    }


def lose_every_other_commit(run: RunFolder) -> None:
    """Make the run one that was cut off while all its stages were under way."""
    for info in list(run.store.list("ledger")):
        lines = run.store.get(info.key).splitlines(keepends=True)
        run.store.put(info.key, b"".join(lines[::2]))


@pytest.mark.parametrize("method", sorted(METHODS))
def test_labels_that_equal_sure_predictions_stay_as_they_are(
    plain_images: Archive, tmp_path: Path, method: str
) -> None:
    network = BY_INTENSITY
    more: dict[str, Any] = {} if method == "multisa" else {"network": network}
    if method not in ("combine", "integrity"):
        config = config_of(method, plain_images, tmp_path / "lent", **more)
        more["models"] = lend_networks(config, tmp_path / "lender")
        if method != "multisa":
            teach(config, more["models"], plain_images)
    report = clean(config_of(method, plain_images, tmp_path / "run", **more))
    assert (report.exit_code, report.changed_vox) == (0, 0)
