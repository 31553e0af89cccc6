"""Learning from presence: what counts is which classes a field holds."""

import numpy as np
import pytest
import torch

from raysegclean.methods.multisa.hook import PresenceHook, presence_loss
from raysegclean.nets.batch import Batch
from raysegclean.nets.hooks import HookContext
from raysegclean.nets.losses import LOSSES
from raysegclean.voxels.channels import IGNORE

torch.set_num_threads(1)


def by_hand(logits: np.ndarray, label: np.ndarray, fields: int, sharpness: float) -> float:
    """One sample, region by region."""
    classes = len(logits)

    def cost(region: tuple[slice, slice, slice], k: int) -> float | None:
        known = label[region] != IGNORE
        if not known.any():
            return None
        evidence = (logits[k] - logits[0])[region][known]
        score = np.log(np.mean(np.exp(sharpness * evidence))) / sharpness
        prob = 1 / (1 + np.exp(-score))
        return float(-np.log(prob if (label[region] == k).any() else 1 - prob))

    def mean(regions: list[tuple[slice, slice, slice]]) -> float:
        costs = [cost(region, k) for region in regions for k in range(1, classes)]
        return float(np.mean([c for c in costs if c is not None]))

    z, y, x = label.shape
    rows, columns = (np.array_split(np.arange(n), fields) for n in (y, x))
    per_field = [
        mean([(slice(s, s + 1), slice(r[0], r[-1] + 1), slice(c[0], c[-1] + 1)) for s in range(z)])
        for r in rows
        for c in columns
    ]
    return float(np.mean(per_field)) + mean([(slice(None),) * 3])


@pytest.mark.parametrize("fields", [1, 2, 3])
def test_the_loss_is_the_cross_entropy_of_presence_in_every_field_and_in_the_patch(fields) -> None:
    rng = np.random.default_rng(fields)
    logits = rng.normal(size=(2, 3, 3, 5, 6))
    label = rng.choice([0, 0, 0, 0, 1, 2], size=(2, 3, 5, 6))
    label[0, :, :1] = IGNORE
    found = presence_loss(torch.tensor(logits), torch.tensor(label), fields, 3.0)
    expected = [by_hand(*pair, fields, 3.0) for pair in zip(logits, label, strict=True)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_outlines_do_not_matter_to_the_loss() -> None:
    logits = torch.randn(1, 3, 2, 8, 8)
    big = torch.zeros(1, 2, 8, 8, dtype=torch.int64)
    big[:, :, 1:4, 1:4] = 1
    small = torch.zeros_like(big)
    small[:, :, 2, 3] = 1
    elsewhere = torch.zeros_like(big)
    elsewhere[:, :, 6, 3] = 1
    losses = [float(presence_loss(logits, label, 2, 4.0)) for label in (big, small, elsewhere)]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2], "another field is another lesson"


def hook_of(**params) -> PresenceHook:
    present = {"labelled": (0, 1), "blank": (0,)}
    return PresenceHook(HookContext(2, 10, 1, LOSSES["ce_dice"], present=present), **params)


def test_cases_that_are_to_be_labelled_teach_nothing() -> None:
    label = torch.zeros(2, 2, 4, 4, dtype=torch.int64)
    label[0, 0, 0, 0] = 1
    batch = Batch(torch.zeros(2, 1, 2, 4, 4), label, ["labelled", "blank"], 0)
    logits = torch.randn(2, 2, 2, 4, 4)
    usual = hook_of().lesson(torch.nn.Identity(), logits, batch)
    assert torch.equal(usual.label, label)
    spared = hook_of(skips_empty=True)
    lesson = spared.lesson(torch.nn.Identity(), logits, batch)
    assert torch.equal(lesson.label[0], label[0])
    assert (lesson.label[1] == IGNORE).all()
    assert torch.equal(batch.label, label), "the batch is left as it was"
    losses = spared.loss(torch.nn.Identity(), logits, lesson, batch)
    assert losses[1] == 0 < losses[0]
    assert lesson.weights.tolist() == [1, 1]
