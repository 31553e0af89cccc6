"""Deep supervision: coarser levels learn the label, and nothing of it is left afterwards."""

import pytest
import torch

from raysegclean.nets.batch import Batch
from raysegclean.nets.deep_supervision import coarse_label, deep_loss
from raysegclean.nets.hooks import Lesson
from raysegclean.nets.networks import build_network
from raysegclean.nets.trainer import TrainConfig, Trainer
from raysegclean.nets.unet import NetworkSpec
from raysegclean.voxels.channels import IGNORE

pytestmark = pytest.mark.numeric

SPEC = NetworkSpec(classes=3, widths=(4, 6, 8, 10), strides=((1, 2, 2),) * 3)


def batch_of(step: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    image = torch.rand((2, 1, 4, 16, 16), generator=generator)
    return Batch(image, (3 * image[:, 0]).long(), ["a", "b"], step)


def test_coarse_labels_are_those_at_the_centres() -> None:
    label = torch.arange(4 * 8).reshape(1, 4, 8, 1)
    assert coarse_label(label, torch.zeros(1, 2, 4, 2, 1))[0, :, :, 0].tolist() == [
        [2, 6],
        [10, 14],
        [18, 22],
        [26, 30],
    ]


def test_each_coarser_level_weighs_half_and_learns_nothing_of_voxels_without_weight() -> None:
    label = torch.zeros((1, 1, 4, 4), dtype=torch.int64)
    label[..., 2:] = 1
    lesson = Lesson(label, torch.ones(1), voxel_weights=(label == 0).float())
    logits = torch.zeros((1, 2, 1, 2, 2))
    seen = []

    def of(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        seen.append(label)
        return torch.full((1,), 3.0)

    assert deep_loss(torch.zeros(1), [logits, logits], lesson, of).item() == pytest.approx(9 / 7)
    assert seen[0].tolist() == [[[[0, IGNORE], [0, IGNORE]]]]


def test_the_finest_answer_is_what_the_head_reads() -> None:
    net = build_network(SPEC).eval()
    image = batch_of(0).image
    with torch.no_grad():
        answers = net.answers(image)
        assert torch.equal(net.head(answers[0]), net(image))
    assert [tuple(one.shape[1:]) for one in answers] == [(4, 4, 16, 16), (6, 4, 8, 8), (8, 4, 4, 4)]


def test_coarse_levels_learn_and_what_is_left_is_the_same_network() -> None:
    trainer = Trainer(SPEC, TrainConfig(steps=10, deep_supervision=True))
    member = trainer.members[0]
    before = [p.clone() for p in member.heads.parameters()]
    trainer.step(batch_of(0))
    after = member.heads.parameters()
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    plain = Trainer(SPEC, TrainConfig(steps=10)).members[0]
    assert plain.heads is None
    assert list(member.net.state_dict()) == list(plain.net.state_dict())


def test_a_training_with_coarse_levels_resumes_bit_for_bit() -> None:
    config = TrainConfig(steps=8, deep_supervision=True)
    straight, first, second = (Trainer(SPEC, config) for _ in range(3))
    for step in range(8):
        straight.step(batch_of(step))
        (first if step < 2 else second).step(batch_of(step))
        if step == 1:
            second.load(first.state())
    states = (one.members[0].net.state_dict().values() for one in (straight, second))
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_networks_without_it_keep_their_identity() -> None:
    assert "deep_supervision" not in TrainConfig(steps=8).identity()
    assert TrainConfig(steps=8, deep_supervision=True).identity()["deep_supervision"]
    assert "nnunet" not in SPEC.identity()
