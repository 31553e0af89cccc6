"""What networks of different folds differ by is taken out, and errors of labels stay in."""

import numpy as np
import pytest

from raysegclean.evidence.case_scores import CaseScore, ClassScore
from raysegclean.policy.folds import fold_levels, less_fold_levels
from raysegclean.policy.params import PolicyParams

PARAMS = PolicyParams()


def cases(folds: list[int]) -> list[CaseScore]:
    nothing = ClassScore(0.0, 100, 1.0, 10, 10, 10, 10)
    return [CaseScore(f"c{n:03}", nothing, {1: nothing}, fold) for n, fold in enumerate(folds)]


def test_a_fold_whose_networks_draw_wider_is_levelled_though_half_of_another_is_wrong() -> None:
    rng = np.random.default_rng(0)
    folds = [0] * 40 + [1] * 40
    values = rng.normal(0, 0.1, 80) + 0.6 * np.array(folds)
    values[:20] += 1.5
    levels = fold_levels(values, cases(folds), 0.25, PARAMS)
    assert levels == pytest.approx({0: 0.0, 1: 0.6}, abs=0.1)
    left = less_fold_levels(values, cases(folds), levels)
    assert np.median(left[20:40]) == pytest.approx(np.median(left[40:]), abs=0.1)
    assert np.median(left[:20]) == pytest.approx(1.5, abs=0.1)


def test_a_small_difference_or_a_small_fold_is_left_as_it_is() -> None:
    rng = np.random.default_rng(1)
    values = np.r_[rng.normal(0, 0.1, 30), rng.normal(0.15, 0.1, 30)]
    assert fold_levels(values, cases([0] * 30 + [1] * 30), 0.25, PARAMS) == {}
    values[30:] += 1.0
    values[30:42] = np.nan
    assert fold_levels(values, cases([0] * 30 + [1] * 30), 0.25, PARAMS) == {}
    assert fold_levels(values[:30], cases([0] * 30), 0.25, PARAMS) == {}
