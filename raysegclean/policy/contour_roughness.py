"""Cases whose outline is rougher than the others': a pure function of the scores.

Networks err slowly along an outline, and in noisy and clean cases alike. What an outline differs
by from voxel to voxel is therefore mostly the label's own, and says more surely than any offset or
count of candidates whether it was drawn like the others: outlines that wander, were clicked with a
few points or were cut off are rough, hard cases are not. An outline that is wider or narrower as a
whole is as rough as before, so these cases are looked for first, and take no part in the search for
two ways of drawing (`policy.annotator_styles`).

Not guaranteed: that rough is wrong. Where some cases have a finer outline than the rest, by a hand
or an image of its own, and the networks do not follow it, they look the same.
"""

from collections.abc import Sequence

import numpy as np

from raysegclean.evidence.case_scores import FOREGROUND, CaseScore, ClassScore, of_key
from raysegclean.evidence.robust import Values
from raysegclean.policy.outlier_cases import ROUGHNESS, Group, level_folds, upper_group
from raysegclean.policy.params import PolicyParams

__all__ = ["rough_groups"]


def rough_groups(
    scores: Sequence[CaseScore], keys: Sequence[int], params: PolicyParams
) -> list[Group]:
    """Return the groups of rough cases: of the foreground, then of each class among its others.

    Their log roughness must lie `min_rough_separation` (Ashman's D) and `min_roughness` above that
    of the others; for the rest they are noisy groups like any (`outlier_cases.find_groups`).
    """
    stricter = {"min_separation": params.min_rough_separation, "posterior": params.rough_posterior}
    strict = params.model_copy(update=stricter)
    left = np.ones(len(scores), bool)
    found = []
    for key in sorted(keys, key=lambda one: one != FOREGROUND):
        mine = of_key(scores, key)
        rough = level_folds(_log_roughness(mine, params), scores, params)
        group = upper_group(key, ROUGHNESS, rough, mine, left, strict)
        if group is None:
            continue
        others = left & ~group.members & np.isfinite(rough)
        gap = np.median(rough[group.members]) - np.median(rough[others])
        if gap >= params.min_roughness:
            found.append(group)
            if key == FOREGROUND:
                left = left & ~group.members
    return found


def _log_roughness(scores: Sequence[ClassScore], params: PolicyParams) -> Values:
    known = [s.boundary_vox >= params.min_boundary_vox and s.roughness_vox > 0 for s in scores]
    rough = np.array([s.roughness_vox for s in scores], np.float64)
    found: Values = np.full(len(scores), np.nan)
    return np.log(rough, out=found, where=np.array(known, np.bool_))
