"""Two ways of drawing one archive: a pure function of the scores.

Where the offsets of the boundary form two clearly separate heaps, two people, or two programs, drew
the outlines, each consistently. Networks trained on both learn something in between, so that the
archive's central offset lies in one heap or the other by chance. The heap whose labels the
networks find clearly less likely is taken for the wrong one, and moved onto the other as a whole:
the distance between the heaps is known better than the offset of a single case. A small difference
says nothing, for right outlines have been seen to fit a little worse than wrong ones. There neither
is moved, because the right heap would be lost as a whole. Trusted cases, even one, do say which is
right.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from raysegclean.evidence.case_scores import FOREGROUND, CaseScore, ClassScore, classes_of, of_key
from raysegclean.evidence.robust import Values, fit_mixture
from raysegclean.policy.contour_offsets import Flags, effect, offsets_of
from raysegclean.policy.params import LEAST_SHIFT_VOX, PolicyParams

__all__ = ["SecondWay", "second_ways"]

_EVEN = 0.5
"""Definition: a case belongs to the heap that is the likelier of two."""


@dataclass(frozen=True)
class SecondWay:
    """The cases that were drawn in the wrong way, and how far their boundary lies off."""

    members: Flags
    """None where nothing tells which way is wrong."""
    posterior: Values
    shift_vox: float
    """Positive: their outlines lie outside those of the others. 0: nothing tells."""
    min_fit: float = 0.0
    """Dice with the networks that nearly all labels of the right way reach, in one class."""

    @property
    def is_known(self) -> bool:
        """Whether it is known which way is wrong."""
        return self.shift_vox != 0


def second_ways(
    scores: Sequence[CaseScore],
    classes: Sequence[int],
    apart: Mapping[int, Flags],
    params: PolicyParams,
    trusted: Sequence[CaseScore] = (),
) -> dict[int, SecondWay]:
    """Return the wrong one of two ways of drawing, for the classes that have two.

    It is that of the foreground where the class takes part in it, else the class's own; over the
    cases that are not `apart`, by key: those that lack the class, or are drawn otherwise. Where it
    is not known which way of drawing the foreground is wrong, it is not known for its classes.
    `trusted`: scores of trusted labels.
    """
    pooled = _second_way(scores, FOREGROUND, ~apart[FOREGROUND], params, trusted)
    found = {}
    for value in classes:
        way, whole = pooled, ~apart[value]
        if pooled is None or (
            pooled.is_known and not _takes_part(scores, value, pooled, whole, params)
        ):
            way = _second_way(scores, value, whole, params, trusted)
        if way is not None:
            fit = _usual_fit(of_key(scores, value), whole & (way.posterior < _EVEN), params)
            found[value] = replace(way, min_fit=fit)
    return found


def _usual_fit(scores: Sequence[ClassScore], right: Flags, params: PolicyParams) -> float:
    """Return the Dice with the networks that all but `way_misfits` of the right labels reach."""
    fits = [s.agreement for s, one in zip(scores, right, strict=True) if one and s.given_vox]
    return float(np.quantile(fits, params.way_misfits)) if fits else 0.0


def _second_way(
    scores: Sequence[CaseScore],
    key: int,
    usable: Flags,
    params: PolicyParams,
    trusted: Sequence[CaseScore],
) -> SecondWay | None:
    """Return the wrong one of two ways of drawing a class, or the foreground, if there are two.

    None below `min_group_cases` measured cases; where one heap explains the offsets nearly as well
    as two, or they overlap, or lie nearer or further apart than a shifted outline; and where one
    holds less than `min_way_share` of the cases. Nobody is a member where neither heap fits the
    networks clearly worse, or the wrong one holds more than `max_flagged`.
    """
    offsets, _ = offsets_of(scores, key, params, usable=usable)
    known = np.isfinite(offsets)
    mixture = fit_mixture(offsets[known]) if known.sum() >= params.min_group_cases else None
    if (
        mixture is None
        or mixture.bic_gain < params.min_bic_gain
        or mixture.separation < params.min_way_separation
    ):
        return None
    upper = np.where(known, mixture.posterior(np.where(known, offsets, 0.0)), np.nan)
    lower_side, upper_side = upper <= _EVEN, upper > _EVEN
    if min(lower_side.sum(), upper_side.sum()) < params.min_way_share * known.sum():
        return None
    low, high = (float(offsets[side].mean()) for side in (lower_side, upper_side))
    between, middle = high - low, (low + high) / 2
    if not LEAST_SHIFT_VOX <= between <= params.max_shift_vox:
        return None
    right = _right_offset(scores, trusted, key, offsets)
    if right is None:
        worse = _worse(scores, key, upper_side, lower_side)
    else:
        worse = float("inf") if right < middle else float("-inf")
    posterior = np.nan_to_num(upper if worse > 0 else 1 - upper)
    # The wider of two normal components wins on both far sides; a heap has one.
    on_side = (offsets - middle) * worse > 0
    members = on_side & (posterior > params.way_posterior)
    if abs(worse) < params.min_way_misfit or members.sum() > params.max_flagged * known.sum():
        nobody = np.zeros(len(scores), bool)
        return SecondWay(nobody, np.zeros(len(scores)), 0.0)
    return SecondWay(members, posterior, between if worse > 0 else -between)


def _right_offset(
    scores: Sequence[CaseScore], trusted: Sequence[CaseScore], key: int, offsets: Values
) -> float | None:
    """Return where trusted labels lie among `offsets`, those of the given labels; None if unknown.

    A trusted label lies as far from its given one as both lie apart from the networks' outline.
    """
    rows = {score.case: row for row, score in enumerate(scores)}
    given = of_key(scores, key)
    found = [
        offsets[rows[one.case]] + mine.offset_vox - given[rows[one.case]].offset_vox
        for one, mine in zip(trusted, of_key(trusted, key), strict=True)
        if one.case in rows
    ]
    known = [value for value in found if np.isfinite(value)]
    return float(np.median(known)) if known else None


def _takes_part(
    scores: Sequence[CaseScore], value: int, way: SecondWay, whole: Flags, params: PolicyParams
) -> bool:
    """Tell whether a class lies off by `way_class_part` of what the foreground does."""
    offsets, _ = offsets_of(scores, value, params, usable=whole)
    sides = [offsets[side & np.isfinite(offsets)] for side in (way.members, way.posterior < _EVEN)]
    if not all(side.size for side in sides):
        return False
    return float(sides[0].mean() - sides[1].mean()) / way.shift_vox >= params.way_class_part


def _worse(scores: Sequence[CaseScore], key: int, heap: Flags, other: Flags) -> float:
    """Return how many sds the heap fits the networks worse.

    For the foreground it is the median of the classes: one of them alone says nothing.
    """
    keys = [key] if key != FOREGROUND else classes_of(scores)
    found = []
    for one in keys:
        corruption = np.array([score.log_corruption for score in of_key(scores, one)])
        found.append(effect(corruption[heap], corruption[other]))
    return float(np.median(found))
