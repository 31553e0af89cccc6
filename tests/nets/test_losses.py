"""Losses against plain loops over voxels."""

import math

import numpy as np
import pytest
import torch

from raysegclean.core.sampling import IGNORE
from raysegclean.nets.losses import sample_score, segmentation_loss

torch.set_num_threads(1)


def scene(seed: int = 0, classes: int = 3, ignored: float = 0.3):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(2, classes, 3, 4, 5)).astype(np.float32) * 3
    label = rng.integers(0, classes, (2, 3, 4, 5))
    label[rng.random(label.shape) < ignored] = IGNORE
    return torch.from_numpy(logits), torch.from_numpy(label)


def by_hand(logits: torch.Tensor, label: torch.Tensor, dice_weight: float) -> list[float]:
    """Return cross-entropy + Dice of each sample, voxel by voxel in float64."""
    out = []
    for sample, truth in zip(logits.double().numpy(), label.numpy(), strict=True):
        classes = len(sample)
        entropy, voxels = 0.0, 0
        overlap, squares, sizes = [0.0] * classes, [0.0] * classes, [0.0] * classes
        for index in np.ndindex(truth.shape):
            if truth[index] == IGNORE:
                continue
            weights = np.exp(sample[(slice(None), *index)])
            prob = weights / weights.sum()
            entropy -= math.log(prob[truth[index]])
            voxels += 1
            for c in range(classes):
                overlap[c] += prob[c] * (truth[index] == c)
                squares[c] += prob[c] ** 2
                sizes[c] += truth[index] == c
        dice = np.mean(
            [(2 * o + 1) / (q + s + 1) for o, q, s in zip(overlap, squares, sizes, strict=True)]
        )
        out.append(entropy / voxels + dice_weight * (1 - dice))
    return out


@pytest.mark.parametrize("dice_weight", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("ignored", [0.0, 0.5])
def test_the_loss_is_cross_entropy_plus_squared_dice(dice_weight, ignored) -> None:
    logits, label = scene(ignored=ignored)
    loss = segmentation_loss(logits, label, dice_weight)
    np.testing.assert_allclose(loss.numpy(), by_hand(logits, label, dice_weight), rtol=1e-5)


def test_ignored_voxels_have_no_gradient() -> None:
    logits, label = scene()
    logits.requires_grad_()
    segmentation_loss(logits, label).sum().backward()
    silent = (label == IGNORE).unsqueeze(1).expand_as(logits)
    assert (logits.grad[silent] == 0).all()
    assert (logits.grad[~silent] != 0).any()


def test_a_sample_without_any_labelled_voxel_costs_nothing() -> None:
    logits, label = scene()
    label[0] = IGNORE
    logits.requires_grad_()
    loss = segmentation_loss(logits, label)
    assert loss[0] == 0
    loss.sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_a_perfect_answer_costs_nothing_even_when_a_class_is_absent() -> None:
    label = torch.zeros(1, 2, 2, 2, dtype=torch.long)
    label[0, 0] = 1
    logits = torch.nn.functional.one_hot(label, 4).movedim(-1, 1).float() * 50
    assert segmentation_loss(logits, label).item() < 1e-6


def test_half_precision_logits_are_computed_in_single() -> None:
    logits, label = scene()
    rounded = logits.bfloat16()
    assert segmentation_loss(rounded, label).dtype == torch.float32
    assert torch.equal(segmentation_loss(rounded, label), segmentation_loss(rounded.float(), label))


def test_samples_do_not_see_each_other() -> None:
    logits, label = scene()
    alone = [segmentation_loss(logits[i : i + 1], label[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(torch.cat(alone), segmentation_loss(logits, label))


def test_the_score_is_cross_entropy_per_foreground_voxel() -> None:
    logits, label = scene(ignored=0.2)
    for score, sample, truth in zip(sample_score(logits, label), logits, label, strict=True):
        total, foreground = 0.0, 0
        for index in np.ndindex(*truth.shape):
            given = int(truth[index])
            if given == IGNORE:
                continue
            values = sample[(slice(None), *index)].double()
            prob = torch.softmax(values, 0)
            total -= math.log(max(float(prob[given]), 1e-4))
            foreground += given > 0 or int(values.argmax()) > 0
        assert score.item() == pytest.approx(total / foreground, rel=1e-5)


def test_the_score_of_pure_background_is_no_opinion() -> None:
    logits = torch.zeros(1, 2, 1, 1, 3)
    logits[:, 0] = 5
    assert sample_score(logits, torch.zeros(1, 1, 1, 3, dtype=torch.long)).isnan().all()
