"""The page about networks of a user's own is true: its example is the file, and the file works."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from raysegclean.nets.inference import Tiling
from raysegclean.nets.networks import build_network, check_network
from raysegclean.nets.receptive import geometry_of
from raysegclean.nets.trainer import TrainConfig, Trainer
from raysegclean.nets.unet import NetworkSpec
from raysegclean.nets.voters import DropoutVoter
from raysegclean.voxels.geometry import Box

from .test_averaged_windows import answer
from .test_networks import batch_of

pytestmark = pytest.mark.numeric
torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "own_network.py"
PAGE = ROOT / "docs" / "own-network.md"


@pytest.fixture(autouse=True)
def _on_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    yield
    sys.modules.pop("own_network", None)


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_the_page_shows_the_file() -> None:
    assert blocks()[0] == EXAMPLE.read_text()


def test_the_example_keeps_the_contract_learns_and_drops_out() -> None:
    spec = NetworkSpec(classes=2, widths=(4, 4), strides=((2, 2, 2),), name="own_network:build")
    check_network(spec)
    geometry = geometry_of(spec)
    assert geometry.stride_zyx == (1, 1, 1), "what the module says of itself wins"
    assert geometry.radius_vox == (1 + 2 + 3,) * 3
    trainer = Trainer(spec, TrainConfig(steps=60))
    losses = [trainer.step(batch_of(step)).losses.get(0) for step in range(60)]
    known = [loss for loss in losses if loss is not None]
    assert np.mean(known[-5:]) < 0.85 * np.mean(known[:5])
    image = np.random.default_rng(0).normal(size=(1, 5, 17, 14)).astype(np.float32)
    voter = DropoutVoter(trainer.nets[0], spec, n_passes=2)
    ours, whole = (
        answer(voter, image, Box.whole((5, 17, 14)), Tiling(tile, geometry.radius_vox))
        for tile in ((4, 4, 4), (32, 32, 32))
    )
    torch.testing.assert_close(ours, whole, atol=1e-5, rtol=0)
    assert not torch.equal(ours[0], ours[1])


def test_the_example_of_monai_works() -> None:
    pytest.importorskip("monai")
    names: dict = {}
    exec(blocks()[1], names)
    spec = NetworkSpec(classes=3, widths=(2, 3, 4), strides=((1, 2, 2), (2, 2, 2)), dropout=0.0)
    logits = names["build"](spec)(torch.zeros(2, 1, 4, 8, 8))
    assert logits.shape == (2, 3, 4, 8, 8)
    assert build_network(spec)(torch.zeros(2, 1, 4, 8, 8)).shape == logits.shape
