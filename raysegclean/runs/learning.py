"""What the networks of a run have learnt, told at its end, and what to do about the rest."""

from collections.abc import Mapping, Sequence

import numpy as np

from raysegclean.evidence.case_scores import ClassScore, of_key
from raysegclean.methods.base import ArchiveEvidence
from raysegclean.planning.plan import RunPlan
from raysegclean.policy.outlier_cases import is_learnt
from raysegclean.runs.train import Ended

__all__ = ["learning_notes", "named"]

NAMED = 20
"""Classes that a note lists at most."""


def learning_notes(
    plan: RunPlan, evidence: ArchiveEvidence, ended: Sequence[Ended]
) -> tuple[str, ...]:
    """Return how many classes the voters have learnt, the others by name, and the remedy.

    A network that a method brings may be worse by design, and says nothing here.
    """
    if not plan.voters.members or plan.voters.network:
        return ()
    params, channels = evidence.policy, range(1, len(plan.classes))
    unlearnt: dict[str, float] = {}
    for channel in channels:
        scores, trusted = of_key(evidence.scores, channel), of_key(evidence.trusted, channel)
        if not is_learnt(scores, trusted, params):
            unlearnt[plan.called(plan.classes[channel])] = _median(scores, trusted)
    note = f"Learnt {len(channels) - len(unlearnt)} of {len(channels)} classes"
    if not unlearnt:
        return (f"{note}.",)
    note = (
        f"{note}; not learnt: {named(unlearnt)}. The default rules do not edit those: the networks "
        f"agree with half of their labels by less than Dice {params.min_agreement}, or with a "
        f"quarter by less than {params.min_lower_agreement}. "
    )
    return (note + _remedy(plan, ended),)


def named(agreement: Mapping[str, float]) -> str:
    """Return classes with their agreement, as people read them.

    >>> named({"9 liver": 0.412, "12": 0.38})
    '9 liver (.41), 12 (.38)'
    """
    told = [f"{value} ({dice:.2f})".replace("(0.", "(.") for value, dice in agreement.items()]
    return ", ".join(told[:NAMED]) + (", ..." if len(told) > NAMED else "")


def _median(scores: Sequence[ClassScore], trusted: Sequence[ClassScore]) -> float:
    """Return the median agreement with given labels, with trusted ones where none has the class."""
    given, right = ([s.agreement for s in part if s.given_vox] for part in (scores, trusted))
    return float(np.median(given or right))


def _remedy(plan: RunPlan, ended: Sequence[Ended]) -> str:
    larger = "take a larger network (network.widths)"
    if plan.network.finished:
        return "Give a better network."
    if plan.train.max_steps is None:
        return f"Train longer (train.steps is {plan.train.steps}), or {larger}."
    lengths = sorted({one.steps for one in ended})
    steps = " to ".join(f"{length:,}" for length in dict.fromkeys((lengths[0], lengths[-1])))
    for why, name in (("time", "budget_minutes"), ("", "max_steps")):
        if any(one.by == why for one in ended):
            return (
                f"After {steps} steps train.{name} ended it before agreement had stopped rising: "
                f"raise it, and the same command goes on from there; or {larger}."
            )
    return f"After {steps} steps agreement had stopped rising: {larger}, or correct more labels."
