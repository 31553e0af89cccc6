"""Which outlines of noisy groups are blended, and by how much: pure functions of the scores.

Candidates that the policy took stay taken; what a group's outlines are off by, and how much of that
is to be believed, follows from its scores and from those of the cases that nothing speaks against.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from raysegclean.evidence.case_scores import FOREGROUND, CaseScore, Kind, classes_of
from raysegclean.policy.blending import Shrinkage, solve_blends
from raysegclean.policy.decisions import CaseDecision
from raysegclean.policy.edits import Blend, Replace
from raysegclean.policy.finding_scope import Speaking
from raysegclean.policy.params import PolicyParams

__all__ = ["with_blends"]

Decisions = Mapping[str, CaseDecision]


def with_blends(
    scores: Sequence[CaseScore], decisions: Decisions, params: PolicyParams
) -> tuple[dict[str, CaseDecision], dict[str, dict[int, Shrinkage]]]:
    """Return the decisions with the blends of noisy groups, and the blends by case and class."""
    members: dict[int, set[str]] = {}
    above: dict[tuple[str, int], Mapping[Kind, float]] = {}
    for case, decision in decisions.items():
        for channel, one in decision.classes.items():
            if isinstance(one.edit, Replace) and one.posterior > 0:
                members.setdefault(channel, set()).add(case)
                above[case, channel] = one.edit.above
    blends = solve_blends(scores, members, _clean(scores, decisions, params), params)
    changed = dict(decisions)
    for case, mine in blends.items():
        before = changed[case].classes
        changed[case] = changed[case].but(
            {c: replace(before[c], edit=Blend(above[case, c])) for c in mine}
        )
    return changed, blends


def _clean(
    scores: Sequence[CaseScore], decisions: Decisions, params: PolicyParams
) -> dict[int, set[str]]:
    """Return, for each class, the cases that nothing speaks against."""
    flagged = {
        channel: np.array([_is_flagged(decisions.get(s.case), channel) for s in scores], np.bool_)
        for channel in classes_of(scores)
    }
    as_a_whole = Speaking.of(scores, params).all_about(flagged)[FOREGROUND]
    return {
        channel: {
            score.case for score, odd in zip(scores, mine | as_a_whole, strict=True) if not odd
        }
        for channel, mine in flagged.items()
    }


def _is_flagged(decision: CaseDecision | None, channel: int) -> bool:
    one = decision.classes.get(channel) if decision else None
    return one is not None and one.flagged
