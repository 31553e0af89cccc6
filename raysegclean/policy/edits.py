"""An edit: what is done with one class of one case, and the reason that its voxels then carry.

Decisions (`policy.decisions`) say why; the rule (`policy.apply`) carries edits out voxel by voxel.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import ClassVar, Literal, TypeVar

from raysegclean.evidence.case_scores import Kind
from raysegclean.voxels.geometry import Box, Index3
from raysegclean.voxels.signed_distance import Spacing, shift_halo_vox

__all__ = [
    "NO_EDITS",
    "VOTE_BIT",
    "Blend",
    "CaseEdits",
    "Cut",
    "Displace",
    "Edit",
    "Exchange",
    "Fill",
    "FlipAbove",
    "Gross",
    "Keep",
    "Mirror",
    "NotJudged",
    "Reason",
    "Region",
    "Replace",
    "ReplaceBelow",
    "Review",
    "Revise",
    "Shift",
    "TakesCandidates",
    "Votes",
    "VoxelRule",
    "WholeLabel",
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
    EXCHANGE = 10
    """Class ids were exchanged, as those of left and right."""
    MIRROR = 11
    """The label was flipped along an axis of its grid."""
    DISPLACE = 12
    """The label lay some voxels off, as a whole."""
    CUT = 13
    """The label ended at a plane beyond which the networks see more."""
    REGION = 14
    """One connected blob far off the outline was too much, or missing."""


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


@dataclass(frozen=True)
class Gross:
    """What the edits have in common that repair a gross error, once it is proved."""

    min_fit: float = 0.0
    """Dice with the prediction that the class must reach, else it is left for a person; 0: any."""
    fit_gain: ClassVar[float] = 0.0


@dataclass(frozen=True)
class WholeLabel(Gross):
    """What the repairs have in common that concern the label as a whole: all classes or none."""


@dataclass(frozen=True)
class Exchange(WholeLabel):
    """The class becomes another one; those that are exchanged all have this edit."""

    becomes: int = 0
    """The channel that it is in truth."""
    action: Literal["exchange"] = "exchange"
    reason: ClassVar[Reason] = Reason.EXCHANGE


@dataclass(frozen=True)
class Mirror(WholeLabel):
    """The label is flipped back along an axis, as an array."""

    axis: int = 0
    """0, 1, 2: z, y, x."""
    action: Literal["mirror"] = "mirror"
    reason: ClassVar[Reason] = Reason.MIRROR


@dataclass(frozen=True)
class Displace(WholeLabel):
    """The label is moved as a whole; what comes in from outside is taken from the networks."""

    by_zyx: Index3 = (0, 0, 0)
    """How many voxels it moves along each axis."""
    action: Literal["displace"] = "displace"
    reason: ClassVar[Reason] = Reason.DISPLACE


@dataclass(frozen=True)
class Cut(Gross):
    """Beyond a plane the background of the label is taken from the networks."""

    axis: int = 0
    plane_vox: int = 0
    """Index of the first slice beyond it, or of the last one where `upwards` is false."""
    upwards: bool = True
    """Whether beyond is towards larger indices."""
    action: Literal["cut"] = "cut"
    reason: ClassVar[Reason] = Reason.CUT


@dataclass(frozen=True)
class Region(Gross):
    """In one blob of voxels the label is taken from the networks."""

    box: Box = field(default_factory=lambda: Box.whole((0, 0, 0)))
    """Where it lies in the case."""
    voxels: str = ""
    """Which voxels of the box belong to it (`voxels.packing.mask_to_text`)."""
    action: Literal["region"] = "region"
    reason: ClassVar[Reason] = Reason.REGION


Edit = (
    Keep
    | NotJudged
    | Review
    | Shift
    | Replace
    | Fill
    | Blend
    | Revise
    | Exchange
    | Mirror
    | Displace
    | Cut
    | Region
)
E = TypeVar("E", bound=Edit | TakesCandidates | Gross)


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
        moves = bool(self.of(Shift)) or bool(self.of(Gross))
        return not (voxelwise or takes or moves or self.revisions)

    def halo_vox(self, spacing_mm: Spacing) -> Index3:
        """Return the halo of the given label with which a block equals the whole case."""
        moved = {c: edit.shift_vox for c, edit in self.of(Shift).items()}
        return shift_halo_vox(moved, spacing_mm) if moved else (0, 0, 0)


NO_EDITS = CaseEdits()
