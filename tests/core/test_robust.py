"""Robust statistics: planted clusters are found, whatever the order and the outliers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.mixture import GaussianMixture

from raysegclean.core.robust import fit_mixture, half_sample_mode, robust_sd

finite = st.floats(-50, 50).map(lambda v: round(v, 3))


def brute_mode(values):
    """The definition of POLICY 6, written with lists."""
    kept = sorted(values)
    while len(kept) > 3:
        size = -(-len(kept) // 2)
        halves = [kept[i : i + size] for i in range(len(kept) - size + 1)]
        kept = min(halves, key=lambda half: half[-1] - half[0])
    if len(kept) == 3:
        low, high = kept[1] - kept[0], kept[2] - kept[1]
        kept = kept if low == high else kept[:2] if low < high else kept[1:]
    return sum(kept) / len(kept)


@settings(max_examples=60, deadline=None)
@given(st.lists(finite, min_size=1, max_size=40))
def test_the_mode_is_its_definition_in_any_order(values):
    got = half_sample_mode(np.array(values))
    assert got == pytest.approx(brute_mode(values))
    assert got == half_sample_mode(np.array(values[::-1]))


def test_the_mode_sits_in_the_tight_half_when_the_other_half_is_off():
    rng = np.random.default_rng(0)
    values = np.r_[rng.normal(0.3, 0.1, 52), rng.normal(1.4, 0.3, 24), rng.normal(-0.9, 0.3, 24)]
    mode = half_sample_mode(values)
    assert mode == pytest.approx(0.3, abs=0.1)
    assert robust_sd(values, mode, within=0.5) == pytest.approx(0.1, abs=0.05)


def test_values_that_are_not_finite_are_left_out():
    assert half_sample_mode(np.array([np.nan, 2.0, np.inf])) == 2.0
    assert np.isnan(half_sample_mode(np.array([np.nan])))
    assert np.isnan(robust_sd(np.array([5.0]), 0.0, within=0.5))


def test_two_planted_clusters_are_found_and_agree_with_scikit_learn():
    rng = np.random.default_rng(1)
    values = np.r_[rng.normal(-2, 0.2, 70), rng.normal(-0.5, 0.4, 30)]
    mixture = fit_mixture(values)
    assert mixture is not None and mixture.bic_gain > 0 and mixture.separation > 2
    reference = GaussianMixture(2, random_state=0).fit(values[:, None])
    np.testing.assert_allclose(sorted(reference.means_.ravel()), mixture.means, atol=0.02)
    np.testing.assert_allclose(
        2 * np.log(100)
        - 2 * GaussianMixture(1).fit(values[:, None]).score(values[:, None]) * 100
        - reference.bic(values[:, None]),
        mixture.bic_gain,
        atol=0.5,
    )
    assert (mixture.posterior(values[:70]) < 0.5).mean() > 0.97
    assert (mixture.posterior(values[70:]) > 0.5).mean() > 0.9


def test_one_cluster_is_left_as_one():
    gains = []
    for seed in range(20):
        mixture = fit_mixture(np.random.default_rng(seed).normal(-2, 0.3, 100))
        gains.append(mixture is not None and mixture.bic_gain > 0)
    assert np.mean(gains) <= 0.1


@pytest.mark.parametrize(("lower_sd", "upper_sd"), [(0.05, 1.0), (1.0, 0.05), (0.3, 0.3)])
def test_the_posterior_never_falls_as_the_score_rises(lower_sd, upper_sd):
    rng = np.random.default_rng(2)
    mixture = fit_mixture(np.r_[rng.normal(0, lower_sd, 80), rng.normal(2.4, upper_sd, 40)])
    assert mixture is not None
    posterior = mixture.posterior(np.linspace(-5, 5, 400))
    assert (np.diff(posterior) >= 0).all() and posterior[0] == 0 and posterior[-1] > 0.99


@settings(max_examples=30, deadline=None)
@given(st.lists(finite, min_size=0, max_size=30), st.integers(0, 100))
def test_a_mixture_never_depends_on_the_order_and_never_fails(values, seed):
    array = np.array(values, dtype=float)
    shuffled = np.random.default_rng(seed).permutation(array)
    assert fit_mixture(array) == fit_mixture(shuffled)


@pytest.mark.parametrize("values", [[], [1.0, 2.0, 3.0], [4.0] * 50, [np.nan] * 9])
def test_too_few_or_equal_values_have_no_mixture(values):
    assert fit_mixture(np.array(values, dtype=float)) is None
