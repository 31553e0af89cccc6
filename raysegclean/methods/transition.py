"""Transition matrices: Beyond Images (Zhu et al., ICML 2022) on the consensus of HOC (ICML 2021).

T[i, j] = P(given j | true i), per band of depth, is estimated from features and given labels alone
(`core.transition`); the label becomes the class i of largest p_i T[i, given].

`rule: published` estimates T on up to `cases` cases of the archive and relabels all of them.
`rule: default` asks first which cases are wrong (`core.policy.decide`). Cases that are off by a
shift are shifted; where candidates would be taken, T of the flagged cases decides in their stead,
or, with fewer than three of them, the candidates of the policy stay.

`loss` corrects training with a T of which the diagonal is 1 - `flip`, since none has been estimated
by then: forward (L of T^T p) or backward (T^-1 applied to the losses of all classes; unbiased, may
be negative). Patrini et al., CVPR 2017. Wrong labels are not spread evenly in space as that T has
it, so `plain` is the default.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch

from raysegclean.core.casescore import Action, CaseDecision, ClassDecision
from raysegclean.core.identity import digest
from raysegclean.core.looks import Ask, Revision
from raysegclean.core.policy import PolicyParams, decide
from raysegclean.core.reservoir import FeatureLook
from raysegclean.core.rules import Actions, Reason
from raysegclean.core.transition import Estimate, PosteriorReviser, Samples, estimate
from raysegclean.errors import ConfigError
from raysegclean.methods.base import ArchiveEvidence, Asking, Method, Verdict, Voters
from raysegclean.nets.batch import Batch
from raysegclean.nets.hooks import HookContext, HookSpec, Lesson, PlainHook

__all__ = ["TRANSITION", "TransitionHook", "TransitionParams"]

CHOICES = {
    "rule": ("default", "published"),
    "loss": ("plain", "forward", "backward"),
    "divergence": ("tv", "kl"),
}
MIN_CASES = 3
"""A voxel and its two neighbours are of three cases."""
LEAST_ROWS = 20
"""Voxels per band that every case gives, however many cases there are."""


@dataclass(frozen=True)
class TransitionParams:
    """Settings of transition matrices."""

    rule: Literal["default", "published"] = "default"
    loss: Literal["plain", "forward", "backward"] = "plain"
    flip: float = 0.1
    """Share of wrong labels that a corrected loss assumes, spread over the other classes."""
    divergence: Literal["tv", "kl"] = "tv"
    """Which information weighs the features."""
    cases: int = 200
    """Cases that are looked at to estimate T."""
    rows: int = 15_000
    """Voxels per band that T is estimated from, all cases together."""
    members: int = 2
    """Networks per fold; the features are those of the first."""
    retrain: bool = False
    """Whether a final network is trained on the cleaned labels."""

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"params.{name}: expected one of {', '.join(choices)}, "
                    f"got {getattr(self, name)!r}."
                )
        if not 0 < self.flip < 0.5:
            raise ConfigError(f"params.flip: expected above 0 and below 0.5, got {self.flip}.")
        for name, least in (("cases", MIN_CASES), ("rows", 100), ("members", 1)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"params.{name}: expected at least {least}, got {getattr(self, name)}."
                )


def _policy(evidence: ArchiveEvidence, params: TransitionParams) -> Verdict | Asking:
    if params.rule == "published":
        replaced = ClassDecision(Action.CORRECT, "the posterior of the transition matrix")
        decisions = {
            s.case: CaseDecision(s.case, dict.fromkeys(s.classes, replaced))
            for s in evidence.scores
        }
        return _relabelled(evidence, params, Verdict(decisions, {}))
    decided = Verdict.of(decide(evidence.scores, PolicyParams(), trusted=evidence.trusted))
    noisy = [case for case, one in decided.actions.items() if one.replace_above]
    if len(noisy) < MIN_CASES:
        return decided
    decisions = dict(decided.decisions)
    for case in noisy:
        decisions[case] = _with_posterior(decisions[case])
    return _relabelled(evidence, params, replace(decided, decisions=decisions))


def _with_posterior(decision: CaseDecision) -> CaseDecision:
    """Return the decision with the posterior in place of candidates."""
    classes = {
        channel: replace(one, action=Action.CORRECT, above={}, why=f"{one.why}; by posterior")
        if one.action is Action.REPLACE
        else one
        for channel, one in decision.classes.items()
    }
    return CaseDecision(decision.case, classes)


def _relabelled(evidence: ArchiveEvidence, params: TransitionParams, verdict: Verdict) -> Asking:
    """Estimate T where the verdict wants a posterior, then revise those classes."""
    due = {
        case: frozenset(c for c, one in decision.classes.items() if one.action is Action.CORRECT)
        for case, decision in verdict.decisions.items()
    }
    due = {case: classes for case, classes in due.items() if classes}
    # In the order of a hash, so that the cases looked at are a random part of those to relabel.
    looked = sorted(due, key=digest)[: params.cases]
    each = max(LEAST_ROWS, -(-params.rows // max(len(looked), 1)))
    answers = yield Ask(FeatureLook(each), {case: {} for case in looked})
    if not answers:
        return verdict
    samples = Samples.of(answers, {score.case: score.fold for score in evidence.scores})
    found = estimate(samples, classes=evidence.totals.classes, divergence=params.divergence)
    actions = dict(verdict.actions)
    for case, classes in due.items():
        shifts = actions[case].shift_vox if case in actions else {}
        actions[case] = Actions(shift_vox=shifts, correct=classes, correct_reason=Reason.POSTERIOR)
    return replace(
        verdict,
        actions=actions,
        chosen=_chosen(found),
        revision=Revision(PosteriorReviser.of(found.transition), {case: {} for case in due}),
    )


def _chosen(found: Estimate) -> Mapping[str, float]:
    """Return the elements of T that differ from the identity."""
    return {
        f"T[{band}][{true},{given}]": float(rate)
        for band, matrix in enumerate(found.transition)
        for true, row in enumerate(matrix)
        for given, rate in enumerate(row)
        if rate != float(true == given)
    }


class TransitionHook(PlainHook):
    """Corrects the loss for labels that are flipped at a known rate."""

    def __init__(self, context: HookContext, loss: str = "forward", flip: float = 0.1) -> None:
        """`flip`: share of wrong labels, spread evenly over the other classes."""
        super().__init__(context)
        others = flip / (context.classes - 1)
        eye = torch.eye(context.classes, dtype=torch.float64)
        transition = eye * (1 - flip - others) + others
        self._forward = loss == "forward"
        self._matrix = (transition if self._forward else torch.linalg.inv(transition)).float()

    def loss(
        self,
        net: torch.nn.Module,  # noqa: ARG002
        logits: torch.Tensor,
        lesson: Lesson,
        batch: Batch,  # noqa: ARG002
    ) -> torch.Tensor:
        """Return the configured loss of T^T p, or the means of T^-1 applied to -log p."""
        matrix = self._matrix.to(logits.device)
        if self._forward:
            noisy = torch.einsum("ij,bizyx->bjzyx", matrix, torch.softmax(logits.float(), dim=1))
            return self.context.loss(noisy.log(), lesson.label)
        losses = -torch.log_softmax(logits.float(), dim=1)
        corrected = torch.einsum("jk,bkzyx->bjzyx", matrix, losses)
        labels = torch.arange(len(matrix), device=logits.device).reshape(1, -1, 1, 1, 1)
        truth = lesson.label[:, None] == labels
        space = (1, -3, -2, -1)
        return torch.where(truth, corrected, 0.0).sum(dim=space) / truth.sum(dim=space).clamp(min=1)


def _voters(params: TransitionParams) -> Voters:
    if params.loss == "plain":
        return Voters(members=params.members)
    hook = HookSpec.of(
        "raysegclean.methods.transition:TransitionHook", loss=params.loss, flip=params.flip
    )
    return Voters(members=params.members, hook=hook)


def _retrains(params: TransitionParams) -> bool:
    return params.retrain


def _corrects(params: TransitionParams) -> bool:
    return params.rule == "default"


TRANSITION = Method("transition", TransitionParams, _voters, _policy, _retrains, _corrects)
