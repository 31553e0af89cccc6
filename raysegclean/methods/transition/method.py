"""Transition matrices: Beyond Images (Zhu et al., ICML 2022) on the consensus of HOC (ICML 2021).

T[i, j] = P(given j | true i), per band of depth, is estimated from features and given labels alone
(`methods.transition.matrix`); the label becomes the class i of largest p_i T[i, given].

`rule: published` estimates T on up to `cases` cases of the archive and relabels all of them.
`rule: default` asks first which cases are wrong (`policy.default.decide`). Cases that are off by a
shift are shifted; where candidates would be taken, T of the flagged cases decides in their stead.
Of a class of which they hold too few voxels to estimate T, the candidates of the policy stay.

`loss` corrects training, forward or backward (`methods.transition.hook`), with a T that is
estimated while the network learns, or with one of which the diagonal is 1 - `flip`. Wrong labels
are not spread evenly in space as any T has it, so `plain` is the default.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from raysegclean.evidence.second_pass import CaseQuery, Revision
from raysegclean.identity import digest
from raysegclean.methods.base import ArchiveEvidence, Asking, Method, Verdict, Voters
from raysegclean.methods.params import STRICT, Count
from raysegclean.methods.transition.matrix import Estimate, PosteriorReviser, Samples, estimate
from raysegclean.methods.transition.reservoir import FeatureLook
from raysegclean.nets.hooks import HookSpec
from raysegclean.policy.decisions import CaseDecision, Decision
from raysegclean.policy.edits import NotJudged, Reason, Replace, Revise

__all__ = ["TRANSITION", "TransitionParams"]

MIN_CASES = 3
"""A voxel and its two neighbours are of three cases."""
LEAST_ROWS = 20
"""Voxels per band that every case gives, however many cases there are."""
_POSTERIOR = "the posterior of the transition matrix"


@dataclass(frozen=True, config=STRICT)
class TransitionParams:
    """Settings of transition matrices."""

    rule: Literal["default", "published"] = "default"
    loss: Literal["plain", "forward", "backward"] = "plain"
    flip: Annotated[float, Field(gt=0, lt=0.5)] | None = None
    """Share of wrong labels that a corrected loss assumes, spread over the other classes; null: T
    is estimated while training."""
    divergence: Literal["tv", "kl"] = "tv"
    """Which information weighs the features."""
    cases: Annotated[int, Field(ge=MIN_CASES)] = 200
    """Cases that are looked at to estimate T."""
    rows: Annotated[int, Field(ge=100)] = 15_000
    """Voxels per band that each T is estimated from, all cases together."""
    members: Count = 2
    """Networks per fold; the features are those of the first."""
    retrain: bool = False
    """Whether a final network is trained on the cleaned labels."""


def _policy(evidence: ArchiveEvidence, params: TransitionParams) -> Verdict | Asking:
    if params.rule == "published":
        kept = Decision(NotJudged(), "too few voxels to estimate the transition matrix")
        decisions = {s.case: CaseDecision(dict.fromkeys(s.classes, kept)) for s in evidence.scores}
        every = {s.case: frozenset(s.classes) for s in evidence.scores}
        return _relabelled(evidence, params, Verdict(decisions), every)
    decided = Verdict(evidence.judged())
    due = {case: _replaced(one) for case, one in decided.decisions.items()}
    due = {case: classes for case, classes in due.items() if classes}
    return _relabelled(evidence, params, decided, due) if len(due) >= MIN_CASES else decided


def _replaced(decision: CaseDecision) -> frozenset[int]:
    return frozenset(c for c, one in decision.classes.items() if isinstance(one.edit, Replace))


def _relabelled(
    evidence: ArchiveEvidence,
    params: TransitionParams,
    verdict: Verdict,
    due: Mapping[str, frozenset[int]],
) -> Asking:
    """Estimate T on cases of `due`, then let the posterior decide in their classes.

    Classes of which T could not be estimated stay as the verdict has them.
    """
    # In the order of a hash, so that the cases looked at are a random part of those to relabel.
    looked = sorted(due, key=digest)[: params.cases]
    each = max(LEAST_ROWS, -(-params.rows // max(len(looked), 1)))
    answers = yield CaseQuery(FeatureLook(each), {case: {} for case in looked})
    if not answers:
        return verdict
    samples = Samples.of(answers, {score.case: score.fold for score in evidence.scores})
    found = estimate(samples, classes=evidence.totals.classes, divergence=params.divergence)
    known = found.known
    revised = {case: classes & known for case, classes in due.items() if classes & known}
    decisions = dict(verdict.decisions)
    for case, classes in revised.items():
        decisions[case] = _by_posterior(decisions[case], classes)
    if not revised:
        return verdict
    reviser = PosteriorReviser.of(found.transition)
    revision = Revision(reviser, {case: {} for case in revised})
    return Verdict(decisions, _chosen(found), revision)


def _by_posterior(decision: CaseDecision, revised: frozenset[int]) -> CaseDecision:
    """Return the decision with the posterior in place of candidates, or of nothing."""
    changed = {}
    for channel in revised:
        one = decision.classes[channel]
        why = f"{one.why}; by posterior" if isinstance(one.edit, Replace) else _POSTERIOR
        changed[channel] = replace(one, edit=Revise(Reason.POSTERIOR), why=why)
    return decision.but(changed)


def _chosen(found: Estimate) -> Mapping[str, float]:
    """Return the elements of T that differ from the identity."""
    return {
        f"T[{band}][{true},{given}]": float(rate)
        for band, matrix in enumerate(found.transition)
        for true, row in enumerate(matrix)
        for given, rate in enumerate(row)
        if rate != float(true == given)
    }


def _voters(params: TransitionParams) -> Voters:
    if params.loss == "plain":
        return Voters(members=params.members)
    hook = HookSpec.of(
        "transition",
        loss=params.loss,
        flip=params.flip or 0.0,
        divergence=params.divergence,
        rows=params.rows,
    )
    return Voters(members=params.members, hook=hook)


TRANSITION = Method("transition", TransitionParams, _voters, _policy, needs_features=True)
