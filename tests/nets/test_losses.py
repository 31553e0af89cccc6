"""Losses against plain loops over voxels."""

import math

import numpy as np
import pytest
import torch

from raysegclean.nets import losses
from raysegclean.nets.losses import (
    LOSSES,
    generalised_cross_entropy,
    noise_robust_dice,
    sample_score,
    segmentation_loss,
    symmetric_cross_entropy,
    t_loss,
    voxel_entropy,
)
from raysegclean.nets.memory import _Alive
from raysegclean.voxels.channels import IGNORE

torch.set_num_threads(1)


def scene(seed: int = 0, classes: int = 3, ignored: float = 0.3):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(2, classes, 3, 4, 5)).astype(np.float32) * 3
    label = rng.integers(0, classes, (2, 3, 4, 5))
    label[rng.random(label.shape) < ignored] = IGNORE
    return torch.from_numpy(logits), torch.from_numpy(label)


def by_hand(
    logits: torch.Tensor,
    label: torch.Tensor,
    dice_weight: float,
    shares: torch.Tensor | None = None,
) -> list[float]:
    """Return cross-entropy + Dice of each sample, voxel by voxel in float64."""
    out = []
    shares = torch.ones(label.shape) if shares is None else shares
    samples = (one.numpy() for one in (logits.double(), label, shares.double()))
    for sample, truth, share in zip(*samples, strict=True):
        classes = len(sample)
        entropy, voxels = 0.0, 0
        overlap, squares, sizes = [0.0] * classes, [0.0] * classes, [0.0] * classes
        for index in np.ndindex(truth.shape):
            if truth[index] == IGNORE:
                continue
            weights = np.exp(sample[(slice(None), *index)])
            prob = weights / weights.sum()
            entropy -= share[index] * math.log(prob[truth[index]])
            voxels += 1
            for c in range(classes):
                overlap[c] += share[index] * prob[c] * (truth[index] == c)
                squares[c] += share[index] * prob[c] ** 2
                sizes[c] += share[index] * (truth[index] == c)
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


def plain_loss(logits, label, dice_weight, weights):
    """Return the default loss as autograd has it, in float64."""
    prob = torch.softmax(logits, dim=1)
    known = (label != IGNORE).double()
    truth = torch.stack([label == k for k in range(logits.shape[1])], dim=1).double()
    shares = (known * weights)[:, None]
    space = (2, 3, 4)
    entropy = -(truth * prob.log() * shares).sum(dim=(1, *space)) / known.sum(dim=(1, 2, 3))
    overlap = (truth * prob * shares).sum(dim=space)
    sizes = ((prob.square() + truth) * shares).sum(dim=space)
    return entropy + dice_weight * (1 - ((2 * overlap + 1) / (sizes + 1)).mean(dim=1))


@pytest.mark.parametrize("dice_weight", [0.0, 0.7])
@pytest.mark.parametrize("classes", [2, 9])
@pytest.mark.parametrize("slab", [1, 1 << 22])
def test_the_gradient_is_the_one_of_the_formula_however_the_image_is_cut(
    monkeypatch, dice_weight, classes, slab
) -> None:
    monkeypatch.setattr(losses, "SLAB", slab)
    logits, label = scene(4, classes)
    shares = torch.from_numpy(np.random.default_rng(5).choice([0.0, 0.5, 3.0], label.shape))
    logits.requires_grad_()
    loss = segmentation_loss(logits, label, dice_weight, weights=shares.float())
    (loss * torch.tensor([1.0, 0.3])).sum().backward()
    wide = logits.detach().double().requires_grad_()
    expected = plain_loss(wide, label, dice_weight, shares)
    (expected * torch.tensor([1.0, 0.3]).double()).sum().backward()
    torch.testing.assert_close(loss.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits.grad.double(), wide.grad, atol=1e-6, rtol=1e-4)


def test_beside_the_logits_the_loss_holds_their_gradient_and_no_other_copy() -> None:
    logits = torch.zeros(1, 60, 32, 24, 24, requires_grad=True)
    label = torch.zeros(1, 32, 24, 24, dtype=torch.long)
    counter = _Alive()
    with counter:
        segmentation_loss(logits, label).sum().backward()
    assert counter.peak < 1.5 * logits.nbytes + 8 * 4 * losses.SLAB


def test_each_voxel_may_have_a_weight_in_every_sum() -> None:
    logits, label = scene()
    shares = torch.from_numpy(np.random.default_rng(5).choice([0.0, 0.5, 3.0], label.shape))
    loss = segmentation_loss(logits, label, weights=shares.float())
    np.testing.assert_allclose(loss.numpy(), by_hand(logits, label, 1.0, shares), rtol=1e-5)
    plain = segmentation_loss(logits, label)
    assert torch.equal(segmentation_loss(logits, label, weights=torch.ones(label.shape)), plain)


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


def labelled_of(logits: torch.Tensor, label: torch.Tensor):
    """Yield, per sample, the probabilities of its labelled voxels (N, K) and their labels (N,)."""
    for sample, truth in zip(logits.double().numpy(), label.numpy(), strict=True):
        weights = np.exp(sample - sample.max(axis=0))
        prob = (weights / weights.sum(axis=0)).reshape(len(sample), -1).T
        known = truth.ravel() != IGNORE
        yield prob[known], truth.ravel()[known]


def gce_by_hand(prob: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean([(1 - math.sqrt(p[g])) / 0.5 for p, g in zip(prob, truth, strict=True)]))


def sce_by_hand(prob: np.ndarray, truth: np.ndarray) -> float:
    total = 0.0
    for p, g in zip(prob, truth, strict=True):
        floored = [1.0 if c == g else 1e-5 for c in range(len(p))]
        total -= 0.5 * math.log(p[g])
        total -= sum(share * math.log(one) for share, one in zip(p, floored, strict=True))
    return total / len(truth)


def nr_dice_by_hand(prob: np.ndarray, truth: np.ndarray) -> float:
    ratios = []
    for c in range(prob.shape[1]):
        wanted = (truth == c).astype(float)
        distance = (np.abs(prob[:, c] - wanted) ** 1.5).sum()
        ratios.append(distance / ((prob[:, c] + wanted).sum() + 1))
    return float(np.mean(ratios))


def t_by_hand(prob: np.ndarray, truth: np.ndarray) -> float:
    """Return the published likelihood per voxel, less what it is for a perfect answer."""
    dims, nu = len(truth), 1.0

    def likelihood(squares: float) -> float:
        gammas = math.lgamma(nu / 2) - math.lgamma((nu + dims) / 2)
        return (
            gammas
            + dims / 2 * math.log(math.pi * nu)
            + (nu + dims) / 2 * math.log(1 + squares / nu)
        )

    squares = sum(
        (p[c] - (c == g)) ** 2 for p, g in zip(prob, truth, strict=True) for c in range(len(p))
    )
    return (likelihood(squares / 2) - likelihood(0.0)) / dims


ROBUST = {
    "gce": (generalised_cross_entropy, gce_by_hand),
    "nr_dice": (noise_robust_dice, nr_dice_by_hand),
    "sce": (symmetric_cross_entropy, sce_by_hand),
    "t_loss": (t_loss, t_by_hand),
}
every_loss = pytest.mark.parametrize("name", list(LOSSES))
every_robust = pytest.mark.parametrize("name", list(ROBUST))


@every_robust
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("ignored", [0.0, 0.6])
def test_robust_losses_are_those_of_their_papers(name, classes, ignored) -> None:
    loss, by_hand = ROBUST[name]
    assert LOSSES[name] is loss
    logits, label = scene(1, classes, ignored)
    expected = [by_hand(*sample) for sample in labelled_of(logits, label)]
    np.testing.assert_allclose(loss(logits, label).numpy(), expected, rtol=1e-5)


def test_for_two_classes_the_t_loss_is_that_of_the_foreground_probability() -> None:
    logits, label = scene(2, classes=2)
    for value, (prob, truth) in zip(t_loss(logits, label), labelled_of(logits, label), strict=True):
        delta, dims = prob[:, 1] - truth, len(truth)
        expected = (1 + dims) / 2 * math.log(1 + float(delta @ delta)) / dims
        assert value.item() == pytest.approx(expected, rel=1e-5)


@every_loss
def test_every_loss_leaves_ignored_voxels_alone_and_samples_apart(name) -> None:
    logits, label = scene(3)
    label[1] = IGNORE
    silent = (label == IGNORE).unsqueeze(1).expand_as(logits)
    logits.requires_grad_()
    loss = LOSSES[name](logits, label)
    assert loss.shape == (2,)
    assert loss[1] == 0
    loss.sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[silent] == 0).all()
    assert (logits.grad[~silent] != 0).any()
    alone = LOSSES[name](logits[:1], label[:1])
    torch.testing.assert_close(alone, loss[:1])


@every_loss
@pytest.mark.parametrize("sureness", [0.0, 30.0, 200.0])
def test_gradients_are_finite_for_the_surest_right_and_wrong_answers(name, sureness) -> None:
    label = torch.tensor([[[[0, 1, 1, 0]]]])
    said = torch.tensor([[[[0, 1, 0, 1]]]])
    logits = torch.nn.functional.one_hot(said, 3).movedim(-1, 1).float() * sureness
    logits.requires_grad_()
    loss = LOSSES[name](logits.bfloat16(), label)
    assert loss.dtype == torch.float32
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(logits.grad).all()


@every_loss
def test_a_perfect_answer_costs_nothing_by_any_loss(name) -> None:
    label = torch.zeros(1, 2, 2, 2, dtype=torch.long)
    label[0, 0] = 1
    logits = torch.nn.functional.one_hot(label, 4).movedim(-1, 1).float() * 50
    assert LOSSES[name](logits, label).item() == pytest.approx(0, abs=1e-6)


@every_robust
def test_a_robust_loss_grows_slower_than_cross_entropy_on_a_wrong_label(name) -> None:
    # One voxel of a thousand is labelled wrongly; the network gets surer and surer of it.
    label = torch.zeros(1, 10, 10, 10, dtype=torch.long)
    label[0, 0, 0, 0] = 1

    def growth(loss) -> float:
        values = []
        for sureness in (20.0, 40.0):
            logits = torch.zeros(1, 2, 10, 10, 10)
            logits[:, 0] = sureness
            values.append(loss(logits, label).item())
        return values[1] - values[0]

    entropy = growth(lambda logits, label: voxel_entropy(logits, label).mean(dim=(1, 2, 3)))
    assert entropy == pytest.approx(20e-3, rel=0.05)
    assert growth(LOSSES[name]) < 0.51 * entropy


def test_the_t_loss_forgives_images_that_are_wrong_as_a_whole() -> None:
    # The pull on each wrong voxel falls as more of the image is wrong.
    pulls = []
    for wrong in (1, 8):
        label = torch.zeros(1, 1, 1, 16, dtype=torch.long)
        label[..., :wrong] = 1
        logits = torch.zeros(1, 2, 1, 1, 16)
        logits[:, 0] = 3.0
        logits.requires_grad_()
        t_loss(logits, label).sum().backward()
        pulls.append(float(logits.grad[0, 1, 0, 0, 0].abs()))
    assert pulls[1] < 0.5 * pulls[0]


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
