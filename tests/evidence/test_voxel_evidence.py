"""Evidence: two running sums hold any number of passes (Kwon et al. 2018)."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegclean.errors import InputError
from raysegclean.evidence.voxel_evidence import EvidenceSum, quantise, threshold_level


def _passes(seed: int, count: int, classes: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, classes, 3, 4, 5, generator=generator)
    return torch.softmax(logits.double(), dim=1)


def _summed(passes: torch.Tensor) -> EvidenceSum:
    sums = EvidenceSum()
    for prob_czyx in passes:
        sums.add(prob_czyx)
    return sums


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 6), st.integers(2, 5))
def test_the_two_terms_add_up_to_the_diagonal_of_the_mean(
    seed: int, count: int, classes: int
) -> None:
    passes = _passes(seed, count, classes)
    found = _summed(passes).finish(np.zeros((3, 4, 5), np.uint8))
    mean = passes.mean(dim=0).numpy()
    diagonal = (mean - mean**2).sum(axis=0) / 2
    assert found.aleatoric_zyx + found.epistemic_zyx == pytest.approx(diagonal, abs=1e-6)


def test_of_two_classes_the_parts_are_the_mean_of_p_times_q_and_the_variance_of_p() -> None:
    passes = _passes(3, 7, 2)
    found = _summed(passes).finish(np.zeros((3, 4, 5), np.uint8))
    p = passes[:, 1].numpy()
    assert found.aleatoric_zyx == pytest.approx((p * (1 - p)).mean(axis=0), abs=1e-9)
    assert found.epistemic_zyx == pytest.approx(p.var(axis=0), abs=1e-9)
    assert found.aleatoric_zyx.max() <= 0.25


def test_voters_agree_where_every_pass_has_the_same_winner() -> None:
    passes = _passes(5, 4, 3)
    found = _summed(passes).finish(np.zeros((3, 4, 5), np.uint8))
    winners = passes.argmax(dim=1).numpy()
    assert np.array_equal(found.agree_zyx, (winners == winners[:1]).all(axis=0))


def test_the_probability_of_the_given_label_is_read_at_its_channel() -> None:
    passes = _passes(8, 2, 4)
    given_zyx = np.random.default_rng(0).integers(0, 4, (3, 4, 5)).astype(np.uint8)
    found = _summed(passes).finish(given_zyx)
    mean = passes.mean(dim=0).numpy()
    expected = np.take_along_axis(mean, given_zyx[None].astype(np.int64), axis=0)[0]
    assert found.given_prob_zyx == pytest.approx(expected, abs=1e-12)


def test_an_answer_that_is_no_number_is_refused_and_not_taken_for_background() -> None:
    passes = _passes(5, 2, 3)
    passes[1, :, 2, 3, 4] = torch.nan
    with pytest.raises(InputError, match=r"not finite.*intensities.*train\.lr"):
        _summed(passes).finish(np.zeros((3, 4, 5), np.uint8))


def test_evidence_without_a_pass_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match="add"):
        EvidenceSum().mean_czyx()


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_threshold_on_levels_never_accepts_a_probability_below_it(p: float, t: float) -> None:
    if quantise(np.array([p]))[0] >= threshold_level(t):
        assert p >= t - 1e-9 or t > 255 / 256
