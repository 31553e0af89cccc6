"""What a training step takes: no more than is predicted, and not far less."""

from math import prod

import pytest
import torch

from raysegclean.nets.batch import Batch
from raysegclean.nets.hooks import HookSpec
from raysegclean.nets.memory import _Alive, training_bytes
from raysegclean.nets.trainer import TrainConfig, Trainer
from raysegclean.nets.unet import NetworkSpec

pytestmark = pytest.mark.numeric

SHAPE = (8, 16, 16)
PEERS = HookSpec("raysegclean.methods.coteaching.hook:CoteachingHook")


def counted_bytes(spec: NetworkSpec, **config) -> int:
    """Return the most bytes of tensors that two steps hold at once."""
    counter = _Alive()
    with counter:
        trainer = Trainer(spec, TrainConfig(steps=10, **config))
        for step in range(2):
            image, label = torch.zeros(2, 1, *SHAPE), torch.zeros(2, *SHAPE, dtype=torch.int64)
            trainer.step(Batch(image, label, ["a"] * 2, step))
    return counter.peak


@pytest.mark.parametrize(
    ("spec", "peers"),
    [
        (NetworkSpec(classes=3), 1),
        (NetworkSpec(classes=60, widths=(4, 8), strides=((1, 2, 2),)), 2),
        (NetworkSpec(classes=3, widths=(8, 16), strides=((2, 2, 2),), residual=True), 1),
        (NetworkSpec(name="tests.nets.own_networks:instance", widths=(4,), strides=()), 1),
    ],
    ids=["the default network", "many classes", "residual", "a network of one's own"],
)
def test_what_training_takes_is_predicted(spec: NetworkSpec, peers: int) -> None:
    predicted = training_bytes(spec, 2 * prod(SHAPE), networks=peers)
    assert 1 / 3 < counted_bytes(spec, peers=peers) / predicted <= 1.0


def test_coarser_logits_are_counted() -> None:
    spec = NetworkSpec(classes=60, widths=(4, 6, 8), strides=((1, 2, 2),) * 2)
    predicted = training_bytes(spec, 2 * prod(SHAPE), deep=True)
    assert 1 / 3 < counted_bytes(spec, deep_supervision=True) / predicted <= 1.0


def test_networks_that_teach_each_other_are_held_together() -> None:
    spec = NetworkSpec(classes=3, widths=(8, 16), strides=((2, 2, 2),))
    alone, together = (counted_bytes(spec, peers=2, **hook) for hook in ({}, {"hook": PEERS}))
    assert together > 1.4 * alone
    assert together <= training_bytes(spec, 2 * prod(SHAPE), networks=2, together=2)
