"""Spatial Correction (Yao et al., ICLR 2023): a few trusted cases show what all cases share.

`rule: published`: the bias of the predicted boundary against trusted labels is taken out of the
logits, and the label is replaced by what comes out (`core.spatial`). Repaired here: a class
without a bias keeps the given label, where the published code replaces it by the prediction.

`rule: shift` needs no network: the bias of the given labels themselves, measured in the trusted
cases, is undone in all cases. On biased annotations this simple baseline is hard to beat.

`rule: default` decides by case. What `core.policy.decide` says stands, with one addition: where the
trusted cases agree on a bias, cases whose given outline lies off the prediction as far as theirs
does are wrong in the same way, and are shifted by it. So a bias that all cases share becomes
visible, and a case that does not share it is left alone. Where an archive is drawn in two ways, the
bias of one of them, the policy alone says which cases share it (`core.ways`).

Not seen: a bias beyond 5 voxels of the finest axis counts as 5 (`boundary.OFFSET_LIMIT_VOX`), and
one number per class describes no noise whose sign changes from case to case.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from raysegclean.core.boundary import fine_voxel_mm
from raysegclean.core.casescore import Action, CaseDecision, CaseScore, ClassDecision
from raysegclean.core.looks import Ask, Revision
from raysegclean.core.policy import PolicyParams, decide, two_ways
from raysegclean.core.rules import Actions, Reason
from raysegclean.core.spatial import (
    LEAST_VOX,
    BiasReviser,
    Height,
    ShellLook,
    label_bias_mm,
    like_trusted,
    off_centre,
    prediction_bias_mm,
    shell_heights,
)
from raysegclean.errors import ConfigError
from raysegclean.methods.base import ArchiveEvidence, Asking, Method, Verdict, Voters

__all__ = ["SPATIAL", "SpatialParams"]

RULES = ("default", "published", "shift")
HEIGHTS = ("p95", "max")


@dataclass(frozen=True)
class SpatialParams:
    """Settings of Spatial Correction."""

    rule: Literal["default", "published", "shift"] = "default"
    gamma: float = 0.8
    """Share of the measured bias that is taken back; the paper uses 1 down to 0.3."""
    b: Height = "p95"
    """Height of the correction within its shell: `p95` or, as published, `max`."""
    members: int = 2
    """Networks per fold."""
    retrain: bool = False
    """Whether a final network is trained on the cleaned labels."""

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        for name, choices in (("rule", RULES), ("b", HEIGHTS)):
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"params.{name}: expected one of {', '.join(choices)}, "
                    f"got {getattr(self, name)!r}."
                )
        if not 0 < self.gamma <= 1:
            raise ConfigError(
                f"params.gamma: expected a share above 0 and up to 1, got {self.gamma}."
            )
        if self.members < 1:
            raise ConfigError(f"params.members: expected at least 1, got {self.members}.")


def _policy(evidence: ArchiveEvidence, params: SpatialParams) -> Verdict | Asking:
    if params.rule == "published":
        return _published(evidence, params)
    shared = label_bias_mm(evidence.scores, evidence.trusted, evidence.spacing_mm)
    shifted = {s.case: _shifted(s, shared, evidence, params) for s in evidence.scores}
    if params.rule == "shift":
        return Verdict.of(shifted)
    policy = PolicyParams(shift_gain=params.gamma)
    # Where only some cases share the bias of the trusted ones, the policy tells which.
    mixed = two_ways(evidence.scores, policy, evidence.trusted)
    if shared and not mixed and off_centre(evidence.scores, evidence.trusted):
        policy = replace(policy, min_trusted=min(len(evidence.trusted), policy.min_trusted))
    decided = decide(evidence.scores, policy, trusted=evidence.trusted)
    alike = {
        c: like_trusted(evidence.scores, evidence.trusted, c) for c in shared if c not in mixed
    }
    return Verdict.of(
        {
            case: CaseDecision(case, {**one.classes, **_where_alike(shifted[case], alike)})
            for case, one in decided.items()
        }
    )


def _where_alike(
    shifted: CaseDecision, alike: Mapping[int, Collection[str]]
) -> dict[int, ClassDecision]:
    """Return the shifts of those classes that look in this case as in the trusted ones."""
    return {
        channel: one
        for channel, one in shifted.classes.items()
        if one.action is Action.SHIFT and shifted.case in alike.get(channel, ())
    }


def _shifted(
    score: CaseScore, shared: Mapping[int, float], evidence: ArchiveEvidence, params: SpatialParams
) -> CaseDecision:
    keep = ClassDecision(Action.KEEP, "the trusted cases show no bias of this class")
    classes = dict.fromkeys(score.classes, keep)
    for channel, bias_mm in shared.items():
        unit = fine_voxel_mm(evidence.spacing_mm[score.case])
        if params.gamma * abs(bias_mm) >= LEAST_VOX * unit:
            why = f"given labels are {bias_mm:+.2f} mm off in {len(evidence.trusted)} trusted cases"
            amount = params.gamma * bias_mm / unit
            classes[channel] = ClassDecision(Action.SHIFT, why, shift_vox=amount)
    return CaseDecision(score.case, classes)


def _published(evidence: ArchiveEvidence, params: SpatialParams) -> Asking:
    bias_mm = prediction_bias_mm(evidence.trusted, evidence.spacing_mm)
    delta_mm = tuple(
        params.gamma * bias_mm.get(channel, 0.0) for channel in range(evidence.totals.classes)
    )
    due: dict[str, dict[str, float]] = {
        s.case: {}
        for s in evidence.scores
        if any(abs(d) >= LEAST_VOX * fine_voxel_mm(evidence.spacing_mm[s.case]) for d in delta_mm)
    }
    answers = yield Ask(ShellLook(delta_mm), due)
    heights = {case: shell_heights(answer, params.b) for case, answer in answers.items()}
    decisions = {s.case: _replaced(s, delta_mm, heights.get(s.case)) for s in evidence.scores}
    actions = {}
    for case, decision in decisions.items():
        classes = {c for c, one in decision.classes.items() if one.action is Action.CORRECT}
        actions[case] = Actions(correct=frozenset(classes), correct_reason=Reason.BIAS)
    return Verdict(
        decisions=decisions,
        actions={case: one for case, one in actions.items() if not one.quiet},
        chosen={f"delta_mm[{c}]": delta for c, delta in enumerate(delta_mm) if c},
        revision=Revision(
            BiasReviser(delta_mm), {case: {"height": b} for case, b in heights.items()}
        ),
    )


def _replaced(
    score: CaseScore, delta_mm: Sequence[float], heights: Sequence[float] | None
) -> CaseDecision:
    keep = ClassDecision(Action.KEEP, "the predicted boundary has no bias that moves a voxel")
    classes = dict.fromkeys(score.classes, keep)
    for channel in score.classes:
        if heights is not None and heights[channel] > 0:
            why = f"predicted boundary {-delta_mm[channel]:+.2f} mm off trusted ones"
            classes[channel] = ClassDecision(Action.CORRECT, why)
    return CaseDecision(score.case, classes)


def _voters(params: SpatialParams) -> Voters:
    return Voters(members=params.members)


def _retrains(params: SpatialParams) -> bool:
    return params.retrain


def _corrects(params: SpatialParams) -> bool:
    return params.rule == "default"


SPATIAL = Method(
    "spatial", SpatialParams, _voters, _policy, _retrains, _corrects, needs_trusted=True
)
