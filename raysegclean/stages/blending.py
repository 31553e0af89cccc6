"""Blend: draw the outlines of noisy groups towards the networks', where the corrector did not act.

What a group's outlines are off by, and how much of that is to be believed, follows from the scores
alone; one revision of the flagged cases carries it out. Candidates that the policy took stay taken.
"""

from dataclasses import replace

from raysegclean.core.blending import BlendReviser, solve_blends
from raysegclean.core.casescore import Action, CaseDecision
from raysegclean.core.looks import Revision
from raysegclean.core.scores import case_actions
from raysegclean.methods.base import ArchiveEvidence, Verdict
from raysegclean.stages.asking import answered
from raysegclean.stages.proposing import Proposals
from raysegclean.stages.session import Session

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


def blended(evidence: ArchiveEvidence, verdict: Verdict) -> Verdict:
    """Return the verdict whose noisy groups are blended; a pure function."""
    members: dict[int, set[str]] = {}
    for case, decision in verdict.decisions.items():
        for channel, one in decision.classes.items():
            if one.action is Action.REPLACE and one.posterior > 0:
                members.setdefault(channel, set()).add(case)
    clean = {case for case, decision in verdict.decisions.items() if not decision.flagged}
    blends = solve_blends(evidence.scores, members, clean)
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
