"""ADELE (Liu et al., CVPR 2022): correct the labels of a class once it has been learnt.

While the networks train, `methods.adele.hook` follows the IoU of each class with the given labels.
Where the curve bends (`methods.adele.onset`), early learning of that class is over: from then on
its confident predictions replace the given label in what is learnt, from the given label anew at
every step. A second loss asks that the image at other sizes gets the same answer.

`rule: published` does the same to the archive: voxel by voxel, classes that were on at the end of
training, confidence above tau, and only classes that the case's given label holds (the form of the
paper's VOC runs: the new class must be on, the old one need not be). `rule: default` asks the
policy first which cases are wrong, and how, and leaves classes alone that were never on; only the
voxel corrector, which enough trusted cases fit, edits those too.

Repaired: the onset's trimming, the consistency mask (per voxel, not one flag per image), the
targets of correction while training, averaged over the scales, and the classes of the whole case
instead of those of a patch.
"""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from raysegclean.evidence.case_scores import CaseScore, Kind
from raysegclean.methods.adele.hook import other_scales
from raysegclean.methods.base import ArchiveEvidence, Method, Verdict, Voters
from raysegclean.methods.params import STRICT, NetworkParams, NotNegative
from raysegclean.nets.hooks import HookSpec
from raysegclean.policy.decisions import CaseDecision, Decision
from raysegclean.policy.edits import Keep, NotJudged, Replace

__all__ = ["ADELE", "AdeleParams"]

Inner = Annotated[float, Field(gt=0, lt=1)]
_NOT_ON = "its early learning was not over when training ended"


@dataclass(frozen=True, config=STRICT)
class AdeleParams(NetworkParams):
    """Settings of ADELE."""

    rule: Literal["default", "published"] = "default"
    tau: Inner = 0.8
    """Probability above which a prediction corrects a label (0.8 on VOC, 0.7 on SegTHOR)."""
    ratio: Inner = 0.9
    """Share of its first slope that a class's IoU curve must have lost."""
    epochs: Annotated[int, Field(ge=5)] = 40
    """Points of that curve over the whole training."""
    scales: str = "0.7 1"
    """Sizes at which each patch is seen, 1 among them. On one CPU core, patches of 24 x 32 x 24,
    a step costs 1.2 times that of "1" with "0.7 1", and 3.1 times with the paper's "0.7 1 1.5"."""
    consistency: NotNegative = 1.0
    """Weight of the agreement between the scales."""
    rho: Inner = 0.8
    """Mean probability above which a voxel's scales must agree."""

    def __post_init__(self) -> None:
        other_scales(self.scales)


def _voters(params: AdeleParams) -> Voters:
    hook = HookSpec.of(
        "adele",
        tau=params.tau,
        ratio=params.ratio,
        epochs=params.epochs,
        scales=params.scales,
        consistency=params.consistency,
        rho=params.rho,
    )
    return Voters(members=params.members, hook=hook)


def _policy(evidence: ArchiveEvidence, params: AdeleParams) -> Verdict:
    on = {score.case: _on(evidence, score) for score in evidence.scores}
    if params.rule == "published":
        return Verdict({s.case: _published(s, on[s.case], params) for s in evidence.scores})
    decisions = evidence.judged(params.confidence)
    return Verdict({case: _only(one, on[case]) for case, one in decisions.items()})


def _on(evidence: ArchiveEvidence, score: CaseScore) -> frozenset[int]:
    """Return the classes that are on in every network that judged the case.

    Networks that another method trained have no onset; then every class is on.
    """
    reports = evidence.reports.get(score.fold, ())
    onsets = [frozenset(report["onset"]) for report in reports if "onset" in report]
    return frozenset(score.classes).intersection(*onsets)


def _published(score: CaseScore, on: frozenset[int], params: AdeleParams) -> CaseDecision:
    why = f"rule published, confidence above {params.tau}"
    take = Decision(Replace(dict.fromkeys(Kind, params.tau)), why)
    classes = {}
    for channel, one in score.classes.items():
        if channel not in on:
            classes[channel] = Decision(NotJudged(), _NOT_ON)
        elif not one.given_vox:
            classes[channel] = Decision(Keep(), "the given label lacks the class")
        else:
            classes[channel] = take
    return CaseDecision(classes)


def _only(decision: CaseDecision, on: frozenset[int]) -> CaseDecision:
    """Return the decision with classes that are not on left to a person."""
    off = {c: one for c, one in decision.classes.items() if c not in on and one.flagged}
    return decision.held({c: f"{one.why}; {_NOT_ON}" for c, one in off.items()})


ADELE = Method("adele", AdeleParams, _voters, _policy)
