"""Confident learning (Northcutt et al., JAIR 2021) on out-of-fold predictions, as cleanlab does it.

`rule: cleanlab`, the published form for segmentation (cleanlab 2.9): t_k is the mean p(given) of
class k, n counts the voxels that are confidently predicted as another class, and of the n voxels of
lowest p(given) in the archive those with another prediction take it. Everything comes from the
histograms of the one propose pass, so p is known in steps of 1/256: n counts from the first step
that reaches t_k, and the cut is the step that flags nearest to n voxels.
`benchmarks/confident_learning.py` does the same exactly, on blocks of probabilities.

One n for all classes lets large organs swamp small ones, and flags voxels in clean cases too.
`rule: default` therefore decides by case first (`policy.default.decide`), and reports the
thresholds.
"""

from typing import Literal

import numpy as np
from pydantic.dataclasses import dataclass

from raysegclean.evidence.case_scores import Kind
from raysegclean.evidence.stats import KINDS, PROB_SCALE, CaseStats
from raysegclean.evidence.voxel_evidence import LEVELS, threshold_level
from raysegclean.methods.base import ArchiveEvidence, Method, Verdict, Voters
from raysegclean.methods.params import STRICT, Count, NetworkParams
from raysegclean.policy.decisions import CaseDecision, Decision
from raysegclean.policy.edits import Replace, ReplaceBelow

__all__ = ["CONFIDENT", "ConfidentParams", "count_issues", "cut_level", "mean_self_confidence"]


@dataclass(frozen=True, config=STRICT)
class ConfidentParams(NetworkParams):
    """Settings of confident learning."""

    members: Count = 2
    rule: Literal["default", "cleanlab"] = "default"


def mean_self_confidence(totals: CaseStats) -> list[float]:
    """Return t per channel: the mean p(given) of its voxels; NaN for a channel without any."""
    pairs = zip(totals.given_prob.tolist(), totals.given_vox.tolist(), strict=True)
    return [total / (voxels * PROB_SCALE) if voxels else float("nan") for total, voxels in pairs]


def count_issues(totals: CaseStats, thresholds: list[float]) -> int:
    """Return n: voxels with another prediction whose probability reaches that class's threshold.

    A class that nobody was given has no threshold: every prediction of it counts.
    """
    rows = dict(zip(KINDS, totals.disagreement, strict=True))
    by_candidate = rows[Kind.ADDED] + rows[Kind.SWAPPED]
    by_candidate[0] = rows[Kind.REMOVED].sum(axis=0)
    # A network that is sure of a class has a threshold within the last step, which counts whole.
    least = [0 if np.isnan(t) else min(threshold_level(t), LEVELS - 1) for t in thresholds]
    return int(sum(counts[level:].sum() for counts, level in zip(by_candidate, least, strict=True)))


def cut_level(totals: CaseStats, wanted: int) -> int:
    """Return the level of p(given) below which nearest to `wanted` voxels lie; ties: the lower."""
    below = np.concatenate([[0], totals.score.sum(axis=(0, 1)).cumsum()])
    return int(np.abs(below - wanted).argmin())


def _policy(evidence: ArchiveEvidence, params: ConfidentParams) -> Verdict:
    totals = evidence.totals
    thresholds = mean_self_confidence(totals)
    chosen = {f"t[{c}]": t for c, t in enumerate(thresholds) if not np.isnan(t)}
    if params.rule == "default":
        return Verdict(evidence.judged(params.confidence), chosen)
    wanted = count_issues(totals, thresholds)
    level = cut_level(totals, wanted)
    below = level / LEVELS
    voxelwise = Decision(Replace(), f"p of the given label below {below:.3f}")
    classes = dict.fromkeys(range(1, totals.classes), voxelwise)
    decision = CaseDecision(classes, ReplaceBelow(below) if level else None)
    chosen |= {"issues": wanted, "cut": below}
    return Verdict({s.case: decision for s in evidence.scores}, chosen)


def _voters(params: ConfidentParams) -> Voters:
    return Voters(members=params.members, score="given_prob" if params.rule == "cleanlab" else "")


CONFIDENT = Method("confident", ConfidentParams, _voters, _policy)
