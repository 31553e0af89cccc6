"""Intervals of a paired comparison, resampled by patient."""

import numpy as np
import pytest
from bootstrap import difference, paired_bootstrap

from raysegclean.errors import InputError


def test_the_bootstrap_is_seeded_and_covers_a_clear_gain():
    rng = np.random.default_rng(0)
    before = rng.uniform(0.6, 0.8, 60)
    after = before + 0.5 * (1 - before) + rng.normal(0, 0.02, 60)
    patients = [f"p{i // 2}" for i in range(60)]
    interval = paired_bootstrap(before, after, patients, seed=4)
    assert interval == paired_bootstrap(before, after, patients, seed=4)
    assert interval.low < interval.value < interval.high
    assert interval.value == pytest.approx(0.5, abs=0.05)
    assert interval.high - interval.low < 0.1


def test_cases_of_one_patient_are_drawn_together():
    before, after = np.zeros(100), np.repeat([0.0, 1.0], 50)
    by_case = paired_bootstrap(before, after, [str(i) for i in range(100)], statistic=difference)
    two = ["a"] * 50 + ["b"] * 50
    by_patient = paired_bootstrap(before, after, two, statistic=difference)
    assert by_case.high - by_case.low < 0.25
    assert (by_patient.low, by_patient.high) == (0.0, 1.0)


def test_an_unequal_number_of_cases_per_patient_weighs_by_case():
    interval = paired_bootstrap([0, 0, 0], [1, 1, 0], ["a", "a", "b"], statistic=difference)
    assert interval.value == pytest.approx(2 / 3)


def test_a_bootstrap_without_patients_is_refused():
    with pytest.raises(InputError, match="one patient per case"):
        paired_bootstrap([0.5, 0.6], [0.6, 0.7], ["a"])
