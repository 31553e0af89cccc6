"""Losses corrected by a transition matrix, known or estimated while the network learns."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from raysegclean.methods.transition.hook import TransitionHook
from raysegclean.nets.batch import Batch
from raysegclean.nets.hooks import HookContext, HookSpec, Lesson
from raysegclean.nets.losses import segmentation_loss
from raysegclean.voxels.channels import IGNORE

from .training_scenes import SPEC, Scene, assert_resumes_alike, run, scene_at, trainer_of

HOOK = "transition"
STEPS = 160
LOST, GAINED = 0.25, 0.04
"""How often class 1 is labelled background, and background class 2."""

pytestmark = pytest.mark.numeric
torch.set_num_threads(1)


def salted(step: int) -> Scene:
    """Return the blocks of `scene_at`, in which single voxels are wrong at known rates."""
    scene, rng = scene_at(step), np.random.default_rng([step, 1])
    truth = scene.truth.numpy()
    drawn = rng.random(truth.shape)
    label = np.where((truth == 1) & (drawn < LOST), 0, truth)
    label = np.where((truth == 0) & (drawn < GAINED), 2, label)
    label[:, 0, 0, 0] = IGNORE
    return Scene(replace(scene.batch, label=torch.from_numpy(label)), scene.truth)


def next_to_another_label(label: np.ndarray) -> np.ndarray:
    """Return the voxels that share a face or an edge with one of another label of the patch."""
    edges = ndimage.generate_binary_structure(3, 2)
    most = ndimage.maximum_filter(label, footprint=edges)
    least = ndimage.minimum_filter(label, footprint=edges)
    return (most != label) | (least != label)


def rates(scenes: list[Scene]) -> np.ndarray:
    """Count P(given | true) among voxels less than 1 mm deep."""
    counts = np.zeros((3, 3))
    for scene in scenes:
        for label, truth in zip(scene.batch.label.numpy(), scene.truth.numpy(), strict=True):
            there = next_to_another_label(label) & (label != IGNORE)
            np.add.at(counts, (truth[there], label[there]), 1)
    return counts / counts.sum(axis=1, keepdims=True)


def test_networks_estimate_how_often_the_labels_that_they_learn_are_wrong():
    # What a network cannot tell by the fourth epoch passes for noise of the label, up to .06 by
    # luck, so three are averaged (.02 off): .25 off where they are half as wide.
    steps = 4 * STEPS // 10 + 1
    found = []
    for seed in (5, 6, 7):
        spec = replace(SPEC, widths=(8, 12))
        trainer = trainer_of(HookSpec.of(HOOK, rows=3000), STEPS, spec=spec, seed=seed)
        scenes = [scene for scene, _ in run(trainer, steps, salted)]
        found.append(trainer.members[0].hook.report()["transition"])
    expected = rates(scenes[3 * STEPS // 10 : 4 * STEPS // 10])
    assert expected[1, 0] > 0.2
    np.testing.assert_allclose(np.mean(found, axis=0)[0], expected, atol=0.06)
    np.testing.assert_allclose(np.sum(found, axis=3), 1, atol=1e-3)
    nothing_lies_so_deep = np.array(found)[:, 3]
    assert np.array_equal(nothing_lies_so_deep, [np.eye(3)] * 3)


def test_until_t_is_known_the_network_learns_as_it_would_without_it():
    plain, forward = (trainer_of(spec, 40) for spec in (HookSpec(), HookSpec.of(HOOK)))
    until = 16
    for one in (plain, forward):
        list(run(one, until, salted))
        assert one.at_step == until
    for name, value in plain.nets[0].state_dict().items():
        assert torch.equal(value, forward.nets[0].state_dict()[name]), name


@pytest.mark.parametrize("loss", ["forward", "backward"])
def test_a_resumed_training_goes_on_with_what_was_gathered_and_with_t(loss):
    spec = HookSpec.of(HOOK, rows=2000, loss=loss)
    assert_resumes_alike(spec, 40, [14, 30], salted)  # gathers at 12 to 15


def banded(loss: str, transition: np.ndarray) -> TransitionHook:
    """Return a hook that knows T of every band."""
    spacing = dict.fromkeys("ab", (1.0, 1.0, 1.0))
    context = HookContext(3, 10, 1, segmentation_loss, spacing_mm=spacing)
    found = TransitionHook(context, loss=loss)
    found.load({"gathered": [], "transition": transition.tolist()})
    return found


def test_every_voxel_is_corrected_by_the_matrix_of_its_own_depth():
    rng = np.random.default_rng(0)
    label = np.zeros((2, 3, 3, 12), np.int64)
    label[..., 4:] = 1
    depth = np.array([3.5, 2.5, 1.5, 0.5, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5])
    band = np.digitize(depth, (1.0, 3.0, 8.0))
    transition = np.stack([row / row.sum(axis=1, keepdims=True) for row in rng.random((4, 3, 3))])
    logits = torch.from_numpy(rng.normal(size=(2, 3, 3, 3, 12)).astype(np.float32))
    batch = Batch(torch.zeros(2, 1, 3, 3, 12), torch.from_numpy(label), ["a", "b"], step=9)
    found = banded("forward", transition).loss(torch.nn.Identity(), logits, lesson(batch), batch)
    prob = torch.softmax(logits, dim=1).numpy()
    noisy = np.einsum("xij,bizyx->bjzyx", transition[band], prob)
    expected = segmentation_loss(torch.from_numpy(np.log(noisy)), batch.label)
    torch.testing.assert_close(found, expected.float(), atol=1e-5, rtol=0)


def test_a_class_that_is_ruled_out_costs_much_but_not_infinitely_much():
    logits, batch = patch()
    untouched = banded("forward", np.stack([np.eye(3)] * 4))
    logits = (200 * logits).requires_grad_()
    found = untouched.loss(torch.nn.Identity(), logits, lesson(batch), batch)
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert torch.isfinite(logits.grad).all()


def test_backward_leaves_a_band_alone_whose_labels_are_mostly_wrong():
    logits, batch = patch()
    mostly_wrong = np.array([[0.4, 0.3, 0.3], [0.0, 1.0, 0.0], [0.5, 0.5, 0.0]])
    hopeless = banded("backward", np.stack([mostly_wrong] * 4))
    untouched = banded("backward", np.stack([np.eye(3)] * 4))
    losses = [
        one.loss(torch.nn.Identity(), logits, lesson(batch), batch) for one in (hopeless, untouched)
    ]
    torch.testing.assert_close(*losses)


def hook(loss: str, classes: int = 3, flip: float = 0.3) -> TransitionHook:
    context = HookContext(classes=classes, steps=10, epoch_steps=1, loss=segmentation_loss)
    return TransitionHook(context, loss=loss, flip=flip)


def patch(classes: int = 3) -> tuple[torch.Tensor, Batch]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, classes, 3, 4, 5, generator=generator)
    label = torch.randint(0, classes, (2, 3, 4, 5), generator=generator)
    label[0, 0] = -100
    return logits, Batch(torch.zeros(2, 1, 3, 4, 5), label, ["a", "b"], step=0)


def lesson(batch: Batch) -> Lesson:
    return Lesson(batch.label, torch.ones(2))


def test_forward_is_the_loss_of_what_the_flips_make_of_the_prediction() -> None:
    logits, batch = patch()
    found = hook("forward").loss(torch.nn.Identity(), logits, lesson(batch), batch)
    t = np.full((3, 3), 0.15) + 0.55 * np.eye(3)
    noisy = np.einsum("ij,bizyx->bjzyx", t, torch.softmax(logits, dim=1).numpy())
    np.testing.assert_allclose(noisy.sum(axis=1), 1, rtol=1e-6)
    expected = segmentation_loss(torch.from_numpy(np.log(noisy)), batch.label)
    torch.testing.assert_close(found, expected.float(), atol=1e-5, rtol=0)


def test_backward_is_unbiased_the_mean_over_flips_is_the_clean_cross_entropy() -> None:
    logits, batch = patch()
    t = np.full((3, 3), 0.15) + 0.55 * np.eye(3)
    truth = torch.full_like(batch.label, 1)
    mean = torch.zeros(2)
    for given in range(3):
        flipped = Lesson(torch.full_like(truth, given), torch.ones(2))
        mean += t[1, given] * hook("backward").loss(torch.nn.Identity(), logits, flipped, batch)
    clean = -torch.log_softmax(logits, dim=1)[:, 1].mean(dim=(1, 2, 3))
    torch.testing.assert_close(mean, clean, atol=1e-5, rtol=0)


def test_voxels_without_a_say_cost_nothing_backwards() -> None:
    logits, batch = patch()
    other = logits.clone()
    other[0, :, 0] = 5.0
    both = [
        hook("backward").loss(torch.nn.Identity(), one, lesson(batch), batch)
        for one in (logits, other)
    ]
    torch.testing.assert_close(both[0], both[1])
    nothing = Lesson(torch.full_like(batch.label, -100), torch.ones(2))
    assert (hook("backward").loss(torch.nn.Identity(), logits, nothing, batch) == 0).all()
