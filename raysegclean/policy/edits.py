"""An edit: what is done with one class of one case, and the reason that its voxels then carry.

Decisions (`policy.decisions`) say why; the rule (`policy.apply`) carries edits out voxel by voxel.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import ClassVar, Literal, TypeVar

from raysegclean.evidence.case_scores import Kind
from raysegclean.voxels.geometry import Index3
from raysegclean.voxels.signed_distance import Spacing, shift_halo_vox

__all__ = [
    "NO_EDITS",
    "VOTE_BIT",
    "Blend",
    "CaseEdits",
    "Edit",
    "Fill",
    "FlipAbove",
    "Keep",
    "NotJudged",
    "Reason",
    "Replace",
    "ReplaceBelow",
    "Review",
    "Revise",
    "Shift",
    "TakesCandidates",
    "Votes",
    "VoxelRule",
    "reason_code",
    "reason_name",
    "reason_names",
]


class Reason(IntEnum):
    """Why a voxel changed; the value is what the reason label stores."""

    UNCHANGED = 0
    SHIFT = 1
    """The outline of the class was moved back by the offset of its case."""
    REPLACE = 2
    """The case was found noisy and confident voters disagree with the label."""
    CORRECT = 3
    """The voxel corrector, fitted on trusted cases, prefers another class."""
    FLIP = 4
    """The published rule of uncertainty relabelling: the uncertainty exceeds delta."""
    BIAS = 5
    """Spatial Correction: the prediction, with the bias of its boundary taken out, differs."""
    POSTERIOR = 6
    """Transition matrix: another true class is more probable, given label and prediction."""
    VOTE = 7
    """Several methods agree; with `VOTE_BIT` the other bits say which."""
    BLEND = 8
    """The outline of a noisy case was drawn towards the networks'."""
    FILL = 9
    """The label lacks the structure, which the networks see."""


VOTE_BIT = 128
"""Reason codes with this bit are votes; the other bits say which labels were for the change (bit i
for label i)."""


def reason_name(code: int, labels: Sequence[str] = ()) -> str:
    """Return a reason in words; `labels` are those that voted, in their order.

    >>> reason_name(2), reason_name(128 | 0b101, ("a", "b", "c"))
    ('replace', 'vote:a+c')
    """
    if code < VOTE_BIT:
        return Reason(code).name.lower()
    bits = [bit for bit in range(7) if code >> bit & 1]
    return "vote:" + "+".join(labels[b] if b < len(labels) else str(b + 1) for b in bits)


def reason_names(labels: Sequence[str] = ()) -> dict[int, str]:
    """Return every reason that can occur, by code."""
    votes = (VOTE_BIT | mask for mask in range(1, 1 << len(labels)))
    return {code: reason_name(code, labels) for code in (*map(int, Reason), *votes)}


def reason_code(name: str, labels: Sequence[str] = ()) -> int | None:
    """Return the code of a reason in words, None where there is none; `vote` means any vote."""
    codes = {known.lower(): code for code, known in reason_names(labels).items() if code}
    return codes.get(name.lower())


@dataclass(frozen=True)
class Keep:
    """Nothing speaks against the given label."""

    action: Literal["keep"] = "keep"


@dataclass(frozen=True)
class NotJudged:
    """Kept as well, because too little is known to tell."""

    action: Literal["not judged"] = "not judged"


@dataclass(frozen=True)
class Review:
    """Left for a person: no voxel of the class is taken, none is given to it."""

    shift_vox: float = 0.0
    """The shift that was held back, where it was one."""
    action: Literal["review"] = "review"


@dataclass(frozen=True)
class Shift:
    """The outline moves."""

    shift_vox: float
    """How far it moves inwards (`voxels.signed_distance.shift_label`)."""
    min_fit: float = 0.0
    """Dice with the prediction that the moved class must reach; else it is left for a person."""
    fit_gain: float = 0.0
    """By how much this Dice must exceed that of the given label; negative: by how much it may be
    lower. Counts where there is a `min_fit`."""
    action: Literal["shift"] = "shift"
    reason: ClassVar[Reason] = Reason.SHIFT


@dataclass(frozen=True)
class TakesCandidates:
    """What the edits that take the voters' candidates have in common."""

    above: Mapping[Kind, float] = field(default_factory=dict)
    """A candidate of this kind is taken at or above this confidence; a kind that is missing is not
    taken. `removed` goes by the given class, the other two by the candidate."""
    reason: ClassVar[Reason] = Reason.REPLACE


@dataclass(frozen=True)
class Replace(TakesCandidates):
    """Confident candidates are taken."""

    action: Literal["replace"] = "replace"


@dataclass(frozen=True)
class Fill(TakesCandidates):
    """The label lacks the structure: it is taken from the networks, and may appear whole."""

    action: Literal["fill"] = "fill"
    reason: ClassVar[Reason] = Reason.FILL


@dataclass(frozen=True)
class Blend(TakesCandidates):
    """As replace; and the outline is drawn towards the networks' (`policy.blending`)."""

    action: Literal["blend"] = "blend"
    revision: ClassVar[Reason] = Reason.BLEND


@dataclass(frozen=True)
class Revise:
    """What a second pass writes is taken, as of the voxel corrector."""

    revision: Reason = Reason.CORRECT
    action: Literal["correct"] = "correct"


Edit = Keep | NotJudged | Review | Shift | Replace | Fill | Blend | Revise
E = TypeVar("E", bound=Edit | TakesCandidates)


@dataclass(frozen=True)
class ReplaceBelow:
    """Any candidate is taken where the score of the given label is below a share of its range."""

    share: float
    rule: Literal["replace below"] = "replace below"


@dataclass(frozen=True)
class FlipAbove:
    """A binary label is flipped where the score is above a share of its range."""

    share: float
    rule: Literal["flip above"] = "flip above"


@dataclass(frozen=True)
class Votes:
    """The score of a candidate says which labels voted for it, and so does its reason."""

    rule: Literal["votes"] = "votes"


VoxelRule = ReplaceBelow | FlipAbove | Votes


@dataclass(frozen=True)
class CaseEdits:
    """What may change in one case; classes are channel indices, absent ones stay as given."""

    classes: Mapping[int, Edit] = field(default_factory=dict)
    rule: VoxelRule | None = None
    """What a published rule does beside, voxel by voxel and whatever the class; not in those that
    are left for a person."""

    def of(self, kind: type[E]) -> dict[int, E]:
        """Return the edits of one kind by class."""
        return {c: edit for c, edit in self.classes.items() if isinstance(edit, kind)}

    @property
    def revisions(self) -> dict[int, Reason]:
        """Classes in which what a second pass writes is taken, with its reason."""
        revised: dict[int, Revise | Blend] = {**self.of(Revise), **self.of(Blend)}
        return {c: edit.revision for c, edit in revised.items()}

    @property
    def quiet(self) -> bool:
        """True when nothing can change."""
        voxelwise = isinstance(self.rule, ReplaceBelow | FlipAbove)
        takes = any(edit.above for edit in self.of(TakesCandidates).values())
        return not (voxelwise or takes or self.of(Shift) or self.revisions)

    def halo_vox(self, spacing_mm: Spacing) -> Index3:
        """Return the halo of the given label with which a block equals the whole case."""
        moved = {c: edit.shift_vox for c, edit in self.of(Shift).items()}
        return shift_halo_vox(moved, spacing_mm) if moved else (0, 0, 0)


NO_EDITS = CaseEdits()
