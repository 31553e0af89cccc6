"""How well the quality score of given labels ranks the cases of an archive, from stored evidence.

Spearman's rank correlation with the Dice of the given labels to the truth, over all cases; and how
often a case with a gross error scores lower than a right one (area under the ROC curve). A case
scores the mean over its classes, as `raysegclean rank` says it. What the checks and the looks at
whole cases add in a run is not in the evidence, and not here. Right labels all have Dice 1, so that
no score that tells them apart reaches a correlation of 1: `ceiling` is what the true order reaches,
with right labels in any order.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata, spearmanr

from raysegclean.evidence.case_scores import scores_of
from raysegclean.evidence.robust import Values
from raysegclean.policy.kept import least_agreements, usual_labels
from raysegclean.policy.params import PolicyParams
from raysegclean.policy.quality import qualities
from raysegclean.runs.replay import decided

__all__ = ["ranking", "scored"]

CLEAN = "clean"
Row = Mapping[str, Any]


def scored(evidence: Sequence[Row]) -> dict[str, float]:
    """Return the quality score of each case of which anything is known, from rows of evidence."""
    scores, trusted = scores_of(evidence), scores_of(evidence, "trusted")
    params = PolicyParams()
    learnt = sorted(least_agreements(usual_labels(scores, trusted, params)))
    found = qualities(decided(scores, trusted, params), scores, learnt)
    return {
        case: sum(one.expected for one in mine.values()) / len(mine)
        for case, mine in found.items()
        if mine
    }


def ranking(rows: Sequence[Row], score_of: Mapping[str, float]) -> dict[str, float]:
    """Return `spearman`, its `ceiling` and the `gross_auc` of the cases that have a score."""
    known = [row for row in rows if row["case"] in score_of]
    score = np.array([score_of[row["case"]] for row in known])
    given = np.array([row["given"] for row in known])
    right = np.array([row["kind"] == CLEAN for row in known])
    gross = np.array([row["gross"] for row in known])
    any_order = np.argsort(np.argsort(given, kind="stable"), kind="stable")
    return {
        "spearman": float(spearmanr(score, given).statistic),
        "ceiling": float(spearmanr(any_order, given).statistic),
        "gross_auc": _auc(-score[gross], -score[right]),
    }


def _auc(positive: Values, negative: Values) -> float:
    """Return how often a positive is above a negative; ties count half."""
    if not positive.size or not negative.size:
        return float("nan")
    ranks = rankdata(np.concatenate([positive, negative]))[: positive.size]
    least = positive.size * (positive.size + 1) / 2
    return float((ranks.sum() - least) / (positive.size * negative.size))
