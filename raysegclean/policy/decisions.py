"""What a policy decides about one class of one case, and why."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from raysegclean.evidence.case_scores import NEVER, Kind
from raysegclean.policy.apply import Actions, Reason

__all__ = ["Action", "CaseDecision", "ClassDecision", "case_actions"]


class Action(StrEnum):
    """What is done with one class of one case."""

    KEEP = "keep"
    SHIFT = "shift"
    REPLACE = "replace"
    FILL = "fill"
    """The label lacks the structure: it is taken from the networks."""
    BLEND = "blend"
    """As replace; and the outline is drawn towards the networks' (`policy.blending`)."""
    CORRECT = "correct"
    """The voxel corrector took over."""
    REVIEW = "review"


@dataclass(frozen=True)
class ClassDecision:
    """What to do with one class of one case, and why."""

    action: Action
    why: str
    shift_vox: float = 0.0
    """For `shift`: how far the boundary moves inwards (`voxels.signed_distance.shift_label`)."""
    min_fit: float = 0.0
    """For `shift`: Dice with the prediction that the moved class must reach."""
    fit_gain: float = 0.0
    """For `shift`: by how much this Dice must exceed that of the given label; negative: by how much
    it may be lower."""
    above: Mapping[Kind, float] = field(default_factory=dict)
    """For `replace`, `blend` and `fill`: a candidate of this kind is taken at or above this
    confidence; a kind that is missing is not taken. `removed` goes by the given class, the other
    two by the candidate."""
    offset_vox: float = float("nan")
    """Offset from the archive's central value, where it was measured."""
    posterior: float = 0.0
    """Probability that the case belongs to the noisy group that it was flagged with."""

    @property
    def min_confidence(self) -> float:
        """The confidence that satisfies every kind; `NEVER` when one of them is not taken."""
        return max(self.above.get(kind, NEVER) for kind in Kind)


@dataclass(frozen=True)
class CaseDecision:
    """The decisions for one case, per class."""

    case: str
    classes: Mapping[int, ClassDecision] = field(default_factory=dict)

    @property
    def flagged(self) -> bool:
        """True when any class is to be changed or looked at."""
        return any(d.action is not Action.KEEP for d in self.classes.values())


def case_actions(decision: CaseDecision) -> Actions:
    """Return what the rule may do in a case."""
    return Actions(
        shift_vox={c: d.shift_vox for c, d in _with(decision, Action.SHIFT)},
        min_fit={c: d.min_fit for c, d in _with(decision, Action.SHIFT) if d.min_fit},
        fit_gain={c: d.fit_gain for c, d in _with(decision, Action.SHIFT) if d.fit_gain},
        replace_above={
            c: dict(d.above) for c, d in _with(decision, Action.REPLACE, Action.BLEND, Action.FILL)
        },
        fills=frozenset(c for c, _ in _with(decision, Action.FILL)),
        closed=frozenset(c for c, _ in _with(decision, Action.REVIEW)),
        correct=frozenset(c for c, _ in _with(decision, Action.BLEND)),
        correct_reason=Reason.BLEND if any(_with(decision, Action.BLEND)) else Reason.CORRECT,
    )


def _with(decision: CaseDecision, *actions: Action) -> Iterable[tuple[int, ClassDecision]]:
    return ((c, d) for c, d in decision.classes.items() if d.action in actions)
