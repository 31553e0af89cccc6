"""Uncertainty relabelling (Redekop & Chernyavskiy 2021): ensembles, dropout or test-time views.

`rule: published` flips every voxel of a binary label whose aleatoric uncertainty exceeds delta,
even where network and label agree: it is there for repeating the paper. `rule: safe` is its repair:
a voxel changes only where the prediction differs from the label and the total uncertainty, which
grows where voters contradict each other, is below delta, for any number of classes. `rule: default`
asks the policy which cases are wrong, and how, before any voxel changes (`policy.default.decide`).

`relabel_from` also relabels what the networks learn, from an epoch on (`methods.uncertainty.hook`),
by the same delta: as published with `rule: published`, else as its repair.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from pydantic.dataclasses import dataclass

from raysegclean.errors import ConfigError
from raysegclean.evidence.proposals import Score
from raysegclean.evidence.stats import CaseStats
from raysegclean.evidence.voxel_evidence import LEVELS, MAX_UNCERTAINTY
from raysegclean.methods.base import ArchiveEvidence, Method, Verdict, Voters
from raysegclean.methods.params import STRICT, Count, Epoch, NetworkParams, Positive
from raysegclean.nets.hooks import PLAIN_HOOK, HookSpec
from raysegclean.nets.views import parse_views
from raysegclean.policy.decisions import CaseDecision, Decision
from raysegclean.policy.edits import FlipAbove, Replace, ReplaceBelow

__all__ = ["UNCERTAINTY", "UncertaintyParams", "solve_delta"]


FALLBACK_DELTA = {"published": 0.2, "safe": 0.1}
"""Used where no delta is set and, for `safe`, no trusted case can say which one pays."""

MAX_BINARY = 0.25
"""Upper bound of p (1 - p)."""

SCORE_OF_RULE: Mapping[str, Score] = {"default": "", "published": "aleatoric", "safe": "total"}


@dataclass(frozen=True, config=STRICT)
class UncertaintyParams(NetworkParams):
    """Settings of uncertainty relabelling."""

    members: Count = 2
    voters: Literal["ensemble", "dropout", "tta"] = "ensemble"
    passes: Count = 8
    """Dropout passes per network, for `voters: dropout`."""
    views: str = "flips brighter darker contrast"
    """Views beside the plain one, for `voters: tta`: names out of `nets.views.VIEWS`, separated by
    spaces. `flips` stands for the axes of train.flips: flipped along another axis, where left
    against right carries the label, a network that never saw it answers wrongly."""
    rule: Literal["default", "safe", "published"] = "default"
    delta: Positive | None = None
    """Uncertainty threshold; for two classes p (1 - p), at most 0.25. Null: for
    `rule: safe` solved on trusted cases from the histograms of the one propose pass."""
    relabel_from: Literal["auto"] | Epoch | None = None
    """Epoch, a tenth of the steps, from which labels are relabelled while networks learn; auto:
    found as in the poster; null: never. Training takes up to twice as long."""
    relabel_passes: Count = 4
    """Dropout passes that this takes; the one that is learnt from counts."""

    def __post_init__(self) -> None:
        if not parse_views(self.views) and self.voters == "tta":
            raise ConfigError("params.views: expected at least one view for voters: tta, got none.")
        most = MAX_BINARY if self.rule == "published" else MAX_UNCERTAINTY
        if self.delta is not None and not self.delta < most:
            raise ConfigError(
                f"params.delta: expected a number above 0 and below {most}, which no uncertainty "
                f"exceeds under rule: {self.rule}, got {self.delta}."
            )


def _hook(params: UncertaintyParams) -> HookSpec:
    if params.relabel_from is None:
        return PLAIN_HOOK
    rule = "published" if params.rule == "published" else "safe"
    return HookSpec.of(
        "relabel",
        start=params.relabel_from,
        rule=rule,
        delta=params.delta or FALLBACK_DELTA[rule],
        passes=params.relabel_passes,
    )


def _voters(params: UncertaintyParams) -> Voters:
    return Voters(
        members=params.members,
        hook=_hook(params),
        passes=params.passes if params.voters == "dropout" else 0,
        views=parse_views(params.views) if params.voters == "tta" else (),
        score=SCORE_OF_RULE[params.rule],
    )


def _policy(evidence: ArchiveEvidence, params: UncertaintyParams) -> Verdict:
    if params.rule == "default":
        return Verdict(evidence.judged(params.confidence))
    solved = solve_delta(evidence.totals) if params.rule == "safe" else None
    delta = params.delta or solved or FALLBACK_DELTA[params.rule]
    share = delta / MAX_UNCERTAINTY
    rule = FlipAbove(share) if params.rule == "published" else ReplaceBelow(share)
    voxelwise = Decision(Replace(), f"rule {params.rule}, delta {delta:.4f}")
    decision = CaseDecision(dict.fromkeys(range(1, evidence.totals.classes), voxelwise), rule)
    return Verdict({s.case: decision for s in evidence.scores}, chosen={"delta": delta})


def solve_delta(totals: CaseStats) -> float | None:
    """Return the delta below which replacing repairs the most voxels net of harm.

    From the histograms of trusted cases alone, so every delta is scored exactly and no network
    runs again. None without trusted cases, or where no delta does more good than harm.
    """
    right, harm, _ = totals.trusted[1].sum(axis=1)
    net = np.cumsum(right - harm)
    if not net.size or net.max() <= 0:
        return None
    return float((int(net.argmax()) + 1) / LEVELS * MAX_UNCERTAINTY)


def _binary_only(params: UncertaintyParams) -> str:
    return "rule: published" if params.rule == "published" else ""


UNCERTAINTY = Method("uncertainty", UncertaintyParams, _voters, _policy, binary_only=_binary_only)
