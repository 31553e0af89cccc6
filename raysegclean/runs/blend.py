"""Blend: draw the outlines of noisy groups towards the networks', where the corrector did not act.

What a group's outlines are off by, and how much of that is to be believed, follows from the scores
alone; one revision of the flagged cases carries it out. Candidates that the policy took stay taken.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from raysegclean.evidence.case_scores import FOREGROUND, CaseScore, classes_of
from raysegclean.evidence.second_pass import Revision
from raysegclean.methods.base import ArchiveEvidence, Verdict
from raysegclean.policy.blending import BlendReviser, solve_blends
from raysegclean.policy.decisions import Action, CaseDecision, case_actions
from raysegclean.policy.finding_scope import Speaking
from raysegclean.runs.propose import Proposals
from raysegclean.runs.second_pass import answered
from raysegclean.runs.session import Session

__all__ = ["blend", "blended"]


def blend(
    session: Session, proposals: Proposals, evidence: ArchiveEvidence, verdict: Verdict
) -> tuple[Proposals, Verdict]:
    """Return the verdict with blended outlines in the cases of noisy groups.

    Both come back unchanged where the method wants no second pass of its default policy, or the
    labels are revised already.
    """
    if not session.method.corrects(session.params) or verdict.revision is not None:
        return proposals, verdict
    return answered(session, proposals, blended(evidence, verdict))


def _clean(
    scores: Sequence[CaseScore], decisions: Mapping[str, CaseDecision]
) -> dict[int, set[str]]:
    """Return, for each class, the cases that nothing speaks against."""
    flagged = {
        channel: np.array([_is_flagged(decisions.get(s.case), channel) for s in scores], np.bool_)
        for channel in classes_of(scores)
    }
    as_a_whole = Speaking.of(scores).all_about(flagged)[FOREGROUND]
    return {
        channel: {
            score.case for score, odd in zip(scores, mine | as_a_whole, strict=True) if not odd
        }
        for channel, mine in flagged.items()
    }


def _is_flagged(decision: CaseDecision | None, channel: int) -> bool:
    one = decision.classes.get(channel) if decision else None
    return one is not None and one.action is not Action.KEEP


def blended(evidence: ArchiveEvidence, verdict: Verdict) -> Verdict:
    """Return the verdict whose noisy groups are blended; a pure function."""
    members: dict[int, set[str]] = {}
    for case, decision in verdict.decisions.items():
        for channel, one in decision.classes.items():
            if one.action is Action.REPLACE and one.posterior > 0:
                members.setdefault(channel, set()).add(case)
    blends = solve_blends(evidence.scores, members, _clean(evidence.scores, verdict.decisions))
    if not blends:
        return verdict
    decisions = dict(verdict.decisions)
    for case, mine in blends.items():
        classes = dict(decisions[case].classes)
        for channel in mine:
            classes[channel] = replace(classes[channel], action=Action.BLEND)
        decisions[case] = CaseDecision(case, classes)
    actions = {case: case_actions(decisions[case]) for case in blends}
    values = {case: BlendReviser.values(mine) for case, mine in blends.items()}
    return replace(
        verdict,
        decisions=decisions,
        actions={**verdict.actions, **actions},
        chosen={**verdict.chosen, "blended": len(blends)},
        revision=Revision(BlendReviser(), values),
    )
