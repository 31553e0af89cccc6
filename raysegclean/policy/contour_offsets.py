"""How far each outline lies off the centre of the archive: pure functions of the scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from raysegclean.evidence.case_scores import CaseScore, ClassScore, of_key
from raysegclean.policy.params import LEAST_SHIFT_VOX, PolicyParams
from raysegclean.policy.robust import Values, offset_mode, robust_sd, thinned

__all__ = ["Flags", "Offsets", "effect", "large_folds", "offsets_of"]

Flags = NDArray[np.bool_]
_MOST_COMPARED = 500
"""Cost: of larger folds so many cases are compared, at even ranks."""


@dataclass(frozen=True)
class Offsets:
    """Offsets of one class, or of the foreground, over the archive, made relative."""

    from_centre: Values
    """NaN where too few boundary voxels were measured, or the centre is not known."""
    limit: float
    """Beyond this a case stands out."""
    believed: Flags
    """False for cases on a side that fits the networks no worse than the centre does: there the
    centre, not the side, may be what is wrong."""
    least: Values
    """How far off a case must be for its offset to be one of the whole outline."""

    @classmethod
    def measure(
        cls,
        scores: Sequence[CaseScore],
        trusted: Sequence[CaseScore],
        key: int,
        params: PolicyParams,
    ) -> "Offsets":
        """Measure against the trusted labels' median where there are enough, else the mode."""
        bias = _fold_biases(scores, key, params)
        values, known = (_offsets(part, key, bias, params) for part in (scores, trusted))
        known = known[np.isfinite(known)]
        spread = np.array([s.spread_vox for s in of_key(scores, key)])
        least = np.where(np.isfinite(spread), params.min_effect * spread, 0.0)
        everywhere = np.ones(len(scores), bool)
        if known.size >= params.min_trusted:
            centre = float(np.median(known))
            limit = _movable(_limit(values, centre, params), params)
            return cls(values - centre, limit, everywhere, least)
        measured = np.isfinite(values).sum()
        if measured >= params.min_cases:
            centre = offset_mode(values, params.offset_error_vox)
            limit = _limit(values, centre, params)
            believed = _worse_sides(values - centre, limit, of_key(scores, key), params)
            found = cls(values - centre, _movable(limit, params), believed, least)
            if found.flags().sum() <= params.max_flagged * measured:
                return found
        return cls(np.full(len(scores), np.nan), float("inf"), everywhere, least)

    def flags(self, strictness: float = 1.0) -> Flags:
        """Return which cases lie beyond `strictness` times the limit, with their whole outline."""
        far = np.abs(self.from_centre)
        whole = far >= strictness * self.least
        return self.believed & whole & (far > strictness * self.limit)

    def moved(self, min_share: float, strictness: float = 1.0) -> Flags:
        """Return the flagged cases where they are many enough to be a way of drawing, else none."""
        flags = self.flags(strictness)
        known = np.isfinite(self.from_centre).sum()
        return flags if flags.sum() >= min_share * known else np.zeros_like(flags)


def _limit(values: Values, centre: float, params: PolicyParams) -> float:
    sd = robust_sd(values, centre, within=params.offset_near_vox)
    return max(params.offset_floor_vox, params.offset_sds * sd if isfinite(sd) else 0.0)


def _movable(limit: float, params: PolicyParams) -> float:
    """Return the limit, but no less than what moves a voxel: half of one after the gain."""
    return max(limit, LEAST_SHIFT_VOX / params.shift_gain)


def _worse_sides(
    from_centre: Values, limit: float, scores: Sequence[ClassScore], params: PolicyParams
) -> Flags:
    corruption = np.array([s.log_corruption for s in scores])
    others = corruption[np.abs(from_centre) <= limit]
    believed = np.ones(len(scores), bool)
    for side in (from_centre > limit, from_centre < -limit):
        if effect(corruption[side], others) < params.min_corruption:
            believed &= ~side
    return believed


def offsets_of(
    scores: Sequence[CaseScore], key: int, usable: Flags, params: PolicyParams
) -> Values:
    """Return each usable case's offset, less the mean of its fold where folds are large enough.

    Networks of one fold may draw wider than those of another; that is no way of drawing labels.
    NaN for the other cases.
    """
    values = np.where(usable, _offsets(scores, key, {}, params), np.nan)
    means = {f: float(part.mean()) for f, part in large_folds(values, scores, params).items()}
    return np.asarray(values - [means.get(score.fold, 0.0) for score in scores], np.float64)


def _offsets(
    scores: Sequence[CaseScore], key: int, bias: Mapping[int, float], params: PolicyParams
) -> Values:
    return np.array(
        [
            mine.offset_vox - bias.get(score.fold, 0.0)
            if mine.boundary_vox >= params.min_boundary_vox
            else np.nan
            for score, mine in zip(scores, of_key(scores, key), strict=True)
        ],
        dtype=np.float64,
    )


def _fold_biases(scores: Sequence[CaseScore], key: int, params: PolicyParams) -> dict[int, float]:
    """Return how far each fold's offsets lie beyond the first's; nothing where by little.

    That is the mode of the differences between their cases: pairs with the same error pile up
    there. The mode of a fold by itself may be that of its wrong cases.
    """
    parts = large_folds(_offsets(scores, key, {}, params), scores, params)
    if not parts:
        return {}
    first, *others = sorted(parts)
    biases = {first: 0.0}
    biases |= {fold: _mode_of_differences(parts[fold], parts[first], params) for fold in others}
    differ = max(biases.values()) - min(biases.values()) > params.min_fold_bias_vox
    return biases if differ else {}


def _mode_of_differences(values: Values, others: Values, params: PolicyParams) -> float:
    pairs = np.subtract.outer(thinned(values, _MOST_COMPARED), thinned(others, _MOST_COMPARED))
    return offset_mode(pairs, params.offset_error_vox)


def large_folds(
    values: Values, scores: Sequence[CaseScore], params: PolicyParams
) -> dict[int, Values]:
    """Return the measured values of each fold; nothing where one of them is small."""
    folds = np.array([s.fold for s in scores])
    parts = {int(f): values[(folds == f) & np.isfinite(values)] for f in np.unique(folds)}
    return parts if all(part.size >= params.min_fold_cases for part in parts.values()) else {}


def effect(group: Values, others: Values) -> float:
    """Return how many sds the group's mean lies above that of the others (Cohen's d)."""
    group, others = group[np.isfinite(group)], others[np.isfinite(others)]
    if not group.size or not others.size:
        return 0.0
    sd = float(
        np.sqrt(
            (group.var() * group.size + others.var() * others.size) / (group.size + others.size)
        )
    )
    return float(group.mean() - others.mean()) / max(sd, 1e-9)
