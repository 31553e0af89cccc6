"""Rough outlines in an archive are blended with the networks', by either executor alike."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from raysegclean.config.settings import Config
from raysegclean.policy.edits import Reason
from raysegclean.runs.pipeline import clean
from raysegclean.simulate.noise import case_rng, corrupt
from raysegclean.store.archive import Archive, write_case
from raysegclean.store.run import RunFolder

from .scenes import BY_INTENSITY, LABEL, config_for, lend_networks, outputs, teach

pytestmark = pytest.mark.usefixtures("ray_cluster")

CLEAN, NOISY = 26, 18
TRUTH = "truth"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """Write balls whose images show the outline blurred and a little off; some labels wander."""
    archive = Archive.open(str(tmp_path_factory.mktemp("rough") / "a"))
    for number in range(CLEAN + NOISY):
        case = f"{'noisy' if number < NOISY else 'clean'}{number:02d}"
        rng = case_rng(1, case)
        shape = (16, 22, 70 if number == 0 else 24)  # the first is cut into two shards
        centre = np.array(shape) / 2 + rng.uniform(-1, 1, 3)
        away = np.indices(shape) - centre.reshape(3, 1, 1, 1)
        truth = (np.sqrt((away**2).sum(axis=0)) < rng.uniform(5.5, 6.5)).astype(np.uint8)
        wander = ndimage.gaussian_filter(rng.normal(size=shape), 2.5)
        image = 600 * ndimage.gaussian_filter(truth.astype(np.float32), 1.0)
        image += 40 * wander / wander.std() + rng.normal(0, 5, shape)
        label = truth
        if number < NOISY:
            label = corrupt(truth, "markov", rng, steps=10, th2=0.15)
        labels = {LABEL: label, TRUTH: truth}
        write_case(archive, case, image.astype(np.int16), labels, spacing_mm=(1.0, 1.0, 1.0))
    return archive


def config_of(archive: Archive, run: Path, executor: str = "local", **changes: Any) -> Config:
    settings = {
        "method": "uncertainty",
        "network": BY_INTENSITY,
        "relabel__shard_vox": 64,
        "resources__executor": executor,
        "resources__relabel": {"actors": 4},
        "output": {"label": run.name},
        **changes,
    }
    return config_for(archive, run, **settings)


def test_rough_cases_come_nearer_to_the_truth_and_others_stay(
    archive: Archive, tmp_path: Path
) -> None:
    lender = lend_networks(config_of(archive, tmp_path / "lent"), tmp_path / "lender")
    teach(config_of(archive, tmp_path / "lent"), lender, archive)
    published = []
    for executor, tile in (("local", [16, 16, 16]), ("ray", [16, 32, 80])):
        config = config_of(
            archive, tmp_path / executor, executor, models=lender, relabel__tile_zyx=tile
        )
        assert clean(config).exit_code == 0
        published.append(outputs(config))
    assert published[0] == published[1]

    rows = RunFolder(config.run).read_table("cases.parquet")
    assert {row["action"] for row in rows if row["case"].startswith("noisy")} == {"blend"}
    errors = {LABEL: 0, config.output.label: 0}
    for case in archive.case_ids():
        truth = archive.label(case, TRUTH).read_all()
        wrong = {
            name: int((archive.label(case, name).read_all() != truth).sum()) for name in errors
        }
        reasons = set(np.unique(archive.label(case, f"{config.output.label}.reason").read_all()))
        if case.startswith("clean"):
            assert reasons == {Reason.UNCHANGED}
        else:
            assert Reason.BLEND in reasons
            errors = {name: errors[name] + wrong[name] for name in errors}
    assert errors[config.output.label] < 0.6 * errors[LABEL]
