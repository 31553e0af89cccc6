"""The policy: which cases are wrong, how, and what to do about it; a pure function of their scores.

Guaranteed: the decisions depend on the scores alone, not on their order; with fewer cases than
`PolicyParams.min_cases`, or when more than `max_flagged` of the cases look wrong, nothing is
changed, because what most cases share cannot be told from the truth without trusted labels.

Not guaranteed: an error that all cases share (a systematic bias) is invisible here. Scores of
trusted labels (`trusted`) make it visible: they say where a right boundary lies relative to the
network's.

Sources: the default policy is the one measured for this project on 200 hippocampus cases
(docs/results.md); the published form of Co-Seg is Huang et al., arXiv 2102.00523, section 2.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, isfinite

import numpy as np

from raysegclean.errors import ConfigError
from raysegclean.evidence.case_scores import (
    FOREGROUND,
    NEVER,
    CaseScore,
    ClassScore,
    Kind,
    classes_of,
    of_key,
)
from raysegclean.evidence.robust import Values
from raysegclean.policy.annotator_styles import SecondWay, second_ways
from raysegclean.policy.contour_offsets import Flags, Offsets
from raysegclean.policy.contour_roughness import rough_groups
from raysegclean.policy.decisions import CaseDecision, Decision
from raysegclean.policy.edits import Fill, Keep, NotJudged, Replace, Review, Shift
from raysegclean.policy.finding_scope import Speaking
from raysegclean.policy.omitted import elsewhere, forgotten
from raysegclean.policy.outlier_cases import (
    CORRUPTION,
    ROUGHNESS,
    Group,
    excess_threshold,
    find_groups,
    is_learnt,
)
from raysegclean.policy.params import PolicyParams

__all__ = ["decide", "decide_worst", "two_ways"]

_PUBLISHED = 0.5
"""Definition: where the peers of the published Co-Seg agree against a label, they replace it."""


def decide(
    scores: Sequence[CaseScore],
    params: PolicyParams | None = None,
    *,
    trusted: Sequence[CaseScore] = (),
) -> dict[str, CaseDecision]:
    """Return the decision of the default policy for every case.

    (a) Of two ways of drawing the wrong one is moved onto the other (`policy.annotator_styles`).
    (b) Cases that are rough (`policy.contour_roughness`), or form a noisy group by their rate of
    candidates, take the candidates that the group has in excess of the clean cases
    (`outlier_cases.excess_threshold`), and are open to `policy.blending`; a group by corruption
    score alone goes to a person. (c) Where the
    boundary of the foreground, or of one class, lies off the archive's central offset by more than
    max(floor, sds x robust sd), it is shifted back, unless the outline is rough. (d) A class that
    the label lacks, and the networks see at its usual size, is taken from them (`policy.omitted`).
    (e) One that it has nothing of near where they see it goes to a person. (f) All others are kept.
    A class that the networks have not learnt (`outlier_cases.is_learnt`) is not edited at all: its
    cases go to a person. Where they have learnt no more than half of the classes, no candidate is
    taken: what stands out may be their own riddle.

    Args:
        scores: the given label of every case against networks that did not train on it.
        params: thresholds.
        trusted: the same scores of trusted labels instead of given ones, for cases that have one;
            with `min_trusted` of them they set the central offset, so that a bias of the whole
            archive can be seen.

    Returns:
        A decision for every case, by case id. Raises `ConfigError` when an id occurs twice.
    """
    params = params or PolicyParams()
    _refuse_duplicates(scores)
    if len(scores) < params.min_cases and len(trusted) < params.min_trusted:
        return _not_judged(
            scores, f"only {len(scores)} cases, {params.min_cases} are needed to judge"
        )
    ordered = sorted(scores, key=lambda s: s.case)
    archive = _Archive.measure(ordered, params, trusted)
    return {
        s.case: CaseDecision({c: archive.decide_class(row, c) for c in s.classes})
        for row, s in enumerate(ordered)
    }


def two_ways(
    scores: Sequence[CaseScore], params: PolicyParams, trusted: Sequence[CaseScore] = ()
) -> dict[int, SecondWay]:
    """Return, for each class that is drawn in two ways, the wrong one (`policy.annotator_styles`).

    Cases that lack a class, or are rough, were not drawn in one of two ways.
    """
    classes = classes_of(scores)
    missing = {c: forgotten(of_key(scores, c), params) for c in classes}
    rough = rough_groups(scores, [FOREGROUND, *classes], params)
    apart = Speaking.of(scores, params).all_about(_joined(missing, _members(rough)))
    return second_ways(scores, classes, apart, params, trusted)


@dataclass(frozen=True)
class _Archive:
    """What the scores of all cases say together."""

    params: PolicyParams
    offsets: Mapping[int, Offsets]
    groups: Sequence[Group]
    above: Sequence[Mapping[int, Mapping[Kind, float]]]
    """For each group: class that it may edit -> kind -> confidence."""
    off: Mapping[int, tuple[Flags, Flags]]
    """By key: which cases are off, and those of them that are off as many are."""
    alone: bool
    """Whether there are cases enough to move a class that the foreground does not agree with."""
    learnt: Mapping[int, bool]
    """Whether the networks know a class well enough to edit it."""
    missing: Mapping[int, Flags]
    """Which cases lack a class that the networks see."""
    elsewhere: Mapping[int, Flags]
    """Which cases have nothing of a class near where the networks see it."""
    ways: Mapping[int, SecondWay]
    """Per class, the wrong one of two ways of drawing, where there are two."""

    @classmethod
    def measure(
        cls, scores: Sequence[CaseScore], params: PolicyParams, trusted: Sequence[CaseScore]
    ) -> "_Archive":
        keys = [FOREGROUND, *classes_of(scores)]
        offsets = {key: Offsets.measure(scores, trusted, key, params) for key in keys}
        missing = {c: forgotten(of_key(scores, c), params) for c in keys[1:]}
        # Where there are enough, trusted cases say themselves where a right boundary lies.
        by_heaps = len(trusted) < params.min_trusted
        rough, speaking = rough_groups(scores, keys, params), Speaking.of(scores, params)
        apart = speaking.all_about(_joined(missing, _members(rough)))
        ways = second_ways(scores, keys[1:], apart, params, trusted) if by_heaps else {}
        off = _off(offsets, params)
        moved = _moved(off, ways, speaking)
        groups = rough + _other_groups(scores, rough, moved, ways, speaking, params)
        spoken = speaking.all_about(_joined(moved, _members(groups)))
        above = [
            {
                c: _thresholds(of_key(scores, c), g.members, ~spoken[c], params)
                for c in (keys[1:] if g.key == FOREGROUND else [g.key])
            }
            for g in groups
        ]
        return cls(
            params,
            offsets,
            groups,
            above,
            off,
            alone=len(scores) >= params.min_alone_cases,
            learnt={c: is_learnt(of_key(scores, c), of_key(trusted, c), params) for c in keys[1:]},
            missing=missing,
            elsewhere={c: elsewhere(of_key(scores, c), params) for c in keys[1:]},
            ways=ways,
        )

    def decide_class(self, row: int, value: int) -> Decision:
        """Return the decision for class `value` of the case at position `row`."""
        found = self._found(row, value)
        if not found.flagged:
            return found
        if not self.learnt[value]:
            unlearnt = "this class"
        elif isinstance(found.edit, Replace) and not self._most_learnt:
            unlearnt = "most of the classes"
        else:
            return found
        why = f"{found.why}; the networks have not learnt {unlearnt} well enough to edit it"
        return Decision(Review(), why, found.offset_vox)

    @property
    def _most_learnt(self) -> bool:
        return sum(self.learnt.values()) > self.params.min_learnt_classes * len(self.learnt)

    def _found(self, row: int, value: int) -> Decision:
        offset = float(self.offsets[value].from_centre[row])
        if self.missing[value][row]:
            why = "the class is not drawn, and the networks see it at its usual size"
            fill = Fill({Kind.ADDED: self.params.fill_confidence})
            return Decision(fill, why, offset)
        if value in self.ways and self.ways[value].members[row]:
            return self._as_the_others(self.ways[value], row, offset)
        rough = self._in_group(row, value, rough=True)
        if rough is not None:
            return rough
        # Of two ways of drawing none is the centre of the archive.
        shift, doubt = (None, "") if value in self.ways else self._shift_vox(row, value)
        if shift is not None and not doubt:
            why = f"the outline is off by {shift:+.2f} voxels from that of the other cases"
            fit, gain = self.params.min_fit, self.params.min_fit_gain
            return Decision(Shift(self.params.shift_gain * shift, fit, gain), why, offset)
        noisy = self._in_group(row, value, rough=False)
        if noisy is not None:
            return noisy
        if shift is not None:
            why = f"the outline is off by {shift:+.2f} voxels from that of the other cases, {doubt}"
            return Decision(Review(), why, offset)
        if self.elsewhere[value][row]:
            why = "the class is drawn elsewhere: nothing of it is near where the networks see it"
            return Decision(Review(), why)
        if value in self.ways and not self.ways[value].is_known:
            return Decision(NotJudged(), _TWO_WAYS, offset)
        return Decision(Keep(), "no rule speaks against it", offset)

    def _in_group(self, row: int, value: int, *, rough: bool) -> Decision | None:
        """Return the decision for a member of a noisy group, found by roughness or otherwise."""
        for group, above in zip(self.groups, self.above, strict=True):
            mine = group.members[row] and group.key in (FOREGROUND, value)
            if not mine or (group.evidence == ROUGHNESS) is not rough:
                continue
            offset = float(self.offsets[value].from_centre[row])
            posterior = float(group.posterior[row])
            if group.evidence == CORRUPTION:
                # Hard cases fit the networks as badly as wrong ones: a person tells them apart.
                return Decision(Review(), _why_noisy(group, row), offset, posterior)
            if rough or above[value]:
                return Decision(Replace(above[value]), _why_noisy(group, row), offset, posterior)
        return None

    def _as_the_others(self, way: SecondWay, row: int, offset_vox: float) -> Decision:
        why = f"the outline is off by {way.shift_vox:+.2f} voxels, as in a group of cases apart"
        shift = Shift(way.shift_vox, max(self.params.min_fit, way.min_fit), _ANY_LOSS)
        return Decision(shift, why, offset_vox, float(way.posterior[row]))

    def _shift_vox(self, row: int, value: int) -> tuple[float | None, str]:
        """Return the offset to undo, if any, and what speaks against undoing it.

        It is the foreground's where the class agrees, else the class's own.
        """
        params, whole, mine = self.params, self.offsets[FOREGROUND], self.offsets[value]
        pooled, own = float(whole.from_centre[row]), float(mine.from_centre[row])
        together = bool(self.off[FOREGROUND][0][row]) and not abs(own - pooled) > mine.limit
        shift = pooled if together else own
        is_off, as_many = self.off[FOREGROUND if together else value]
        if not is_off[row]:
            return None, ""
        if abs(shift) > params.max_shift_vox:
            return shift, "which is too far for an outline; is it the right structure?"
        if not self.alone and not together:
            return shift, "and the archive is too small to be sure"
        if not as_many[row]:
            return shift, "which few others are; look whether it is too wide or too tight"
        return shift, ""


_SEEN = {
    CORRUPTION: "{} fits the networks worse than in most cases: hard to see, or drawn wrong; look "
    "at the whole outline",
    ROUGHNESS: "the outline of {} is rougher than in most cases",
    Kind.ADDED: "parts of {} that the networks see are not drawn, more than in most cases",
    Kind.REMOVED: "parts of {} are drawn where the networks see none, more than in most cases",
    Kind.SWAPPED: "parts of {} are drawn as another class, more than in most cases",
}
"""Evidence -> how the cases of a group differ from the others."""
_ANY_LOSS = -1.0
"""As a gain in Dice: an outline may fit worse than before, by however much."""
_TWO_WAYS = (
    "the archive is drawn in two ways and nothing tells which is right; one trusted case would"
)


def _off(offsets: Mapping[int, Offsets], params: PolicyParams) -> dict[int, tuple[Flags, Flags]]:
    """Return, by key, the cases that are off, and those that are off as many are.

    Of the latter those alone that lie no further off than a shifted outline can.
    """
    found = {}
    for key, one in offsets.items():
        strictness = 1.0 if key == FOREGROUND else params.class_strictness
        near = np.abs(one.from_centre) <= params.max_shift_vox
        found[key] = one.flags(strictness), one.moved(params.min_shifted, strictness) & near
    return found


def _moved(
    off: Mapping[int, tuple[Flags, Flags]],
    ways: Mapping[int, SecondWay],
    speaking: Speaking,
) -> dict[int, Flags]:
    """Return the cases that some shift explains, by key."""
    # Of two ways of drawing none is the centre from which a shift is measured.
    two = speaking.telling(ways)
    plain = {key: many for key, (_, many) in off.items() if key not in two}
    return _joined(plain, {key: way.members for key, way in ways.items()})


def _members(groups: Iterable[Group]) -> dict[int, Flags]:
    """Return the cases of the groups by key."""
    return _joined(*({group.key: group.members} for group in groups))


def _joined(*parts: Mapping[int, Flags]) -> dict[int, Flags]:
    """Return which cases are in any of the parts, by key."""
    joined: dict[int, Flags] = {}
    for part in parts:
        for key, flags in part.items():
            joined[key] = flags | joined[key] if key in joined else flags
    return joined


def _other_groups(
    scores: Sequence[CaseScore],
    rough: Sequence[Group],
    moved: Mapping[int, Flags],
    ways: Mapping[int, SecondWay],
    speaking: Speaking,
    params: PolicyParams,
) -> list[Group]:
    """Return the noisy groups beside the rough ones that are more than what shifts explain.

    Rough cases came first, because no shift makes an outline rough. Then shifts are undone; but
    without the shifted cases a group may be too small to be seen. One that consists of them mostly
    is their shadow, and its other members are chance.
    """
    members = {key: way.members for key, way in ways.items()}
    explained = speaking.all_about(_joined(_members(rough), members))
    # Where it is not known which way is wrong, either heap would pass for a group.
    for key in speaking.telling(key for key, way in ways.items() if not way.is_known):
        del explained[key]
    shadow = speaking.all_about(moved)
    found = find_groups(scores, explained, params)
    most = params.max_shadow
    return [g for g in found if (g.members & shadow[g.key]).sum() <= most * g.members.sum()]


def _why_noisy(group: Group, row: int) -> str:
    what = "the whole label" if group.key == FOREGROUND else "the class"
    return f"{_SEEN[group.evidence].format(what)} ({group.posterior[row]:.0%} sure)"


def _thresholds(
    scores: Sequence[ClassScore], members: Flags, clean: Flags, params: PolicyParams
) -> dict[Kind, float]:
    """Return from which confidence the members' candidates of each kind are taken."""
    boundary = np.array([s.boundary_vox for s in scores], np.float64)
    if not clean.any() or not boundary[clean].sum():
        return {}
    if not any(s.candidates for s in scores):
        return dict.fromkeys(Kind, params.min_confidence)
    scale = boundary[members].sum() / boundary[clean].sum()
    out = {}
    for kind in Kind:
        noisy = _total(scores, members, kind)
        reference = _total(scores, clean, kind) * scale
        threshold = excess_threshold(noisy, reference, params.harm_weight)
        if threshold < NEVER:
            out[kind] = max(threshold, params.least_confidence)
    return out


def _total(scores: Sequence[ClassScore], chosen: Flags, kind: Kind) -> Values:
    rows = [
        s.candidates[kind]
        for s, c in zip(scores, chosen, strict=True)
        if c and kind in s.candidates
    ]
    levels = max((len(s.candidates[kind]) for s in scores if kind in s.candidates), default=1)
    return np.sum(rows, axis=0, dtype=np.float64) if rows else np.zeros(levels)


def decide_worst(
    scores: Sequence[CaseScore], *, alpha: float, min_confidence: float = _PUBLISHED
) -> dict[str, CaseDecision]:
    """Return the decision of Co-Seg as published: the 1 - alpha worst cases are noisy.

    In them the label is replaced wherever the peers agree against it; the networks' agreement is
    part of the proposal. Cases are ranked by the corruption score of their foreground (per voxel
    of label or prediction, so that large organs do not rank higher; ties by case id).
    """
    if not 0 < alpha <= 1:
        raise ConfigError(f"alpha is the share of clean cases and must be in (0, 1], got {alpha}")
    _refuse_duplicates(scores)
    ranked = sorted(scores, key=lambda s: (-_low_if_nan(s.foreground.log_corruption), s.case))
    noisy = {s.case for s in ranked[: ceil((1 - alpha) * len(scores) - 1e-9)]}
    why = f"among the {1 - alpha:.0%} worst cases by corruption score"
    worst = Decision(Replace(dict.fromkeys(Kind, min_confidence)), why)
    kept = Decision(Keep(), "kept")
    return {
        s.case: CaseDecision(dict.fromkeys(s.classes, worst if s.case in noisy else kept))
        for s in scores
    }


def _not_judged(scores: Sequence[CaseScore], why: str) -> dict[str, CaseDecision]:
    one = Decision(NotJudged(), why)
    return {s.case: CaseDecision(dict.fromkeys(s.classes, one)) for s in scores}


def _refuse_duplicates(scores: Sequence[CaseScore]) -> None:
    cases = [s.case for s in scores]
    if len(set(cases)) != len(cases):
        twice = sorted({c for c in cases if cases.count(c) > 1})
        raise ConfigError(f"scores name a case twice: {twice[:2]}; merge its blocks first")


def _low_if_nan(value: float) -> float:
    return value if isfinite(value) else float("-inf")
