"""Which cases stand out from the archive, by which evidence: a pure function of their scores.

Beside roughness (`policy.contour_roughness`), three kinds of evidence, from the strongest to the
weakest:

- the mean offset of the boundary against the archive's central offset;
- the rate of candidates of one kind (added, removed) per voxel of boundary: an outline that was
  cut off lacks voxels, whatever the average offset is;
- the corruption score (cross-entropy of the given label), which sees errors of any kind but
  mistakes hard cases for noisy ones: of 49 hippocampus cases that it set apart 16 were right, so
  it changes no voxel.

The second and third form two groups only where a mixture of two normal components is clearly
better than one, is well separated, and its upper group also fits the networks worse as a whole.
Without that last test an archive of half cut-off and half right outlines would be read as half
right and half too large.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raysegclean.evidence.case_scores import FOREGROUND, CaseScore, ClassScore, Kind, of_key
from raysegclean.evidence.robust import Values, fit_mixture, median_and_sd
from raysegclean.policy.contour_offsets import Flags, effect
from raysegclean.policy.folds import fold_levels, less_fold_levels
from raysegclean.policy.params import PolicyParams

__all__ = [
    "CORRUPTION",
    "ROUGHNESS",
    "Group",
    "excess_threshold",
    "find_groups",
    "is_learnt",
    "level_folds",
    "upper_group",
]


CORRUPTION, ROUGHNESS = "corruption", "roughness"
"""Names of the evidence beside the kinds of candidates."""

_HALF = 0.5
"""Definition: the quantile that is the middle."""


@dataclass(frozen=True)
class Group:
    """Cases that stand out together, by one kind of evidence on one class (or the foreground)."""

    key: int
    evidence: str
    """A `Kind`, `CORRUPTION` or `ROUGHNESS`."""
    members: Flags
    posterior: Values
    strength: float
    """BIC gain of the mixture that found it."""


def find_groups(
    scores: Sequence[CaseScore], explained: Mapping[int, Flags], params: PolicyParams
) -> list[Group]:
    """Return the noisy groups of each key among the cases that are not `explained` for it.

    The foreground as a whole comes first, because its evidence is pooled; then each class among
    the cases that are left. After each group its members are taken out and the rest is looked at
    again, because what one group does to the archive's spread hides, or feigns, another.
    """
    groups: list[Group] = []
    for key in sorted(explained, key=lambda one: one != FOREGROUND):
        left = ~explained[key]
        for group in groups:
            if group.key == FOREGROUND:
                left = left & ~group.members
        groups += _groups_of(scores, key, left, params)
    return groups


def _groups_of(
    scores: Sequence[CaseScore], key: int, left: Flags, params: PolicyParams
) -> list[Group]:
    """Return the groups of one key, the strongest first."""
    mine = of_key(scores, key)
    rates = {k.value: _log_rates(mine, k, params) for k in (Kind.ADDED, Kind.REMOVED)}
    rates = {name: level_folds(values, scores, params) for name, values in rates.items()}
    corruption = {CORRUPTION: np.array([s.log_corruption for s in mine])}
    groups: list[Group] = []
    while len(groups) < params.max_groups:
        found = _upper_groups(key, rates, mine, left, params)
        if not found and key == FOREGROUND:
            found = _upper_groups(key, corruption, mine, left, params)
        if not found:
            break
        groups.append(max(found, key=lambda g: (g.strength, g.evidence)))
        left = left & ~groups[-1].members
    return groups


def _upper_groups(
    key: int,
    evidence: Mapping[str, Values],
    scores: Sequence[ClassScore],
    left: Flags,
    params: PolicyParams,
) -> list[Group]:
    found = [upper_group(key, name, v, scores, left, params) for name, v in evidence.items()]
    return [group for group in found if group is not None]


def _log_rates(scores: Sequence[ClassScore], kind: Kind, params: PolicyParams) -> Values:
    """Return the log of the candidates of a kind per boundary voxel; NaN where unknown."""
    out = np.full(len(scores), np.nan)
    for row, score in enumerate(scores):
        counts = score.candidates.get(kind)
        if counts is not None and score.boundary_vox >= params.min_boundary_vox:
            out[row] = np.log((int(counts[1:].sum()) + 1) / score.boundary_vox)
    return out


def level_folds(values: Values, scores: Sequence[CaseScore], params: PolicyParams) -> Values:
    """Return logs of rates, or of roughness, less what the networks of their folds differ by."""
    levels = fold_levels(values, scores, params.min_fold_bias_log, params)
    return less_fold_levels(values, scores, levels)


def upper_group(
    key: int,
    evidence: str,
    values: Values,
    scores: Sequence[ClassScore],
    left: Flags,
    params: PolicyParams,
) -> Group | None:
    """Return the cases out of `left` that stand out upwards by `values`, if they are a group."""
    usable = left & np.isfinite(values)
    if usable.sum() < params.min_group_cases:
        return None
    mixture = fit_mixture(values[usable])
    if (
        mixture is None
        or mixture.bic_gain < params.min_bic_gain
        or mixture.separation < params.min_separation
    ):
        return None
    posterior = np.where(usable, mixture.posterior(values), 0.0)
    likely = posterior > params.posterior
    odd = _odd(scores, likely, params)
    members = likely & ~odd
    if not 0 < members.sum() <= params.max_flagged * usable.sum():
        return None
    corruption = np.array([s.log_corruption for s in scores])
    if effect(corruption[members], corruption[usable & ~members & ~odd]) < params.min_corruption:
        return None
    return Group(key, evidence, members, posterior, mixture.bic_gain)


def _odd(scores: Sequence[ClassScore], near: Flags, params: PolicyParams) -> Flags:
    """Return the cases in which label and networks differ by far more places than usual.

    Usual in the archive, and in `near` if that has cases enough to tell: where all outlines of a
    group wander, none is odd.
    """
    spread = np.array([s.spread_vox for s in scores])
    known = np.isfinite(spread)
    if known.sum() < params.min_cases:
        return np.zeros(len(scores), bool)
    limit = _usual_limit(spread[known], params)
    if (near & known).sum() >= params.min_cases:
        limit = max(limit, _usual_limit(spread[near & known], params))
    return np.asarray(known & (spread > limit), np.bool_)


def _usual_limit(spread: Values, params: PolicyParams) -> float:
    centre, sd = median_and_sd(spread)
    return centre + params.odd_sds * sd


def is_learnt(
    scores: Sequence[ClassScore], trusted: Sequence[ClassScore], params: PolicyParams
) -> bool:
    """Tell whether the networks agree well enough with most labels of a class to judge them.

    Trusted labels decide where enough of them hold the class. Cases whose label lacks it have no
    say: that is an error of its own kind, and they may be many.
    """
    given, right = ([s.agreement for s in part if s.given_vox] for part in (scores, trusted))
    known = right if len(right) >= params.min_trusted else given
    if not known:
        return True
    lower, middle = np.quantile(known, (params.lower_quantile, _HALF))
    return bool(lower >= params.min_lower_agreement and middle >= params.min_agreement)


def excess_threshold(noisy: Values, reference: Values, harm_weight: float) -> float:
    """Return the confidence from which replacing repairs more voxels than it harms; 1 if none.

    In clean cases every candidate is a mistake of the networks; their rate `reference` (expected
    counts by level in as much clean boundary as the noisy cases have) is what mistakes there are
    in noisy cases too. What the noisy cases have beyond it are errors of the label. Above a
    threshold, sum(noisy - reference) voxels are repaired and sum(reference) harmed; the threshold
    maximises repaired - harm_weight x harmed. Level 0 is never used.
    """
    net = noisy - (1.0 + harm_weight) * reference
    net[0] = 0.0
    gain = net[::-1].cumsum()[::-1]
    best = int(gain[1:].argmax()) + 1
    return best / len(net) if gain[best] > 0 else 1.0
