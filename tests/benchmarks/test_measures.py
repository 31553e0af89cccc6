"""The figures of the tables agree with figures worked by hand."""

import math

import pytest
from bootstrap import error_removed
from measures import clean_summary, recovered_share


def test_error_removed_is_the_share_of_the_missing_dice():
    assert error_removed(0.689, 0.931) == pytest.approx(0.778, abs=1e-3)  # POLICY, boundary noise
    assert error_removed([0.5, 0.5], [0.5, 0.25]).tolist() == [0.0, -0.5]
    assert math.isnan(error_removed(1.0, 0.9))


def test_recovered_share_is_silent_near_the_ceiling():
    assert recovered_share(0.689, 0.931, 0.859) == pytest.approx(1.42, abs=0.01)
    assert math.isnan(recovered_share(0.82, 0.9, 0.859))


def test_clean_cases_are_summed_up_by_mean_worst_and_losers():
    summary = clean_summary([1.0, 0.995, 0.98, 1.0])
    assert (summary.cases, summary.worst, summary.share_losing) == (4, 0.98, 0.25)
    assert summary.mean == pytest.approx(0.99375)
    assert math.isnan(clean_summary([]).mean)
