"""What networks of different folds differ by, which is no error of a label.

A fold's networks may draw wider than another's, or see more candidates. Whatever is measured of a
label against them (offsets, rates, roughness) is made comparable here, in one way.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from raysegclean.evidence.case_scores import CaseScore
from raysegclean.evidence.robust import Values, mode, thinned
from raysegclean.policy.params import PolicyParams

__all__ = ["fold_levels", "less_fold_levels"]

_MOST_COMPARED = 500
"""Cost: of larger folds so many cases are compared, at even ranks."""


def fold_levels(
    values: Values, scores: Sequence[CaseScore], least: float, params: PolicyParams
) -> dict[int, float]:
    """Return how far each fold's values lie beyond the first's; nothing where by up to `least`.

    That is the mode of the differences between their cases: pairs with the same error pile up
    there, whereas the centre of a fold by itself may be that of its wrong cases. `least` is also to
    what such a difference can be known. Nothing where a fold has fewer than `min_fold_cases` finite
    values.
    """
    folds = np.array([score.fold for score in scores])
    parts = {int(f): values[(folds == f) & np.isfinite(values)] for f in np.unique(folds)}
    if any(part.size < params.min_fold_cases for part in parts.values()) or len(parts) < 2:
        return {}
    first, *others = sorted(parts)
    reference = thinned(parts[first], _MOST_COMPARED)
    levels = {first: 0.0}
    for fold in others:
        compared = thinned(parts[fold], _MOST_COMPARED)
        levels[fold] = mode(np.subtract.outer(compared, reference), least)
    return levels if max(levels.values()) - min(levels.values()) > least else {}


def less_fold_levels(
    values: Values, scores: Sequence[CaseScore], levels: Mapping[int, float]
) -> Values:
    """Return the values of all cases as those of the first fold's networks."""
    return np.asarray(values - [levels.get(score.fold, 0.0) for score in scores], np.float64)
