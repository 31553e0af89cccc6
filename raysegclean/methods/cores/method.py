"""CORES (Cheng et al., ICLR 2021): a confident network sieves out the labels that it disbelieves.

While the networks train, `methods.cores.hook` subtracts from the loss what any other label would
cost, drawn from a prior of labels, which makes predictions confident; then it leaves out the voxels
whose given label is less probable than the classes on average (the sieve), anew at every step. What
was sieved out is left to a consistency loss: the network must say the same of a disturbed image
there.

`rule: published` settles the sieve on the archive: voxels that do not pass take the network's class
(`relabel: true`), or the cases are only ranked by their score (`relabel: false`). `rule: default`
asks the policy first which cases are wrong, and how. In training it only sieves out what the
network disbelieves strongly, without regulariser and consistency: in short trainings on hippocampus
with half of the outlines moved, the published form learnt worse than a plain network, regulariser
and sieve together too, and this about as well.

Repaired for segmentation: the average runs over the given class, the predicted class and background
only, because over many classes it is so low that everything passes; the prior is balanced over
classes, because background would be all of it; it is capped, because a prior that outweighs the
cross-entropy unlearns the label (with two classes the published beta of 2 cancels it); and a class
is not sieved while most of it would go, because then it has not been learnt yet. The published
division of the learning rate by 1 + beta, which undoes that the loss grows with beta, is left out:
AdamW is indifferent to the scale of the loss, but for the clipping of gradients.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from raysegclean.evidence.stats import CaseStats
from raysegclean.evidence.voxel_evidence import LEVELS
from raysegclean.methods.base import ArchiveEvidence, Method, Verdict, Voters
from raysegclean.methods.params import STRICT, NetworkParams, NotNegative, Share
from raysegclean.nets.hooks import HookSpec
from raysegclean.policy.decisions import CaseDecision, Decision
from raysegclean.policy.edits import Keep, Replace, ReplaceBelow, Review

__all__ = ["CORES", "CoresParams", "sieve_score"]

PASSES = 0.5
"""Level of the stored margin from which a voxel passes, as published."""
_PUBLISHED = {"beta": 2.0, "level": PASSES, "consistency_from": 0.5}
_GENTLE = {"beta": 0.0, "level": 0.1, "consistency_from": 1.0}
"""What null stands for in the default rule."""


@dataclass(frozen=True, config=STRICT)
class CoresParams(NetworkParams):
    """Settings of CORES."""

    rule: Literal["default", "published"] = "default"
    relabel: bool = True
    """Whether the published rule relabels what it sieves out, or only ranks the cases."""
    beta: NotNegative | None = None
    """Weight of the confidence regulariser from 40 % of the training on; null: 2 in the published
    rule, 0 in the default one."""
    sieve_from: Share = 0.4
    """Share of the training after which voxels are left out; 1: never."""
    level: Annotated[float, Field(gt=0, le=PASSES)] | None = None
    """Level of the margin below which a voxel is left out, from 0 to 0.5, which is any given class
    that is less probable than the average; null: 0.5 in the published rule, 0.1 in the default one
    (with two classes, a probability below 1 in 82)."""
    consistency: NotNegative = 0.4
    """Weight of the consistency on voxels that were left out."""
    consistency_from: Share | None = None
    """Share of the training after which it counts, 1: never; it doubles the cost of a step. Null:
    0.5 in the published rule, 1 in the default one."""
    review: Share = 0.1
    """Share of cases, the worst by score, that go to a person where nothing is relabelled."""

    def decided(self, name: str) -> float:
        """Return `beta`, `level` or `consistency_from`, with null decided by the rule."""
        value: float | None = getattr(self, name)
        usual = _PUBLISHED if self.rule == "published" else _GENTLE
        return usual[name] if value is None else value


def sieve_score(stats: CaseStats) -> float:
    """Return how little a case's label is believed: the mean of CE - mean CE over its foreground.

    Counted over voxels that are foreground in label or prediction, from the stored margins, each
    taken at the middle of its level. Above 0 the sieve would drop the case. NaN without foreground.
    """
    counts = stats.score[:, 1:].sum(axis=(0, 1)) + stats.score[1, 0]
    level = (np.arange(LEVELS) + 0.5) / LEVELS
    margin = np.log(level / (1 - level))
    return float(-(counts * margin).sum() / counts.sum()) if counts.sum() else float("nan")


def _voters(params: CoresParams) -> Voters:
    hook = HookSpec.of(
        "cores",
        beta=params.decided("beta"),
        level=params.decided("level"),
        sieve_from=params.sieve_from,
        consistency=params.consistency,
        consistency_from=params.decided("consistency_from"),
    )
    return Voters(members=params.members, hook=hook, score="margin")


def _policy(evidence: ArchiveEvidence, params: CoresParams) -> Verdict:
    if params.rule == "default":
        return Verdict(evidence.judged(params.confidence))
    classes = evidence.totals.classes
    if not params.relabel:
        return Verdict(_ranked(evidence.stats, params.review, classes))
    take = Decision(Replace(), "rule published: sieved out voxels take the prediction")
    rule = ReplaceBelow(params.decided("level"))
    decision = CaseDecision(dict.fromkeys(range(1, classes), take), rule)
    return Verdict({s.case: decision for s in evidence.scores})


def _ranked(stats: Mapping[str, CaseStats], share: float, classes: int) -> dict[str, CaseDecision]:
    """Return decisions that change nothing: the worst `share` of cases goes to a person."""
    scores = {case: sieve_score(one) for case, one in stats.items()}
    order = sorted(scores, key=lambda case: (-np.nan_to_num(scores[case], nan=-np.inf), case))
    worst = set(order[: int(np.ceil(share * len(order)))])
    found = {}
    for place, case in enumerate(order, 1):
        why = f"sieve score {scores[case]:+.2f}, place {place} of {len(order)}"
        one = Decision(Review() if case in worst else Keep(), why)
        found[case] = CaseDecision(dict.fromkeys(range(1, classes), one))
    return found


CORES = Method("cores", CoresParams, _voters, _policy)
