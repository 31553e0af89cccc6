"""A weak witness: coarse maps of where classes are, held against the labels of a whole archive.

A map that was learnt without outlines cannot correct a label, but it can say where a structure must
be. Each measure is compared with the archive's own distribution, fold by fold, because maps of one
network share a bias:

- the share of the map that lies inside the label: a missing part, or a label elsewhere, lowers it;
- the share of the label that the map covers: a label elsewhere lowers it;
- the size of the map of a class that the label lacks.

Guaranteed: judgements depend on counts alone, not on the order of cases. Not guaranteed: anything
in an archive where most labels of a class are wrong.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log

import numpy as np

from raysegclean.evidence.case_scores import CaseScore, ClassScore
from raysegclean.evidence.robust import median_and_sd
from raysegclean.policy.decisions import CaseDecision, Decision
from raysegclean.policy.edits import Keep, NotJudged, Review

__all__ = ["Localisation"]

_LEAST_SD_LOGITS = 0.3
_LEAST_COVER = 0.3
"""Share of its label that the map of a learnt class covers in half of the cases."""


@dataclass(frozen=True)
class _Usual:
    """How the cases of one fold look in one class; shares as log-odds."""

    inside: tuple[float, float]
    """Centre and sd of the share of the map that is inside the label."""
    cover: tuple[float, float]
    """The same of the share of the label that the map covers."""
    predicted_vox: float
    """Median size of the map in cases that hold the class."""
    learnt: bool
    """Whether the map usually looks at the label at all."""


@dataclass(frozen=True)
class Localisation:
    """What the archive says of itself, and the judgement of a case by it."""

    sds: float
    """A case stands out by this many robust sds."""
    found: float
    """A class that the label lacks is missed when its map is this share of the usual one."""
    min_cases: int
    usual: Mapping[tuple[int, int], _Usual]
    """By fold and class; classes that too few cases hold are missing."""

    @classmethod
    def of(
        cls, scores: Sequence[CaseScore], *, sds: float, found: float, min_cases: int
    ) -> "Localisation":
        """Measure each class in each fold, or in the archive where folds are small."""
        usual = {}
        for channel in sorted({c for score in scores for c in score.classes}):
            holders = [s for s in scores if channel in s.classes and s.classes[channel].given_vox]
            for fold in sorted({score.fold for score in scores}):
                mine = [score for score in holders if score.fold == fold]
                chosen = mine if len(mine) >= min_cases else holders
                if len(chosen) >= min_cases:
                    usual[fold, channel] = _measured([s.classes[channel] for s in chosen])
        return cls(sds, found, min_cases, usual)

    def has_learnt(self, fold: int, channel: int) -> bool:
        """Return whether a fold's map looks at a class, as far as that can be told."""
        usual = self.usual.get((fold, channel))
        return usual is None or usual.learnt

    def judge(self, score: CaseScore) -> CaseDecision:
        """Return a decision per class; none edits."""
        return CaseDecision(
            {channel: self._judge_class(score, channel) for channel in score.classes}
        )

    def _judge_class(self, score: CaseScore, channel: int) -> Decision:
        usual, mine = self.usual.get((score.fold, channel)), score.classes[channel]
        if usual is None:
            return Decision(NotJudged(), f"fewer than {self.min_cases} cases hold the class")
        if not usual.learnt:
            return Decision(NotJudged(), "the map has not learnt the class")
        if not mine.given_vox:
            return self._judge_absent(mine, usual)
        off_inside = _sds_below(_inside(mine), usual.inside)
        off_cover = _sds_below(_cover(mine), usual.cover)
        suspicion = _suspicion(max(off_inside, off_cover), self.sds)
        if suspicion <= 0.5:
            return Decision(Keep(), "where the map looks", posterior=suspicion)
        if not mine.both_vox:
            why = "labelled where the map never looks"
        elif off_cover >= off_inside:
            share = mine.both_vox / mine.given_vox
            why = f"the map covers only {share:.0%} of the label, fewer than in other cases"
        else:
            share = mine.both_vox / max(mine.predicted_vox, 1)
            why = f"only {share:.0%} of the map lies in the label: a part is missing or elsewhere"
        return Decision(Review(), why, posterior=suspicion)

    def _judge_absent(self, mine: ClassScore, usual: _Usual) -> Decision:
        share = mine.predicted_vox / max(usual.predicted_vox, 1.0)
        suspicion = _suspicion(share, self.found)
        if suspicion <= 0.5:
            return Decision(Keep(), "neither labelled nor found", posterior=suspicion)
        why = f"not labelled, but the map finds it ({share:.0%} of its usual size)"
        return Decision(Review(), why, posterior=suspicion)


def _measured(scores: Sequence[ClassScore]) -> _Usual:
    return _Usual(
        inside=_centre_and_sd([_inside(s) for s in scores]),
        cover=_centre_and_sd([_cover(s) for s in scores]),
        predicted_vox=float(np.median([s.predicted_vox for s in scores])),
        learnt=float(np.median([s.both_vox / s.given_vox for s in scores])) >= _LEAST_COVER,
    )


def _centre_and_sd(values: Sequence[float]) -> tuple[float, float]:
    centre, sd = median_and_sd(np.array(values, np.float64))
    return centre, max(sd, _LEAST_SD_LOGITS)


def _inside(score: ClassScore) -> float:
    return _log_odds(score.both_vox, score.predicted_vox)


def _cover(score: ClassScore) -> float:
    return _log_odds(score.both_vox, score.given_vox)


def _log_odds(part: int, whole: int) -> float:
    return log((part + 1) / (whole - part + 1))


def _sds_below(value: float, usual: tuple[float, float]) -> float:
    return max(0.0, (usual[0] - value) / usual[1])


def _suspicion(amount: float, limit: float) -> float:
    """Return a number from 0 to 1 by which cases are ranked; above one half beyond the limit."""
    return amount / (amount + limit)
