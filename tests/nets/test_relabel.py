"""Correcting and sieving a batch: voxel by voxel what the rule says."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegclean.evidence.proposals import score_of
from raysegclean.evidence.voxel_evidence import EvidenceSum
from raysegclean.nets.batch import Batch
from raysegclean.nets.relabel import (
    batch_confusion,
    corrected,
    masked_mean,
    passes_sieve,
    present_classes,
)
from raysegclean.voxels.channels import IGNORE

torch.set_num_threads(1)

SHAPE = (2, 3, 4)


def scene(seed: int, classes: int, sharpness: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and labels of two samples; some voxels have no label."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, sharpness, (2, classes, *SHAPE)).astype(np.float32))
    label = torch.from_numpy(rng.integers(0, classes, (2, *SHAPE)))
    label[:, 0, 0, 0] = IGNORE
    return logits, label


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10_000),
    on=st.lists(st.booleans(), min_size=4, max_size=4),
    present=st.lists(st.booleans(), min_size=4, max_size=4),
    tau=st.sampled_from([0.4, 0.7, 0.95]),
)
def test_a_label_changes_where_network_and_both_classes_allow_it(seed, on, present, tau):
    logits, label = scene(seed, 4)
    prob = torch.softmax(logits, dim=1)
    holds = torch.tensor([[True, *present[1:]], [True] * 4])
    new = corrected(prob, label, on=torch.tensor(on), present=holds, tau=tau)
    for sample in range(2):
        expected = label[sample].clone()
        for at in np.ndindex(SHAPE):
            old = int(label[sample][at])
            best = int(prob[(sample, slice(None), *at)].argmax())
            sure = float(prob[(sample, best, *at)]) > tau
            if old == IGNORE or not sure or not holds[sample, best]:
                continue
            if all(c == 0 or on[c] for c in (old, best)):
                expected[at] = best
        if int((expected > 0).sum()) <= int((label[sample] > 0).sum()) / 2:
            expected = label[sample]
        assert torch.equal(new[sample], expected)


def test_a_sample_that_would_lose_half_of_its_foreground_stays_as_given():
    label = torch.tensor([[[[1, 1, 1, 1, 0]]], [[[1, 1, 1, 1, 0]]]])
    prob = torch.zeros(2, 2, 1, 1, 5)
    background = torch.tensor([[1, 1, 0, 0, 1], [1, 0, 0, 0, 1]]).bool()
    prob[:, 0, 0, 0] = background.float()
    prob[:, 1, 0, 0] = (~background).float()
    both = torch.ones(2, 2, dtype=torch.bool)
    new = corrected(prob, label, on=both[0], present=both, tau=0.8)
    assert new[0].flatten().tolist() == [1, 1, 1, 1, 0]
    assert new[1].flatten().tolist() == [0, 1, 1, 1, 0]


def test_classes_are_those_of_the_case_not_of_the_patch():
    label = torch.full((3, 1, 1, 4), IGNORE)
    label[1, ..., :2] = torch.tensor([0, 3])
    batch = Batch(torch.zeros(3, 1, 1, 1, 4), label, ["a", "b", "c"], 0)
    found = present_classes(batch, {"a": (0, 2), "c": (0,)}, 4)
    assert found.int().tolist() == [[1, 0, 1, 0], [1, 0, 0, 1], [1, 0, 0, 0]]


@given(seed=st.integers(0, 10_000))
def test_the_confusion_counts_the_labelled_voxels(seed):
    logits, label = scene(seed, 3)
    predicted = logits.argmax(dim=1)
    counts = batch_confusion(logits, label)
    assert counts.sum() == (label != IGNORE).sum()
    for i, j in np.ndindex(3, 3):
        assert counts[i, j] == ((label == i) & (predicted == j)).sum()


@given(seed=st.integers(0, 10_000), sharpness=st.sampled_from([0.1, 3.0, 40.0]))
def test_with_two_classes_the_sieve_asks_whether_the_prediction_is_the_label(seed, sharpness):
    logits, label = scene(seed, 2, sharpness)
    known = label != IGNORE
    agrees = (logits[:, 1] > logits[:, 0]).long() == label
    assert torch.equal(passes_sieve(logits, label)[known], agrees[known])


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), classes=st.integers(3, 12))
def test_the_sieve_in_training_is_the_sign_of_the_margin_that_is_stored(seed, classes):
    logits, label = scene(seed, classes)
    label = label.clamp(min=0)
    passes = passes_sieve(logits, label)
    for sample in range(2):
        sums = EvidenceSum()
        sums.add(torch.softmax(logits[sample], dim=0))
        given_zyx = label[sample].numpy().astype(np.uint8)
        margin = score_of(sums.finish(given_zyx), given_zyx, "margin")
        clear = np.abs(margin - 0.5) > 1e-5
        np.testing.assert_array_equal(passes[sample].numpy()[clear], (margin > 0.5)[clear])
        np.testing.assert_array_equal(
            margin[given_zyx == logits[sample].argmax(dim=0).numpy()] >= 0.5, True
        )


def test_with_many_classes_confident_disagreement_is_still_sieved_out():
    logits = torch.full((1, 20, 1, 1, 1), -9.0)
    logits[0, 0], logits[0, 5] = 9.0, 0.0
    log_prob = torch.log_softmax(logits, dim=1)
    assert log_prob[0, 5] > log_prob.mean(), "the average over all classes lets it pass"
    assert not passes_sieve(logits, torch.full((1, 1, 1, 1), 5)).any()
    assert passes_sieve(logits, torch.full((1, 1, 1, 1), 0)).all()


@given(seed=st.integers(0, 10_000), level=st.floats(0.05, 0.5))
def test_a_lower_level_drops_what_is_disbelieved_by_as_much(seed, level):
    logits, label = scene(seed, 2)
    prob = torch.softmax(logits.double(), dim=1)
    mine = prob.gather(1, label.clamp(min=0)[:, None])[:, 0]
    margin = 0.5 * (mine.log() - (1 - mine).log())
    clear = (label != IGNORE) & ((torch.sigmoid(margin) - level).abs() > 1e-4) & (mine < 0.499)
    passes = passes_sieve(logits, label, level)
    assert torch.equal(passes[clear], (torch.sigmoid(margin) > level)[clear])


def test_unlabelled_voxels_pass():
    logits, label = scene(0, 3)
    assert passes_sieve(logits, torch.full_like(label, IGNORE)).all()


def test_the_mean_is_over_the_marked_voxels_of_each_sample():
    values = torch.arange(12.0).reshape(2, 1, 2, 3)
    where = values > 8.5
    assert masked_mean(values, where).tolist() == [0.0, pytest.approx(10.0)]
