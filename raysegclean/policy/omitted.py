"""Structures that a label lacks, though the networks see them: a pure function of the scores.

A class that is absent from a case may be absent from the patient, or lie outside the image; then
networks that know the class predict little or nothing of it. Where they predict as much of it as
other cases have, it was forgotten.
"""

from collections.abc import Sequence

import numpy as np

from raysegclean.evidence.case_scores import ClassScore
from raysegclean.evidence.robust import Values
from raysegclean.policy.contour_offsets import Flags
from raysegclean.policy.params import PolicyParams

__all__ = ["elsewhere", "forgotten", "usual_sizes"]


def forgotten(scores: Sequence[ClassScore], params: PolicyParams) -> Flags:
    """Return which cases have no voxel of a class, though the networks see it at its usual size.

    Usual are the sizes in voxels between the quantiles `usual_quantile` and 1 less it of the
    cases that have the class, and `size_slack` times less and more. No case, where fewer than
    `min_cases` have the class, or where more than `max_flagged` of all would be flagged.
    """
    given, predicted = _sizes(scores)
    least, most = usual_sizes(given, params)
    found = (given == 0) & (predicted >= least) & (predicted <= most)
    return found if found.sum() <= params.max_flagged * len(scores) else np.zeros_like(found)


def elsewhere(scores: Sequence[ClassScore], params: PolicyParams) -> Flags:
    """Return which cases have no voxel of a class near where the networks see it.

    A speck, less than any usual size, in a case without the class is none; the same bounds as
    for `forgotten` keep the flags from telling of most cases, or of few examples.
    """
    given, predicted = _sizes(scores)
    least, _ = usual_sizes(given, params)
    seen = np.array([score.boundary_vox >= params.min_boundary_vox for score in scores], np.bool_)
    far = seen & np.isnan([score.offset_vox for score in scores])
    found = far & ((given > 0) | (predicted >= least)) & np.isfinite(least)
    return found if found.sum() <= params.max_flagged * len(scores) else np.zeros_like(found)


def _sizes(scores: Sequence[ClassScore]) -> tuple[Values, Values]:
    given, predicted = ([s.given_vox for s in scores], [s.predicted_vox for s in scores])
    return np.array(given, np.float64), np.array(predicted, np.float64)


def usual_sizes(given: Values, params: PolicyParams) -> tuple[float, float]:
    """Return the least and the largest usual size, with slack; infinite where it is not known."""
    has = given > 0
    if has.sum() < params.min_cases:
        return float("inf"), float("inf")
    ends = params.usual_quantile, 1 - params.usual_quantile
    least, most = np.quantile(given[has], ends)
    return float(least) / params.size_slack, float(most) * params.size_slack
