"""Robust statistics: planted clusters are found, whatever the order and the outliers."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.mixture import GaussianMixture

from raysegclean.evidence.robust import fit_mixture, known_median, mode, robust_sd, thinned

finite = st.floats(-50, 50).map(lambda v: round(v, 3))


KERNEL_VOX = 0.2


def density(values, at):
    """Parzen's estimate, up to a factor, written with lists."""
    return sum(math.exp(-(((value - at) / KERNEL_VOX) ** 2) / 2) for value in values)


@settings(max_examples=60, deadline=None)
@given(st.lists(finite, min_size=1, max_size=40))
def test_the_mode_is_where_the_kernels_pile_up_in_any_order(values):
    got = mode(np.array(values), KERNEL_VOX)
    assert density(values, got) >= max(density(values, v) for v in values) - 1e-9
    assert got == mode(np.array(values[::-1]), KERNEL_VOX)


def test_a_tight_heap_of_wrong_cases_is_not_the_mode():
    values = np.r_[
        np.linspace(-0.2, 0.3, 20), np.linspace(1.0, 1.05, 10), np.linspace(-1.2, -0.5, 10)
    ]
    assert mode(values, KERNEL_VOX) == pytest.approx(0.05, abs=0.1)


def test_many_values_are_thinned_evenly():
    values = np.random.default_rng(3).normal(0.4, 0.3, 50_000)
    assert mode(values, KERNEL_VOX) == pytest.approx(0.4, abs=0.1)
    assert thinned(np.arange(10.0), 4).tolist() == [0.0, 3.0, 6.0, 9.0]
    assert thinned(np.array([2.0, np.nan, 1.0]), 4).tolist() == [1.0, 2.0]


def test_the_mode_sits_in_the_tight_half_when_the_other_half_is_off():
    rng = np.random.default_rng(0)
    values = np.r_[rng.normal(0.3, 0.1, 52), rng.normal(1.4, 0.3, 24), rng.normal(-0.9, 0.3, 24)]
    found = mode(values, KERNEL_VOX)
    assert found == pytest.approx(0.3, abs=0.1)
    assert robust_sd(values, found, within=0.5) == pytest.approx(0.1, abs=0.05)


def test_values_that_are_not_finite_are_left_out():
    assert mode(np.array([np.nan, 2.0, np.inf]), KERNEL_VOX) == 2.0
    assert np.isnan(mode(np.array([np.nan]), KERNEL_VOX))
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


@pytest.mark.filterwarnings("ignore:All-NaN")
@given(st.integers(0, 2**32 - 1), st.sampled_from([(1, 4, 3), (6, 5, 3), (7, 1, 3)]))
def test_medians_of_what_is_known_are_numpys(seed, shape):
    rng = np.random.default_rng(seed)
    values = np.where(rng.random(shape) < 0.3, np.nan, rng.normal(size=shape))
    for axis in (0, 1):
        np.testing.assert_array_equal(known_median(values, axis), np.nanmedian(values, axis=axis))
