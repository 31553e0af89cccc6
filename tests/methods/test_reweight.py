"""Reweighting: the weights are those of the virtual step, and what is done with them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F

from raysegclean.errors import ConfigError, InputError
from raysegclean.methods.base import load_method, make_params
from raysegclean.methods.reweight.hook import averaging_one, helpfulness
from raysegclean.methods.reweight.method import REWEIGHT
from raysegclean.nets.hooks import HookContext, HookSpec, Lesson, make_hook
from raysegclean.nets.losses import segmentation_loss
from raysegclean.nets.networks import build_network
from raysegclean.voxels.channels import IGNORE

from .training_scenes import SPEC, Scene, assert_resumes_alike, run, scene_at, trainer_of

pytestmark = pytest.mark.numeric
torch.set_num_threads(1)

PATH = "reweight"
CONTEXT = HookContext(classes=3, steps=100, epoch_steps=10, loss=segmentation_loss)


def hook_of(**params) -> HookSpec:
    return HookSpec.of(PATH, **params)


def scene_with_trusted(step: int) -> Scene:
    """Return a scene beside which comes another one with its true labels."""
    scene, other = scene_at(step), scene_at(10_000 + step)
    clean = replace(other.batch, label=other.truth, step=step)
    return replace(scene, batch=replace(scene.batch, clean=clean))


def mean_entropy(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    cost = F.cross_entropy(logits, label, ignore_index=IGNORE, reduction="none")
    return cost.flatten(1).sum(dim=1) / (label != IGNORE).flatten(1).sum(dim=1)


def by_the_published_steps(net: torch.nn.Module, batch) -> torch.Tensor:
    """Return the weights by a virtual step and a second derivative, as in the paper."""
    eps = torch.zeros(batch.label.shape, requires_grad=True)
    weights = dict(net.named_parameters())
    buffers = {name: value.clone() for name, value in net.named_buffers()}
    said = functional_call(net, (weights, dict(buffers)), (batch.image,))
    cost = F.cross_entropy(said, batch.label, ignore_index=IGNORE, reduction="none")
    grads = torch.autograd.grad((eps * cost).sum(), list(weights.values()), create_graph=True)
    moved = {
        name: value - 1e-3 * grad
        for (name, value), grad in zip(weights.items(), grads, strict=True)
    }
    said = functional_call(net, (moved, dict(buffers)), (batch.clean.image,))
    loss = mean_entropy(said, batch.clean.label).mean()
    (slope,) = torch.autograd.grad(loss, eps)
    return (-slope).clamp(min=0)


@pytest.mark.parametrize("training", [True, False])
def test_the_weights_are_those_of_the_virtual_step(training) -> None:
    net = build_network(SPEC, 4).train(training)
    batch = scene_with_trusted(0).batch
    with torch.no_grad():  # as the training loop asks
        found = helpfulness(net, batch, mean_entropy)
    expected = by_the_published_steps(net, batch)
    assert 0.1 < float((expected > 0).float().mean()) < 0.9
    torch.testing.assert_close(found / found.sum(), expected / expected.sum(), atol=1e-7, rtol=1e-3)
    assert (found[batch.label == IGNORE] == 0).all()


def test_the_network_is_left_as_it_was() -> None:
    net = build_network(SPEC, 3).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.no_grad():
        helpfulness(net, scene_with_trusted(0).batch, segmentation_loss)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(weight.grad is None for weight in net.parameters())


def test_a_batch_without_trusted_patches_is_refused() -> None:
    with pytest.raises(InputError, match="no trusted patches"):
        helpfulness(build_network(SPEC), scene_at(0).batch, segmentation_loss)


def test_weights_average_one_in_each_class_and_stay_in_proportion() -> None:
    rng = np.random.default_rng(0)
    label = rng.choice([0, 1, IGNORE], (2, 3, 4, 5))
    label[0, 0, 0, :3] = 2
    weights = rng.uniform(0, 5, label.shape)
    weights[label == 2] = 0
    scaled = averaging_one(torch.from_numpy(weights), torch.from_numpy(label), 4).numpy()
    for channel in (0, 1):
        mine = label == channel
        assert scaled[mine].mean() == pytest.approx(1)
        ratios = scaled[mine] / weights[mine]
        assert ratios == pytest.approx(ratios[0])
    assert not scaled[(label == IGNORE) | (label == 2)].any()


def test_as_published_the_step_is_on_the_weighted_sum_of_cross_entropies() -> None:
    hook = make_hook(hook_of(rule="published"), CONTEXT)
    net, batch = build_network(SPEC, 3).train(), scene_with_trusted(0).batch
    logits = net(batch.image)
    with torch.no_grad():
        lesson = hook.lesson(net, logits.detach(), batch)
    weights = lesson.voxel_weights
    assert float(weights.sum()) == pytest.approx(1, rel=1e-5)
    losses = hook.loss(net, logits, lesson, batch)
    cost = F.cross_entropy(logits, batch.label, ignore_index=IGNORE, reduction="none")
    expected = float((weights * cost).sum().detach())
    assert losses.shape == (4,)
    assert float(losses.mean()) == pytest.approx(expected, rel=1e-5)


def test_a_batch_in_which_nothing_helps_teaches_nothing() -> None:
    hook = make_hook(hook_of(rule="published"), CONTEXT)
    net, batch = build_network(SPEC, 3).train(), scene_with_trusted(0).batch
    silent = torch.full_like(batch.label, IGNORE)
    batch = replace(batch, clean=replace(batch.clean, label=silent))
    with torch.no_grad():
        lesson = hook.lesson(net, net(batch.image), batch)
    assert not lesson.voxel_weights.any()
    assert torch.isfinite(hook.loss(net, net(batch.image), lesson, batch)).all()


def test_by_default_learning_is_plain_until_the_start_epoch() -> None:
    hook = make_hook(hook_of(start_epoch=2), CONTEXT)
    net, batch = build_network(SPEC, 3).train(), scene_with_trusted(0).batch
    logits = net(batch.image)
    for step, weighted in ((0, False), (19, False), (20, True)):
        at = replace(batch, step=step)
        with torch.no_grad():
            lesson = hook.lesson(net, logits.detach(), at)
        assert (lesson.voxel_weights is not None) == weighted
        plain = Lesson(batch.label, torch.ones(4))
        loss = hook.loss(net, logits, lesson, at)
        assert torch.equal(loss, hook.loss(net, logits, plain, at)) == (not weighted)


def test_wrong_labels_weigh_less_than_right_ones_of_their_class() -> None:
    trainer = trainer_of(hook_of(start_epoch=3), 80)
    weights = {(channel, wrong): [] for channel in range(3) for wrong in (True, False)}
    for scene, lesson in run(trainer, 60, scene_with_trusted):
        if scene.batch.step >= 24:
            for channel, wrong in weights:
                mine = (scene.batch.label == channel) & (scene.wrong == wrong)
                weights[channel, wrong] += lesson.voxel_weights[mine].tolist()
    for channel in range(3):
        assert np.mean(weights[channel, True]) < 0.6 * np.mean(weights[channel, False])


@pytest.mark.parametrize("rule", ["default", "published"])
def test_a_resumed_training_is_the_same_bit_for_bit(rule) -> None:
    hook = hook_of(rule=rule, start_epoch=2)
    assert_resumes_alike(hook, 20, [1, 4, 16], scenes=scene_with_trusted)


def test_the_method_wants_trusted_cases_and_a_network_of_each_fold() -> None:
    method = load_method("reweight")
    assert method is REWEIGHT
    params = make_params(method, {"rule": "published", "members": 2})
    assert method.wants_trusted(params)
    voters = method.voters(params)
    assert voters.members == 2
    assert voters.hook == hook_of(rule="published", start_epoch=3)


@pytest.mark.parametrize(
    "values", [{"members": 0}, {"start_epoch": -1}, {"confidence": 0}, {"rule": "bold"}]
)
def test_values_outside_their_range_are_refused_by_name(values) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        make_params(REWEIGHT, values)
