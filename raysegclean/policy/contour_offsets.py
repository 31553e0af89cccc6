"""How far each outline lies off the centre of the archive: pure functions of the scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from raysegclean.evidence.case_scores import CaseScore, ClassScore, of_key
from raysegclean.evidence.robust import Values, mode, robust_sd
from raysegclean.policy.folds import fold_levels, less_fold_levels
from raysegclean.policy.params import LEAST_SHIFT_VOX, PolicyParams

__all__ = ["Flags", "Offsets", "centre_of", "effect", "offsets_of", "spread_of", "usual_limit"]

Flags = NDArray[np.bool_]


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
        values, known = offsets_of(scores, key, params, trusted=trusted)
        known = known[np.isfinite(known)]
        spread = np.array([s.spread_vox for s in of_key(scores, key)])
        least = np.where(np.isfinite(spread), params.min_effect * spread, 0.0)
        everywhere = np.ones(len(scores), bool)
        if known.size >= params.min_trusted:
            centre = float(np.median(known))
            limit = _movable(usual_limit(values, centre, params), params)
            return cls(values - centre, limit, everywhere, least)
        measured = np.isfinite(values).sum()
        if measured >= params.min_cases:
            centre = centre_of(values, params)
            limit = usual_limit(values, centre, params)
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


def centre_of(offsets: Values, params: PolicyParams) -> float:
    """Return where most outlines of the archive lie, in voxels; NaN when none was measured."""
    return mode(offsets, params.offset_error_vox)


def spread_of(offsets: Values, centre: float, params: PolicyParams) -> float:
    """Return the robust sd of the offsets near the centre, at least the error of one."""
    sd = robust_sd(offsets, centre, within=params.offset_near_vox)
    return max(sd, params.offset_error_vox) if isfinite(sd) else params.offset_error_vox


def usual_limit(offsets: Values, centre: float, params: PolicyParams) -> float:
    """Return how far off the centre an outline may lie by chance."""
    return params.offset_sds * spread_of(offsets, centre, params)


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
    scores: Sequence[CaseScore],
    key: int,
    params: PolicyParams,
    *,
    usable: Flags | None = None,
    trusted: Sequence[CaseScore] = (),
) -> tuple[Values, Values]:
    """Return the offset of each outline, less what the networks of its fold differ by.

    Of the `usable` given labels, NaN for the others and where too little was measured; and of the
    trusted ones, which are compared with the same networks.
    """
    values, known = (_measured(part, key, params) for part in (scores, trusted))
    values = values if usable is None else np.where(usable, values, np.nan)
    levels = fold_levels(values, scores, params.min_fold_bias_vox, params)
    return less_fold_levels(values, scores, levels), less_fold_levels(known, trusted, levels)


def _measured(scores: Sequence[CaseScore], key: int, params: PolicyParams) -> Values:
    enough = params.min_boundary_vox
    parts = of_key(scores, key)
    found = [s.offset_vox if s.boundary_vox >= enough else np.nan for s in parts]
    return np.array(found, dtype=np.float64)


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
