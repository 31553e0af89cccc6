"""How good a given label is: its expected Dice to the truth, from scores alone, with an interval.

Nobody knows the truth T; known is how the given label G agrees with a prediction P of networks that
did not train on the case. Two assumptions. What P misses of T is distributed as what it misses of
the labels of this class that stay as given: most of these are right. And the errors of label and
networks are independent, so that their outlines differ as two measurements do: with a miss of
1 - Dice, miss(G, P)^2 = miss(G, T)^2 + miss(T, P)^2. A label that agrees as well as right ones do
may be right altogether; one that was edited or is in doubt is not.

Not seen: an error that all cases share, or that the networks make too. Where label and networks err
alike, as in rough outlines, the score is too high.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from raysegclean.evidence.case_scores import CaseScore
from raysegclean.evidence.robust import Values, thinned
from raysegclean.policy.decisions import CaseDecision

__all__ = ["Quality", "qualities"]

_MOST = 500
"""Cost: of more labels that stay so many are looked at, at even ranks."""
_FAIR = 0.5
"""Definition: the least chance that a label is right that stays as given: even."""
_ENDS = (0.1, 0.9)
"""Definition: the interval is meant to hold four truths of five."""


class Quality(NamedTuple):
    """The expected Dice of a given label to the truth, and where it lies four times out of five."""

    expected: float
    low: float
    high: float


def qualities(
    decisions: Mapping[str, CaseDecision], scores: Sequence[CaseScore], learnt: Sequence[int]
) -> dict[str, dict[int, Quality]]:
    """Return, by case and class out of `learnt`, how good the given label is.

    What label and networks both lack has no quality. The decisions say which labels stay as given
    without a doubt; where none does, nothing is known of the class.
    """
    out: dict[str, dict[int, Quality]] = {score.case: {} for score in scores}
    for value in learnt:
        known = {s.case: s.classes[value] for s in scores if value in s.classes}
        known = {case: one for case, one in known.items() if one.given_vox + one.predicted_vox}
        stay = {case for case in known if _stays(decisions, case, value)}
        right = np.array([known[c].agreement for c in sorted(stay) if known[c].given_vox])
        if not right.size:
            continue
        usual = _Usual(1 - thinned(np.sort(right), _MOST))
        for case, one in known.items():
            out[case][value] = usual.quality(1 - one.agreement, may_be_right=case in stay)
    return out


def _stays(decisions: Mapping[str, CaseDecision], case: str, value: int) -> bool:
    one = decisions[case].classes.get(value) if case in decisions else None
    return one is not None and one.stays and not one.doubt


@dataclass(frozen=True)
class _Usual:
    """What the networks miss of right labels of one class."""

    misses: Values

    def quality(self, miss: float, *, may_be_right: bool) -> Quality:
        """Return what is known of a label of which they miss so much."""
        own = 1 - np.sqrt(np.maximum(0.0, miss**2 - self.misses**2))
        low, high = np.quantile(own, _ENDS).tolist()
        if not may_be_right:
            return Quality(float(own.mean()), low, high)
        chance = min(1.0, _FAIR + float((self.misses >= miss).mean()))
        return Quality(chance + (1 - chance) * float(own.mean()), low, 1.0)
