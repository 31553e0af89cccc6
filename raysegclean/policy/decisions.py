"""What a policy decides about one class of one case, and why."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from raysegclean.policy.edits import (
    Blend,
    CaseEdits,
    Edit,
    FlipAbove,
    Keep,
    NotJudged,
    Replace,
    Review,
    Revise,
    Shift,
    VoxelRule,
)

__all__ = ["CaseDecision", "Decision", "edits_of"]


@dataclass(frozen=True)
class Decision:
    """What to do with one class of one case, and why."""

    edit: Edit
    why: str
    offset_vox: float = float("nan")
    """Offset from the archive's central value, where it was measured."""
    posterior: float = 0.0
    """Probability that the case belongs to the noisy group that it was flagged with."""
    doubt: str = ""
    """Why a person should look at it, where one should. Unlike `Review` it holds nothing back."""

    @property
    def flagged(self) -> bool:
        """True when the class is to be changed or looked at."""
        return not self.stays

    @property
    def action(self) -> str:
        """What is done, in a word."""
        return "review" if self.doubt else self.edit.action

    @property
    def shift_vox(self) -> float:
        """How far the outline moves inwards, or would if it were not left for a person."""
        return self.edit.shift_vox if isinstance(self.edit, Shift | Review) else 0.0

    @property
    def stays(self) -> bool:
        """True when the class stays as given, and is not left for a person."""
        return isinstance(self.edit, Keep | NotJudged)

    def doubted(self, why: str) -> "Decision":
        """Return the decision with one more doubt."""
        return replace(self, doubt="; ".join(filter(None, (self.doubt, why))))

    def held(self, why: str) -> "Decision":
        """Return the decision that leaves the class for a person."""
        return replace(self, edit=Review(self.shift_vox), why=why)


@dataclass(frozen=True)
class CaseDecision:
    """The decisions for one case, per class."""

    classes: Mapping[int, Decision] = field(default_factory=dict)
    rule: VoxelRule | None = None
    """What a published rule does beside (`policy.edits.CaseEdits`)."""

    @property
    def flagged(self) -> bool:
        """True when any class is to be changed or looked at."""
        return any(one.flagged for one in self.classes.values())

    @property
    def edits(self) -> CaseEdits:
        """What is done in the case."""
        return CaseEdits({c: one.edit for c, one in self.classes.items()}, self.rule)

    def but(self, changed: Mapping[int, Decision]) -> "CaseDecision":
        """Return the decision with other ones for some classes."""
        return replace(self, classes={**self.classes, **changed})

    def held(self, why: Mapping[int, str]) -> "CaseDecision":
        """Return the decision that leaves the classes of `why` for a person."""
        nothing = Decision(NotJudged(), "")
        held = {c: self.classes.get(c, nothing).held(text) for c, text in why.items()}
        # A flip knows no class that it could leave out.
        rule = None if held and isinstance(self.rule, FlipAbove) else self.rule
        return replace(self.but(held), rule=rule)

    def unrevised(self) -> "CaseDecision":
        """Return what is left of the decision where no second pass wrote a label."""
        return replace(self, classes={c: _unrevised(one) for c, one in self.classes.items()})


def _unrevised(one: Decision) -> Decision:
    if isinstance(one.edit, Blend):
        return replace(one, edit=Replace(one.edit.above))
    return replace(one, edit=Keep()) if isinstance(one.edit, Revise) else one


def edits_of(decisions: Mapping[str, CaseDecision]) -> dict[str, CaseEdits]:
    """Return the edits of the cases in which anything can change."""
    edits = {case: decision.edits for case, decision in decisions.items()}
    return {case: one for case, one in edits.items() if not one.quiet}
