"""A Ray for each module of this room, and a tiny archive to train on."""

import numpy as np
import pytest

from raysegclean.cluster.connection import connect, shutdown_if_ours
from raysegclean.cluster.train_jobs import TrainJob
from raysegclean.nets.normalise import plan_normaliser
from raysegclean.nets.trainer import TrainConfig
from raysegclean.nets.unet import NetworkSpec
from raysegclean.store.archive import Archive, write_case
from raysegclean.store.index import build_index


@pytest.fixture(scope="module")
def cluster():
    """A Ray on this machine, gone before the next module starts one of its own."""
    facts = connect()
    yield facts
    shutdown_if_ours(facts)


class Balls:
    """Six CT-like cases with one ball each; odd sizes, one of them smaller than a patch in z."""

    def __init__(self, uri):
        self.uri = str(uri)
        self.arrays = {}
        archive = Archive.open(self.uri)
        rng = np.random.default_rng(0)
        for number in range(6):
            shape = (12 if number == 5 else 30 + number, 44, 37 + number)
            z, y, x = np.indices(shape)
            middle = shape[0] / 2, 20 - number, 18
            ball = sum(((axis - m) / 8) ** 2 for axis, m in zip((z, y, x), middle, strict=True)) < 1
            label = np.where(ball, 3, 0).astype(np.uint8)
            image = (rng.normal(0, 30, shape) + ball * 100 - 300).astype(np.int16)
            case = f"case{number}"
            write_case(archive, case, image, {"organs": label}, spacing_mm=(2.0, 1.0, 1.0))
            self.arrays[case] = image, label
        self.infos = tuple(build_index(archive))
        self.normaliser = plan_normaliser(self.infos)


@pytest.fixture
def small_job(balls, tmp_path):
    """The training of a tiny network on the archive, in two folds."""
    return TrainJob(
        key="abc",
        run_uri=str(tmp_path / "run"),
        archive_uri=balls.uri,
        label="organs",
        cases=balls.infos,
        folds=(("case0", "case1", "case2"), ("case3", "case4", "case5")),
        network=NetworkSpec(in_channels=1, classes=2, widths=(4, 8), strides=((1, 2, 2),)),
        normaliser=balls.normaliser,
        classes=(0, 3),
        train=TrainConfig(steps=40),
        patch_zyx=(8, 16, 16),
    )


@pytest.fixture(scope="session")
def balls(tmp_path_factory):
    """The archive, its arrays in memory, and its index."""
    return Balls(tmp_path_factory.mktemp("balls"))
