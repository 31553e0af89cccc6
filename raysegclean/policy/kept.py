"""Classes that stay as given: found right, in doubt, or not judged. A pure function of the scores.

`keep` is a finding: networks that have learnt the class, and did not train on the case, agree with
its label as well as with most others, and no check finds anything odd. Where they agree by far less
than with the others, or a check names the class, it is in doubt: a person should look, and no voxel
changes. What a check finds odd, but not grave, is no doubt where the networks draw the class as the
label does: patients differ. Where they have not learnt the class, or too few cases have it, it is
not judged.

Not seen: an error that leaves the agreement within what right labels reach.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from raysegclean.evidence.case_scores import CaseScore, ClassScore, classes_of, of_key
from raysegclean.policy.decisions import CaseDecision, Decision
from raysegclean.policy.edits import Keep, NotJudged
from raysegclean.policy.omitted import usual_sizes
from raysegclean.policy.outlier_cases import is_learnt
from raysegclean.policy.params import PolicyParams

__all__ = [
    "Found",
    "UsualLabel",
    "agreeing",
    "in_doubt",
    "judged_kept",
    "least_agreements",
    "usual_labels",
]

Found = Mapping[str, Mapping[int, str]]
"""Case -> channel -> what the checks found, in words."""
Classes = Mapping[str, frozenset[int]]
"""Case -> channels."""


def judged_kept(
    decisions: Mapping[str, CaseDecision],
    scores: Sequence[CaseScore],
    usual: "Mapping[int, UsualLabel]",
) -> dict[str, CaseDecision]:
    """Return the decisions with every class that is kept found right, in doubt or not judged."""
    mine = {score.case: score for score in scores}
    out = dict(decisions)
    for case in decisions.keys() & mine.keys():
        changed = {
            c: usual[c].judged(one, mine[case].classes[c])
            for c, one in decisions[case].classes.items()
            if isinstance(one.edit, Keep) and c in mine[case].classes
        }
        out[case] = decisions[case].but(changed)
    return out


def in_doubt(
    decisions: Mapping[str, CaseDecision], found: Found, overruled: Classes | None = None
) -> dict[str, CaseDecision]:
    """Return the decisions with a doubt about every class that stays as given and is in `found`.

    What is `overruled` is told and no doubt.
    """
    out = dict(decisions)
    for case, words in found.items():
        before, known = out.get(case, CaseDecision()), (overruled or {}).get(case, frozenset())
        changed = {}
        for c, text in words.items():
            one = before.classes.get(c, Decision(NotJudged(), ""))
            if one.stays:
                told = replace(one, why=f"{one.why}, though {text}")
                changed[c] = told if c in known else one.doubted(text)
        out[case] = before.but(changed)
    return out


def agreeing(
    scores: Sequence[CaseScore], usual: "Mapping[int, UsualLabel]"
) -> dict[str, frozenset[int]]:
    """Return by case the classes in which networks agree with its label as with most others."""
    return {
        score.case: frozenset(
            c
            for c, one in score.classes.items()
            if not usual[c].unjudged and one.agreement >= usual[c].fair
        )
        for score in scores
    }


def least_agreements(usual: "Mapping[int, UsualLabel]") -> dict[int, float]:
    """Return, by class that the networks have learnt, the least agreement of a right label."""
    return {c: one.least for c, one in usual.items() if not one.unjudged}


def usual_labels(
    scores: Sequence[CaseScore], trusted: Sequence[CaseScore], params: PolicyParams
) -> "dict[int, UsualLabel]":
    """Return what is usual for each class."""
    return {
        c: UsualLabel.of(of_key(scores, c), of_key(trusted, c), params) for c in classes_of(scores)
    }


@dataclass(frozen=True)
class UsualLabel:
    """What is usual for one class."""

    unjudged: str
    """Why nothing can be told of the class; empty where something can."""
    agreement: float
    """The middle one of the agreements with labels that have the class."""
    least: float
    """Below this no right label is."""
    fair: float
    """From this on a label is drawn as most others are, whatever is odd about it."""
    size_vox: float
    """Less is a part of the structure, or a speck."""

    @classmethod
    def of(
        cls, scores: Sequence[ClassScore], trusted: Sequence[ClassScore], params: PolicyParams
    ) -> "UsualLabel":
        """Return it from the scores of one class, of given and of trusted labels."""
        agreed = [score.agreement for score in scores if score.given_vox]
        middle = float(np.median(agreed)) if agreed else float("nan")
        unjudged = ""
        if len(agreed) < params.min_cases:
            unjudged = f"only {len(agreed)} cases have this class, {params.min_cases} are needed"
        elif not is_learnt(scores, trusted, params):
            unjudged = (
                "the networks have not learnt this class: they agree with half of its labels by "
                f"{middle:.2f} or less"
            )
        least = max(params.doubt_share * middle, 1 - params.doubt_misfit * (1 - middle))
        least = min(least, middle - params.doubt_loss)
        given = np.array([score.given_vox for score in scores], np.float64)
        fair = 1 - params.odd_misfit * (1 - middle)
        return cls(unjudged, middle, least, fair, usual_sizes(given, params)[0])

    def judged(self, kept: Decision, score: ClassScore) -> Decision:
        """Return what is said of a class that stays as given."""
        if self.unjudged:
            return replace(kept, edit=NotJudged(), why=self.unjudged)
        small = max(score.given_vox, score.predicted_vox) < self.size_vox
        if small and not score.given_vox:
            return replace(kept, why="the case has nothing of this class, for the networks too")
        if score.agreement >= self.least:
            why = f"the networks agree by {score.agreement:.2f} (others {self.agreement:.2f})"
            return replace(kept, why=why)
        if small:
            why = "less of this class than any other case has: too little to judge"
            return replace(kept, edit=NotJudged(), why=why)
        return kept.doubted(disagreement(score.agreement, self.agreement))


def disagreement(agreement: float, others: float) -> str:
    """Return in words that networks agree with a label by far less than with others."""
    return f"the networks agree by only {agreement:.2f} (others {others:.2f})"
