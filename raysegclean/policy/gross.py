"""Gross errors: which cases are looked at as a whole, and what is proved of them; pure functions.

An error is proved when the label without it agrees with networks that did not learn from it as
labels of the archive usually do, after it agreed far less, and no other error of the whole label
explains it nearly as well. Only classes that the networks have learnt say anything. What they
understand badly themselves is not proved: without any error it agrees no better. An error that is
likely and not proved goes to a person, with its name.

Not guaranteed: of a blob that they do not see, networks may be sure and wrong. It must be a good
part of the class, and they surer than they were seen to be when they were wrong.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from raysegclean.evidence.case_scores import CaseScore, classes_of, of_key
from raysegclean.evidence.robust import median_and_sd
from raysegclean.policy.decisions import CaseDecision, Decision
from raysegclean.policy.edits import (
    Cut,
    Displace,
    Exchange,
    Gross,
    Keep,
    Mirror,
    Region,
    Review,
    WholeLabel,
)
from raysegclean.policy.gross_look import Explanation, GrossLook
from raysegclean.policy.outlier_cases import is_learnt
from raysegclean.policy.params import PolicyParams

__all__ = [
    "Usual",
    "all_explained",
    "explained",
    "not_gross",
    "suspects",
    "usual_agreement",
    "with_gross",
]

_PROMISE = 0.05
"""Argued: a repair that ends up this much worse than was seen (Dice) is not the one that was."""
_AXES = "zyx"


@dataclass(frozen=True)
class Usual:
    """How well labels of one class agree with the networks that judge them (Dice)."""

    median: float
    sd: float


def usual_agreement(
    scores: Sequence[CaseScore], params: PolicyParams, trusted: Sequence[CaseScore] = ()
) -> dict[int, dict[int, Usual]]:
    """Return by fold and class what is usual, for classes that the networks have learnt.

    A fold of fewer than `min_fold_cases` cases is judged as the archive is.
    """
    found: dict[int, dict[int, Usual]] = {s.fold: {} for s in scores}
    for c in classes_of(scores):
        mine = of_key(scores, c)
        if not is_learnt(mine, of_key(trusted, c), params):
            continue
        folds = np.array([s.fold for s in scores])
        agreement = np.array([one.agreement if one.given_vox else np.nan for one in mine])
        for fold, known in found.items():
            own = agreement[folds == fold]
            enough = np.isfinite(own).sum() >= params.min_fold_cases
            values = own if enough else agreement
            if np.isfinite(values).sum() >= params.min_cases:
                known[c] = Usual(*median_and_sd(values))
    return found


def suspects(
    scores: Sequence[CaseScore], usual: Mapping[int, Mapping[int, Usual]], params: PolicyParams
) -> list[str]:
    """Return the cases that agree with the networks far less than usual in some class."""
    return [
        s.case
        for s in scores
        if any(
            one.agreement < usual[s.fold][c].median - _slack(usual[s.fold][c], params)
            for c, one in s.classes.items()
            if c in usual[s.fold] and one.union_vox
        )
    ]


def _slack(usual: Usual, params: PolicyParams) -> float:
    return max(params.min_suspect_gap, params.suspect_sds * usual.sd)


def explained(
    score: CaseScore,
    look: GrossLook,
    usual: Mapping[int, Usual],
    params: PolicyParams,
    called: Mapping[int, str],
) -> CaseDecision:
    """Return what is proved of one case, and what is likely: edits and reviews of some classes.

    called: channel -> what people call the class.
    """
    case = _Case(look, usual, params, called)
    whole = [e for e in look.found if any(isinstance(v, WholeLabel) for v in e.edits.values())]
    decided: dict[int, Decision] = {}
    for one in sorted(whole, key=case.lag, reverse=True):
        likely = case.gain(one) >= params.min_gross_gain and not decided.keys() & one.edits.keys()
        if likely and case.is_usual(one) and not case.rivals(one, whole):
            decided |= case.proved(one, score.classes)
    parts = [e for e in look.found if e not in whole]
    # What lies beyond a cut is a blob of every class that it goes through.
    for one in sorted(parts, key=lambda part: (_is_cut(part), case.gain(part)), reverse=True):
        if not decided.keys() & one.edits.keys() and case.part_is_proved(one):
            decided |= case.proved(one, score.classes)
    for one in sorted(look.found, key=case.gain, reverse=True):
        if not decided.keys() & one.edits.keys() and case.is_likely(one):
            why = f"looks {case.told(one)}; look whether it is, it is not sure enough to repair"
            decided |= {c: Decision(Review(), why) for c in one.edits}
    decision = CaseDecision(decided)
    return decision.but(case.others(score, decided)) if decision.edits.of(Gross) else decision


def all_explained(
    scores: Sequence[CaseScore],
    looks: Mapping[str, GrossLook],
    usual: Mapping[int, Mapping[int, Usual]],
    params: PolicyParams,
    called: Mapping[int, str],
) -> dict[str, CaseDecision]:
    """Return what is proved or likely of the cases that were looked at, where anything is."""
    found = {
        score.case: explained(score, looks[score.case], usual[score.fold], params, called)
        for score in scores
        if score.case in looks
    }
    return {case: one for case, one in found.items() if one.classes}


def not_gross(
    scores: Sequence[CaseScore], gross: Mapping[str, CaseDecision]
) -> tuple[CaseScore, ...]:
    """Return the scores without the cases in which a gross error is proved."""
    wrong = {case for case, one in gross.items() if one.edits.of(Gross)}
    return tuple(score for score in scores if score.case not in wrong)


@dataclass(frozen=True)
class _Case:
    """What was seen of a case, against what is usual."""

    look: GrossLook
    usual: Mapping[int, Usual]
    params: PolicyParams
    called: Mapping[int, str]

    def _classes(self, one: Explanation) -> list[int]:
        return [c for c in one.edits if c in one.dice and c in self.usual]

    def _mean(self, values: Iterable[float], nothing: float) -> float:
        known = list(values)
        return sum(known) / len(known) if known else nothing

    def lag(self, one: Explanation) -> float:
        """Return by how much the label would agree better than usual; mostly negative."""
        classes = self._classes(one)
        return self._mean((one.dice[c] - self.usual[c].median for c in classes), -1.0)

    def gain(self, one: Explanation) -> float:
        """Return by how much the label would agree better than as given."""
        given = self.look.given
        return self._mean((one.dice[c] - given.get(c, 0.0) for c in self._classes(one)), 0.0)

    def is_usual(self, one: Explanation) -> bool:
        """Tell whether the label would agree as labels usually do."""
        return self.lag(one) >= -self.params.max_gross_lag

    def rivals(self, one: Explanation, whole: Sequence[Explanation]) -> bool:
        """Tell whether another error of the whole label explains these classes nearly as well."""
        return any(self._nearly(one, other) for other in whole if other is not one)

    def _nearly(self, one: Explanation, other: Explanation) -> bool:
        shared = [c for c in self._classes(one) if c in self._classes(other)]
        mine, theirs = (self._mean((e.dice[c] for c in shared), -1.0) for e in (one, other))
        return bool(shared) and theirs > mine - self.params.min_gross_lead

    def part_is_proved(self, one: Explanation) -> bool:
        """Tell whether a cut or a blob is all that is wrong with its classes."""
        wanted = self.params.min_gross_gain if _is_cut(one) else self.params.min_suspect_gap
        return (
            self.gain(one) >= wanted
            and one.share >= self.params.min_part_share
            and one.confidence >= self.params.min_part_confidence
            and self.is_usual(one)
        )

    def is_likely(self, one: Explanation) -> bool:
        """Tell whether a person should know of it."""
        is_blob = any(isinstance(edit, Region) for edit in one.edits.values())
        least = self.params.min_suspect_gap if is_blob else self.params.min_gross_gain
        large = one.share >= self.params.min_part_share
        return self.gain(one) >= least and large and self.is_usual(one)

    def proved(self, one: Explanation, classes: Iterable[int]) -> dict[int, Decision]:
        """Return the edits of an explanation; a label that was moved is moved in every class."""
        first = next(iter(one.edits.values()))
        moved = classes if isinstance(first, Mirror | Displace) else ()
        every = {**dict.fromkeys(moved, first), **one.edits}
        return {
            c: Decision(replace(edit, min_fit=self._promise(one, c)), self.told(one))
            for c, edit in every.items()
        }

    def others(self, score: CaseScore, decided: Container[int]) -> dict[int, Decision]:
        """Return what is decided of the other classes of a case with a gross error."""
        found = {}
        for c, one in score.classes.items():
            if c in decided or c not in self.usual or not one.union_vox:
                continue
            known = self.usual[c]
            is_usual = one.agreement >= known.median - self.params.max_gross_lag
            edit = Keep() if is_usual else Review()
            figures = f"the networks agree by {one.agreement:.2f} (others {known.median:.2f})"
            found[c] = Decision(edit, f"another class is grossly wrong; {figures}")
        return found

    def _promise(self, one: Explanation, channel: int) -> float:
        known = channel in one.dice and channel in self.usual
        return max(0.0, one.dice[channel] - _PROMISE) if known else 0.0

    def told(self, one: Explanation) -> str:
        """Return the explanation in words, with its figures."""
        classes = self._classes(one)
        before, after, usual = (
            self._mean(values, 0.0)
            for values in (
                (self.look.given.get(c, 0.0) for c in classes),
                (one.dice[c] for c in classes),
                (self.usual[c].median for c in classes),
            )
        )
        figures = f"agree by {before:.2f}, and by {after:.2f} without that (others {usual:.2f})"
        return f"{_named(one, self.called)}: the networks {figures}"


def _is_cut(one: Explanation) -> bool:
    return any(isinstance(edit, Cut) for edit in one.edits.values())


def _named(one: Explanation, called: Mapping[int, str]) -> str:
    edit = next(iter(one.edits.values()))
    match edit:
        case Exchange():
            return f"exchanged between {', '.join(called[c] for c in sorted(one.edits))}"
        case Mirror():
            return f"mirrored along {_AXES[edit.axis]}"
        case Displace():
            return f"displaced by {tuple(-b for b in edit.by_zyx)} voxels (z y x)"
        case Cut():
            end = "from" if edit.upwards else "up to"
            return f"cut off {end} slice {edit.plane_vox} along {_AXES[edit.axis]}"
        case Region():
            what = "grown too far in" if one.is_added else "short of"
            where = f"{edit.box.shape_zyx} voxels at {edit.box.start_zyx}"
            return f"{what} one place of {where} (z y x)"


def with_gross(
    decisions: Mapping[str, CaseDecision], gross: Mapping[str, CaseDecision]
) -> dict[str, CaseDecision]:
    """Return the decisions with those on gross errors in their place.

    A likely error only speaks where nothing else is done about the class.
    """
    joined = dict(decisions)
    for case, found in gross.items():
        before = joined.get(case, CaseDecision())
        mine = {
            c: one
            for c, one in found.classes.items()
            if not isinstance(one.edit, Review)
            or c not in before.classes
            or not before.classes[c].flagged
        }
        joined[case] = before.but(mine)
    return joined
