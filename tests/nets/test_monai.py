"""A network of MONAI's zoo, named in the config: nothing here was written with it in mind."""

import numpy as np
import pytest
import torch

from raysegclean.nets.inference import Seams, Tiling
from raysegclean.nets.networks import build_network, check_network
from raysegclean.nets.receptive import geometry_of
from raysegclean.nets.trainer import TrainConfig, Trainer
from raysegclean.nets.unet import NetworkSpec
from raysegclean.nets.voters import NetworkVoter
from raysegclean.voxels.geometry import Box

from .own_networks import PATH
from .test_averaged_windows import answer
from .test_networks import batch_of

pytestmark = pytest.mark.numeric
torch.set_num_threads(1)

SHAPE = (12, 44, 36)
IMAGE = np.random.default_rng(0).normal(size=(1, *SHAPE)).astype(np.float32)


@pytest.fixture(autouse=True)
def _monai() -> None:  # here and not above: it takes seconds to import
    pytest.importorskip("monai")


def dynunet(name: str, classes: int = 3) -> NetworkSpec:
    spec = NetworkSpec(
        classes=classes,
        widths=(4, 6, 8),
        strides=((1, 2, 2), (2, 2, 2)),
        dropout=0.0,
        name=f"{PATH}:{name}",
    )
    check_network(spec)
    return spec


def test_with_instance_norm_its_windows_are_blended_and_parts_equal_the_whole() -> None:
    spec = dynunet("dynunet")
    geometry = geometry_of(spec)
    assert geometry.radius_vox is None
    voter = NetworkVoter(build_network(spec), spec)
    tiling = Tiling((4, 16, 16), (2, 8, 8), geometry.stride_zyx, averaged=True)
    seams = Seams()
    whole = answer(voter, IMAGE, Box.whole(SHAPE), tiling, seams)
    for box in (Box((0, 0, 0), (8, 20, 36)), Box((8, 20, 9), (12, 44, 17))):
        assert torch.equal(answer(voter, IMAGE, box, tiling), whole[(..., *box.slices)])
    assert seams.square > 0


def test_with_batch_norm_tiles_with_the_measured_halo_equal_the_whole() -> None:
    spec = dynunet("dynunet_batch")
    geometry = geometry_of(spec)
    assert geometry.radius_vox is not None
    voter = NetworkVoter(build_network(spec), spec)
    tiling = Tiling((4, 8, 8), geometry.radius_vox, geometry.stride_zyx)
    whole = Tiling((64, 64, 64), geometry.radius_vox, geometry.stride_zyx)
    ours, theirs = (answer(voter, IMAGE, Box.whole(SHAPE), t) for t in (tiling, whole))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_it_learns() -> None:
    trainer = Trainer(dynunet("dynunet", classes=2), TrainConfig(steps=40))
    losses = [trainer.step(batch_of(step)).losses[0] for step in range(40)]
    assert np.mean(losses[-5:]) < 0.85 * np.mean(losses[:5])
