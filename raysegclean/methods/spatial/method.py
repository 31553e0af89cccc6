"""Spatial Correction (Yao et al., ICLR 2023): a few trusted cases show what all cases share.

`rule: published`: the bias of the predicted boundary against trusted labels is taken out of the
logits, and the label is replaced by what comes out (`methods.spatial.bias`). Repaired here: a class
without a bias keeps the given label, where the published code replaces it by the prediction.

`rule: shift` needs no network, and trains none: the bias of the given labels, measured against the
trusted ones, is undone in all cases. On biased annotations this simple baseline is hard to beat.

`rule: default` decides by case. What `policy.default.decide` says stands, with one addition: where
the trusted cases agree on a bias, cases whose given outline lies off the prediction as far as
theirs does are wrong in the same way, and are shifted by it. So a bias that all cases share becomes
visible, and a case that does not share it is left alone. Where an archive is drawn in two ways, the
bias of one of them, the policy alone says which cases share it (`policy.annotator_styles`).

Not seen: outlines that lie 5 voxels of the finest axis or more apart (`boundary.OFFSET_LIMIT_VOX`)
have no offset, so a bias of more than about 3 is measured too small; and one number per class
describes no noise whose sign changes from case to case.
"""

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from raysegclean.errors import ConfigError
from raysegclean.evidence.case_scores import CaseScore, of_key
from raysegclean.evidence.second_pass import CaseQuery, Revision
from raysegclean.methods.base import ArchiveEvidence, Asking, Method, Verdict, Voters
from raysegclean.methods.params import STRICT, Count, Share
from raysegclean.methods.spatial.bias import (
    BiasReviser,
    Height,
    ShellLook,
    label_bias_mm,
    like_trusted,
    off_centre,
    prediction_bias_mm,
    shell_heights,
)
from raysegclean.policy.decisions import CaseDecision, Decision
from raysegclean.policy.default import decide, two_ways
from raysegclean.policy.edits import Fill, Keep, Reason, Replace, Revise, Shift
from raysegclean.policy.outlier_cases import is_learnt
from raysegclean.policy.params import LEAST_SHIFT_VOX, PolicyParams
from raysegclean.voxels.signed_distance import fine_voxel_mm

__all__ = ["SPATIAL", "SpatialParams"]

_NO_BIAS = "the trusted cases show no bias of this class"


@dataclass(frozen=True, config=STRICT)
class SpatialParams:
    """Settings of Spatial Correction."""

    rule: Literal["default", "published", "shift"] = "default"
    gamma: Share | None = None
    """Share of the measured bias that is taken back; the paper uses 1 down to 0.3. Null: the
    policy's `shift_gain`."""
    b: Height = "p95"
    """Height of the correction within its shell: `p95` or, as published, `max`."""
    members: Count = 2
    """Networks per fold; `shift` has none."""
    site: str = ""
    """Where the bias differs by site: a regular expression whose first group, in a case id, names
    its site, as "^([^-]+)-". A site without trusted cases has no known bias. Empty: one bias."""
    retrain: bool = False
    """Whether a final network is trained on the cleaned labels."""

    def __post_init__(self) -> None:
        try:
            groups = re.compile(self.site).groups if self.site else 1
        except re.error as error:
            raise ConfigError(
                f"params.site: {self.site!r} is no regular expression: {error}."
            ) from error
        if groups != 1:
            raise ConfigError(
                f"params.site: expected a regular expression with one group, such as ^([^-]+)-, "
                f"got {self.site!r} with {groups}."
            )

    def site_of(self, case: str) -> str:
        """Return the site of a case; all cases in which the pattern finds none are one site."""
        found = re.search(self.site, case) if self.site else None
        return str(found[1]) if found else ""


def _policy(evidence: ArchiveEvidence, params: SpatialParams) -> Verdict | Asking:
    sites = _sites(evidence, params)
    if params.rule == "published":
        return _published(evidence, sites, params)
    if params.rule == "shift":
        return Verdict(_all_shifted(evidence, sites, params))
    return Verdict(_decided(evidence, sites, params))


def _gamma(evidence: ArchiveEvidence, params: SpatialParams) -> float:
    return evidence.policy.shift_gain if params.gamma is None else params.gamma


@dataclasses.dataclass(frozen=True)
class _Site:
    """The cases that share a bias, and those of them that are trusted."""

    given: Sequence[CaseScore]
    trusted: Sequence[CaseScore]
    bias_mm: Mapping[int, float]
    """Class -> how far given labels reach beyond trusted ones, where all trusted cases agree."""


def _sites(evidence: ArchiveEvidence, params: SpatialParams) -> list[_Site]:
    """Return the archive as one site, or as those that `params.site` finds in the case ids."""
    found = []
    for name in sorted({params.site_of(score.case) for score in evidence.scores}):
        given, trusted = (
            [score for score in part if params.site_of(score.case) == name]
            for part in (evidence.scores, evidence.trusted)
        )
        bias_mm = label_bias_mm(given, trusted, evidence.spacing_mm, evidence.policy)
        found.append(_Site(given, trusted, bias_mm))
    return found


def _all_shifted(
    evidence: ArchiveEvidence, sites: Sequence[_Site], params: SpatialParams
) -> dict[str, CaseDecision]:
    """Return the decision that undoes the mean bias of each site in all of its cases."""
    found, gamma = {}, _gamma(evidence, params)
    for site in sites:
        for score in site.given:
            classes = dict.fromkeys(score.classes, Decision(Keep(), _NO_BIAS))
            for channel, bias_mm in site.bias_mm.items():
                unit = fine_voxel_mm(evidence.spacing_mm[score.case])
                if gamma * abs(bias_mm) >= LEAST_SHIFT_VOX * unit:
                    classes[channel] = _shift(bias_mm, unit, site, gamma)
            found[score.case] = CaseDecision(classes)
    return found


def _decided(
    evidence: ArchiveEvidence, sites: Sequence[_Site], params: SpatialParams
) -> dict[str, CaseDecision]:
    """Return the policy's decisions, with the shift of those cases that look as trusted ones do."""
    policy = evidence.policy.model_copy(update={"shift_gain": _gamma(evidence, params)})
    # Where only some cases share the bias of the trusted ones, the policy tells which.
    mixed = two_ways(evidence.scores, policy, evidence.trusted)
    shared = any(site.bias_mm for site in sites)
    if shared and not mixed and off_centre(evidence.scores, evidence.trusted, policy):
        enough = min(len(evidence.trusted), policy.min_trusted)
        policy = policy.model_copy(update={"min_trusted": enough})
    decided = decide(evidence.scores, policy, trusted=evidence.trusted)
    shifted = _all_shifted(evidence, sites, params)
    found = {case: dict(one.classes) for case, one in decided.items()}
    for site in sites:
        for channel in _learnt(evidence, set(site.bias_mm) - set(mixed), policy):
            for case in like_trusted(site.given, site.trusted, channel, policy):
                mine = shifted[case].classes[channel]
                if isinstance(mine.edit, Shift) and _may_shift(found[case][channel], mine, policy):
                    found[case][channel] = mine
    return {case: CaseDecision(classes) for case, classes in found.items()}


def _learnt(
    evidence: ArchiveEvidence, channels: Collection[int], policy: PolicyParams
) -> list[int]:
    """Return the classes that the networks know well enough to say which cases look alike."""
    return [
        channel
        for channel in sorted(channels)
        if is_learnt(of_key(evidence.scores, channel), of_key(evidence.trusted, channel), policy)
    ]


def _may_shift(decided: Decision, shift: Decision, policy: PolicyParams) -> bool:
    """Tell whether the bias of trusted cases explains a case that the policy found nothing else in.

    A rough outline, or one that the label lacks, is not made right by a shift.
    """
    otherwise = isinstance(decided.edit, Replace | Fill)
    return not otherwise and abs(shift.shift_vox) <= policy.max_shift_vox


def _shift(bias_mm: float, unit_mm: float, site: _Site, gamma: float) -> Decision:
    why = f"given labels are {bias_mm:+.2f} mm off in {len(site.trusted)} trusted cases"
    amount = gamma * bias_mm / unit_mm
    return Decision(Shift(amount), why)


def _published(evidence: ArchiveEvidence, sites: Sequence[_Site], params: SpatialParams) -> Asking:
    delta_mm: dict[str, tuple[float, ...]] = {}
    heights: dict[str, list[float]] = {}
    for site in sites:
        mine = _delta_mm(evidence, site, params)
        delta_mm |= dict.fromkeys((score.case for score in site.given), mine)
        furthest_mm = max(map(abs, mine))
        due: dict[str, dict[str, float]] = {
            s.case: {}
            for s in site.given
            if furthest_mm >= LEAST_SHIFT_VOX * fine_voxel_mm(evidence.spacing_mm[s.case])
        }
        answers = yield CaseQuery(ShellLook(mine), due)
        heights |= {case: shell_heights(answer, params.b) for case, answer in answers.items()}
    decisions = {
        s.case: _replaced(s, delta_mm[s.case], heights.get(s.case)) for s in evidence.scores
    }
    values: dict[str, dict[str, Any]] = {case: {"height": b} for case, b in heights.items()}
    for case in values if params.site else ():
        values[case]["delta_mm"] = delta_mm[case]
    return Verdict(
        decisions=decisions,
        chosen=_chosen(sites, delta_mm, params),
        revision=Revision(BiasReviser(_furthest(delta_mm.values())), values),
    )


def _delta_mm(evidence: ArchiveEvidence, site: _Site, params: SpatialParams) -> tuple[float, ...]:
    bias_mm = prediction_bias_mm(site.trusted, evidence.spacing_mm, evidence.policy)
    gamma = _gamma(evidence, params)
    return tuple(gamma * bias_mm.get(c, 0.0) for c in range(evidence.totals.classes))


def _furthest(delta_mm: Iterable[tuple[float, ...]]) -> tuple[float, ...]:
    """Return, per channel, the delta of the site that has the largest."""
    return tuple(max(one, key=abs) for one in zip(*delta_mm, strict=True))


def _chosen(
    sites: Sequence[_Site], delta_mm: Mapping[str, tuple[float, ...]], params: SpatialParams
) -> dict[str, float]:
    found: dict[str, float] = {}
    for site in sites:
        case = site.given[0].case
        name = f"delta_mm[{params.site_of(case)}]" if params.site else "delta_mm"
        found |= {f"{name}[{c}]": delta for c, delta in enumerate(delta_mm[case]) if c}
    return found


def _replaced(
    score: CaseScore, delta_mm: Sequence[float], heights: Sequence[float] | None
) -> CaseDecision:
    keep = Decision(Keep(), "the predicted boundary has no bias that moves a voxel")
    classes = dict.fromkeys(score.classes, keep)
    for channel in score.classes:
        if heights is not None and heights[channel] > 0:
            why = f"predicted boundary {-delta_mm[channel]:+.2f} mm off trusted ones"
            classes[channel] = Decision(Revise(Reason.BIAS), why)
    return CaseDecision(classes)


def _voters(params: SpatialParams) -> Voters:
    # Without networks the given label stands for the prediction that trusted ones are held against.
    return Voters(members=0 if params.rule == "shift" else params.members)


SPATIAL = Method("spatial", SpatialParams, _voters, _policy, needs_trusted=True)
