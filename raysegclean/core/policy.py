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
from dataclasses import dataclass, field
from enum import StrEnum
from math import ceil, isfinite, log

import numpy as np
from numpy.typing import NDArray

from raysegclean.core.robust import fit_mixture, half_sample_mode, robust_sd
from raysegclean.errors import ConfigError

__all__ = [
    "Action",
    "CaseDecision",
    "CaseScore",
    "ClassDecision",
    "ClassScore",
    "PolicyParams",
    "decide",
    "decide_worst",
]

Values = NDArray[np.float64]


class Action(StrEnum):
    """What is done with one class of one case."""

    KEEP = "keep"
    SHIFT = "shift"
    REPLACE = "replace"
    REVIEW = "review"


@dataclass(frozen=True)
class ClassScore:
    """What the voters say about one class of one case, or about its whole foreground."""

    offset_vox: float
    """Mean offset of the given boundary outside the predicted one (`OffsetSums.mean_vox`)."""
    boundary_vox: int
    """Number of voxels behind `offset_vox`."""
    nats: float
    """Sum of -log p(given label), p clipped at 1e-4; for the foreground, over all voxels."""
    union_vox: int
    """Voxels that are this class (this foreground) in the given label or in the prediction."""
    given_vox: int
    predicted_vox: int
    both_vox: int

    @property
    def log_corruption(self) -> float:
        """Log of the nats per voxel of the union; NaN where it is empty or perfect."""
        return log(self.nats / self.union_vox) if self.union_vox and self.nats > 0 else float("nan")

    @property
    def agreement(self) -> float:
        """Dice of the given label with the prediction; NaN when both are empty."""
        voxels = self.given_vox + self.predicted_vox
        return 2 * self.both_vox / voxels if voxels else float("nan")


@dataclass(frozen=True)
class CaseScore:
    """The scores of one case: of its foreground as a whole and of each class."""

    case: str
    foreground: ClassScore
    classes: Mapping[int, ClassScore]


@dataclass(frozen=True)
class PolicyParams:
    """Every number that the policy uses; lengths in voxels of the finest axis."""

    min_cases: int = 8
    max_flagged: float = 0.6
    min_boundary_vox: int = 20
    offset_floor_vox: float = 0.4
    offset_sds: float = 2.5
    offset_near_vox: float = 0.5
    class_strictness: float = 1.5
    shift_gain: float = 0.8
    max_shift_vox: float = 3.0
    posterior: float = 0.5
    min_separation: float = 2.0
    min_confidence: float = 0.7

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        for name in ("max_flagged", "posterior", "min_confidence"):
            value = getattr(self, name)
            if not 0 < value <= 1:
                raise ConfigError(f"policy {name} must be in (0, 1], got {value}")
        if self.min_cases < 4:
            raise ConfigError(f"policy min_cases must be at least 4, got {self.min_cases}")


@dataclass(frozen=True)
class ClassDecision:
    """What to do with one class of one case, and why."""

    action: Action
    why: str
    shift_vox: float = 0.0
    """For `shift`: how far the boundary moves inwards (`core.boundary.shift_label`)."""
    min_confidence: float = 1.0
    """For `replace`: the prediction replaces the label where it differs and p is above this."""
    offset_vox: float = float("nan")
    """Offset from the archive's central value, where it was measured."""
    posterior: float = 0.0
    """Probability that the corruption score belongs to the noisy cases."""


@dataclass(frozen=True)
class CaseDecision:
    """The decisions for one case, per class."""

    case: str
    classes: Mapping[int, ClassDecision] = field(default_factory=dict)

    @property
    def flagged(self) -> bool:
        """True when any class is to be changed or looked at."""
        return any(d.action is not Action.KEEP for d in self.classes.values())


@dataclass(frozen=True)
class _Offsets:
    """Offsets of one class (or of the foreground, key 0) over the archive, made relative."""

    from_centre: Values
    """NaN where too few boundary voxels were measured."""
    limit: float
    """Beyond this a case is flagged."""

    @classmethod
    def measure(
        cls, scores: Sequence[ClassScore], trusted: Sequence[ClassScore], params: PolicyParams
    ) -> "_Offsets":
        values, known = _offsets(scores, params), _offsets(trusted, params)
        known = known[np.isfinite(known)]
        if known.size >= params.min_cases:
            centre = float(np.median(known))
        elif np.isfinite(values).sum() >= params.min_cases:
            centre = half_sample_mode(values)
        else:
            return cls(np.full(len(scores), np.nan), float("inf"))
        sd = robust_sd(values, centre, within=params.offset_near_vox)
        spread = params.offset_sds * sd if isfinite(sd) else 0.0
        return cls(values - centre, max(params.offset_floor_vox, spread))

    def flags(self) -> NDArray[np.bool_]:
        return np.abs(self.from_centre) > self.limit


def _offsets(scores: Iterable[ClassScore], params: PolicyParams) -> Values:
    return np.array(
        [s.offset_vox if s.boundary_vox >= params.min_boundary_vox else np.nan for s in scores],
        dtype=np.float64,
    )


@dataclass(frozen=True)
class _Archive:
    """What the scores of all cases say together; key 0 is the foreground as a whole."""

    params: PolicyParams
    offsets: Mapping[int, _Offsets]
    posterior: Mapping[int, Values]

    @classmethod
    def measure(
        cls, scores: Sequence[CaseScore], params: PolicyParams, trusted: Sequence[CaseScore]
    ) -> "_Archive":
        keys = [_FOREGROUND, *sorted({c for s in scores for c in s.classes})]
        offsets = {
            key: _Offsets.measure(_of_key(scores, key), _of_key(trusted, key), params)
            for key in keys
        }
        posterior = {}
        for key in keys:
            log_corruption = np.array([s.log_corruption for s in _of_key(scores, key)])
            posterior[key] = _noisy_posterior(log_corruption, offsets[key].flags(), params)
        return cls(params, offsets, posterior)

    def decide_class(self, row: int, value: int) -> ClassDecision:
        """Return the decision for class `value` of the case at position `row`."""
        offset = float(self.offsets[value].from_centre[row])
        noisy = float(self.posterior[value][row])
        shift = self._shift_vox(row, value)
        if shift is not None and abs(shift) > self.params.max_shift_vox:
            why = f"boundary off by {shift:+.2f} voxels, more than a shift can explain"
            return ClassDecision(Action.REVIEW, why, offset_vox=offset, posterior=noisy)
        if shift is not None:
            return ClassDecision(
                Action.SHIFT,
                f"boundary off by {shift:+.2f} voxels from the archive's centre",
                shift_vox=self.params.shift_gain * shift,
                offset_vox=offset,
                posterior=noisy,
            )
        pooled = float(self.posterior[_FOREGROUND][row])
        if max(noisy, pooled) > self.params.posterior:
            return ClassDecision(
                Action.REPLACE,
                f"corruption score belongs to the noisy cases (posterior {max(noisy, pooled):.2f})",
                min_confidence=self.params.min_confidence,
                offset_vox=offset,
                posterior=noisy,
            )
        why = "boundary and corruption score like most cases"
        return ClassDecision(Action.KEEP, why, offset_vox=offset, posterior=noisy)

    def _shift_vox(self, row: int, value: int) -> float | None:
        """Return the offset to undo: the foreground's where the class agrees, else its own."""
        whole, mine = self.offsets[_FOREGROUND], self.offsets[value]
        pooled, own = float(whole.from_centre[row]), float(mine.from_centre[row])
        if abs(pooled) > whole.limit and not abs(own - pooled) > mine.limit:
            return pooled
        strict = mine.limit * self.params.class_strictness
        return own if abs(own) > strict else None


_FOREGROUND = 0


def _of_key(scores: Sequence[CaseScore], key: int) -> list[ClassScore]:
    if key == _FOREGROUND:
        return [s.foreground for s in scores]
    return [s.classes.get(key, _NOTHING) for s in scores]


_NOTHING = ClassScore(float("nan"), 0, 0.0, 0, 0, 0, 0)


def _noisy_posterior(
    log_corruption: Values, explained: NDArray[np.bool_], params: PolicyParams
) -> Values:
    """Return the posterior of the noisy component among cases that no offset explains."""
    values = np.where(explained, np.nan, log_corruption)
    posterior = np.zeros(values.shape)
    if np.isfinite(values).sum() < params.min_cases:
        return posterior
    mixture = fit_mixture(values)
    if mixture is None or mixture.bic_gain <= 0 or mixture.separation < params.min_separation:
        return posterior
    posterior = np.where(explained, 0.0, mixture.posterior(values))
    too_many = (posterior > params.posterior).sum() > params.max_flagged * len(values)
    return np.zeros(values.shape) if too_many else posterior


def _all_keep(scores: Sequence[CaseScore], why: str) -> dict[str, CaseDecision]:
    keep = ClassDecision(Action.KEEP, why)
    return {s.case: CaseDecision(s.case, {c: keep for c in s.classes}) for s in scores}


def _refuse_duplicates(scores: Sequence[CaseScore]) -> None:
    cases = [s.case for s in scores]
    if len(set(cases)) != len(cases):
        twice = sorted({c for c in cases if cases.count(c) > 1})
        raise ConfigError(f"scores name a case twice: {twice[:3]}; merge its blocks first")


def _low_if_nan(value: float) -> float:
    return value if isfinite(value) else float("-inf")


def decide(
    scores: Sequence[CaseScore],
    params: PolicyParams | None = None,
    *,
    trusted: Sequence[CaseScore] = (),
) -> dict[str, CaseDecision]:
    """Return the decision of the default policy for every case (POLICY 6).

    Per class: (a) the boundary lies off the archive's central offset by more than
    max(floor, sds x robust sd): shift it back; (b) the corruption score belongs to the noisy
    component of a mixture that the archive's scores prefer: replace where the networks are
    confident; (c) otherwise keep.

    Args:
        scores: the given label of every case against networks that did not train on it.
        params: thresholds.
        trusted: the same scores of trusted labels instead of given ones, for cases that have one;
            with `min_cases` of them they set the central offset, so that a bias of the whole
            archive can be seen.

    Returns:
        A decision for every case, by case id. Raises `ConfigError` when an id occurs twice.
    """
    params = params or PolicyParams()
    _refuse_duplicates(scores)
    if len(scores) < params.min_cases and len(trusted) < params.min_cases:
        return _all_keep(scores, f"only {len(scores)} cases, {params.min_cases} are needed to judge")
    archive = _Archive.measure(scores, params, trusted)
    out = {}
    for row, score in enumerate(scores):
        decisions = {c: archive.decide_class(row, c) for c in score.classes}
        out[score.case] = CaseDecision(score.case, decisions)
    return out


def decide_worst(
    scores: Sequence[CaseScore], *, alpha: float, min_confidence: float = 0.5
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
    out = {}
    for score in scores:
        worst = score.case in noisy
        decision = ClassDecision(
            Action.REPLACE if worst else Action.KEEP,
            f"among the {1 - alpha:.0%} worst cases by corruption score" if worst else "kept",
            min_confidence=min_confidence if worst else 1.0,
        )
        out[score.case] = CaseDecision(score.case, {c: decision for c in score.classes})
    return out
