"""Structures that a label lacks, though the networks see them: a pure function of the scores.

A class that is absent from a case may be absent from the patient, or lie outside the image; then
networks that know the class predict little or nothing of it. Where they predict as much of it as
other cases have, it was forgotten.
"""

from collections.abc import Sequence

import numpy as np

from raysegclean.core.casescore import ClassScore
from raysegclean.core.suspects import Flags, PolicyParams

__all__ = ["forgotten"]

_USUAL = (0.05, 0.95)
_SLACK = 2.0


def forgotten(scores: Sequence[ClassScore], params: PolicyParams) -> Flags:
    """Return which cases have no voxel of a class, though the networks see it at its usual size.

    Usual are the sizes in voxels between the quantiles .05 and .95 of the cases that have the
    class, and half and twice of these. No case, where fewer than `min_cases` have the class, or
    where more than `max_flagged` of all would be flagged.
    """
    given = np.array([score.given_vox for score in scores])
    predicted = np.array([score.predicted_vox for score in scores])
    has = given > 0
    if has.sum() < params.min_cases:
        return np.zeros(len(scores), bool)
    least, most = np.quantile(given[has], _USUAL)
    found = ~has & (predicted >= least / _SLACK) & (predicted <= most * _SLACK)
    return found if found.sum() <= params.max_flagged * len(scores) else np.zeros_like(found)
