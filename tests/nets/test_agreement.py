"""Agreement is counted as by hand, and measuring it leaves a training as it was, to the bit."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from raysegclean.nets.agreement import asked, dice_of, hits, mean_dice
from raysegclean.nets.trainer import Trainer
from raysegclean.voxels.channels import IGNORE
from tests.nets.test_trainer import COSEG, PLAIN, SPEC, assert_same, batch_at, run

pytestmark = pytest.mark.numeric


def test_dice_is_summed_over_the_sample_and_classes_that_it_lacks_are_left_out():
    rng = np.random.default_rng(3)
    label = rng.integers(0, 3, (2, 5, 6, 7))
    label[0, 0] = IGNORE
    logits = rng.normal(size=(2, 4, 5, 6, 7)).astype(np.float32)
    counts = sum(
        hits(torch.from_numpy(logits[i : i + 1]), torch.from_numpy(label[i : i + 1]))
        for i in range(2)
    )
    guess, known = logits.argmax(axis=1), label != IGNORE
    expected = [
        2 * ((guess == k) & (label == k)).sum() / ((guess == k)[known].sum() + (label == k).sum())
        for k in (1, 2)
    ]
    dices = dice_of(counts)
    assert dices[:2] == pytest.approx(expected)
    assert math.isnan(dices[2])
    assert mean_dice(dices) == pytest.approx(np.mean(expected))
    assert mean_dice((math.nan,)) == 0.0


@pytest.mark.parametrize("config", [PLAIN, COSEG], ids=["plain", "coseg"])
def test_a_training_that_is_measured_at_every_step_learns_the_same(config):
    straight = run(Trainer(SPEC, config), 20)
    measured = Trainer(SPEC, config)
    for step in range(20):
        measured.judge([batch_at(100), batch_at(101)])
        measured.step(batch_at(step))
    assert_same(measured, straight)


def test_before_statistics_are_frozen_a_network_is_asked_with_those_of_the_sample():
    trainer = run(Trainer(SPEC, replace(PLAIN, steps=40)), 10)
    net, batch = trainer.nets[0], batch_at(100)
    first = net.encoder[0].units[0]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with asked(net, frozen=False):
        seen = first.norm(first.conv(batch.image))
    assert seen.mean(dim=(0, 2, 3, 4)).tolist() == pytest.approx(first.norm.bias.tolist(), abs=1e-4)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not torch.equal(trainer._asked(0, batch.image), net.eval()(batch.image))
    run(trainer, 40)
    assert torch.equal(trainer._asked(0, batch.image), net.eval()(batch.image))
