"""Rules: from a proposal to a new label, voxel by voxel, with a reason for every change.

A rule never invents: it moves the given boundary, takes the candidate, or leaves the label alone.
Decisions come per case and class (research: voxel thresholds alone remove a quarter of the error
or harm clean cases), so the rule is handed the actions of one case.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from raysegclean.evidence.case_scores import Kind
from raysegclean.evidence.proposals import Proposal
from raysegclean.evidence.voxel_evidence import LEVELS, threshold_level
from raysegclean.voxels.geometry import Box, Index3
from raysegclean.voxels.signed_distance import Spacing, shift_halo_vox, shift_label

__all__ = [
    "NO_ACTIONS",
    "VOTE_BIT",
    "Actions",
    "Applied",
    "Reason",
    "TakenBack",
    "apply_edits",
    "reason_code",
    "reason_name",
    "reason_names",
    "take_back",
    "vote_reason",
]

Label = NDArray[np.uint8]


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
    """Several methods agree; 128 and above say which (`vote_reason`)."""
    BLEND = 8
    """The outline of a noisy case was drawn towards the networks'."""
    FILL = 9
    """The label lacks the structure, which the networks see."""


VOTE_BIT = 128
"""Reason codes with this bit are votes; the other bits say which labels were for the change."""


def vote_reason(mask: int) -> int:
    """Return the code of a change that the labels in `mask` (bit i for label i) voted for."""
    return VOTE_BIT | mask


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
    votes = (vote_reason(mask) for mask in range(1, 1 << len(labels)))
    return {code: reason_name(code, labels) for code in (*map(int, Reason), *votes)}


def reason_code(name: str, labels: Sequence[str] = ()) -> int | None:
    """Return the code of a reason in words, None where there is none; `vote` means any vote."""
    codes = {known.lower(): code for code, known in reason_names(labels).items() if code}
    return codes.get(name.lower())


@dataclass(frozen=True)
class Actions:
    """What may change in one case; classes are channel indices, absent classes stay as given."""

    shift_vox: Mapping[int, float] = field(default_factory=dict)
    """Class -> how far its outline moves inwards, in voxels of the finest axis."""
    min_fit: Mapping[int, float] = field(default_factory=dict)
    """Class -> Dice with the prediction that its shifted outline must reach; else it is held for a
    person. What carries out the actions sees to it: a block cannot know."""
    fit_gain: Mapping[int, float] = field(default_factory=dict)
    """Class -> by how much the shift must raise this Dice; negative: what it may cost."""
    replace_above: Mapping[int, Mapping[Kind, float]] = field(default_factory=dict)
    """Class -> kind of change -> confidence from which a candidate replaces the label. What is
    removed goes by the given class, what is added or swapped by the candidate."""
    correct: frozenset[int] = frozenset()
    """Classes in which the corrector's candidates are taken."""
    replace_below: Mapping[int, float] = field(default_factory=dict)
    """Given class, background too -> score below which any candidate replaces it, voxel by voxel;
    as a share of the score's range."""
    flip_above: float | None = None
    """Score above which a binary label is flipped (published form of uncertainty only)."""
    correct_reason: Reason = Reason.CORRECT
    """Why voxels of `correct` change."""
    fills: frozenset[int] = frozenset()
    """Classes that may appear whole where the given label lacks them, because they are proposed
    and not corrected; else such a case is held for a person."""
    closed: frozenset[int] = frozenset()
    """Classes of which no voxel is taken, and to which none is given, by whatever other class."""
    by_vote: bool = False
    """Whether the score of a candidate says which labels voted for it (`vote_reason`)."""

    @property
    def quiet(self) -> bool:
        """True when nothing can change."""
        by_class = self.shift_vox or self.replace_above or self.correct or self.replace_below
        return not by_class and self.flip_above is None

    def without(self, classes: frozenset[int]) -> "Actions":
        """Return the actions that leave `classes` as they are, on both sides of every change."""
        return replace(
            self,
            shift_vox={c: v for c, v in self.shift_vox.items() if c not in classes},
            min_fit={c: v for c, v in self.min_fit.items() if c not in classes},
            fit_gain={c: v for c, v in self.fit_gain.items() if c not in classes},
            replace_above={c: v for c, v in self.replace_above.items() if c not in classes},
            replace_below={c: v for c, v in self.replace_below.items() if c not in classes},
            correct=self.correct - classes,
            flip_above=None if classes else self.flip_above,
            fills=self.fills - classes,
            closed=self.closed | classes,
        )

    def halo_vox(self, spacing_mm: Spacing) -> Index3:
        """Return the halo of the given label with which a block equals the whole case."""
        return shift_halo_vox(self.shift_vox, spacing_mm) if self.shift_vox else (0, 0, 0)


NO_ACTIONS = Actions()


@dataclass(frozen=True)
class Applied:
    """The new label of one block and why; axes z, y, x."""

    label_zyx: Label
    reason_zyx: NDArray[np.uint8]


def apply_edits(
    given_zyx: Label,
    core: Box,
    proposal: Proposal | None,
    actions: Actions,
    *,
    classes: int,
    spacing_mm: Spacing,
) -> Applied:
    """Return the new label of `core` from the given label with halo (channel indices, z y x).

    The outline moves first; candidates of the voters are then taken on top of it, and the
    corrector, where there is one, has the last word.
    """
    given_core = given_zyx[core.slices]
    label = given_core.copy()
    reason = np.zeros(label.shape, np.uint8)
    if actions.shift_vox:
        moved = shift_label(
            given_zyx, actions.shift_vox, classes=range(1, classes), spacing_mm=spacing_mm
        )[core.slices].astype(np.uint8)
        _take(label, reason, moved, moved != given_core, Reason.SHIFT)
    if proposal is not None and (actions.replace_above or actions.replace_below):
        _take_candidates(label, reason, given_core, proposal, actions, classes)
    if proposal is not None and proposal.correction_zyx is not None:
        _correct(label, reason, given_core, proposal.correction_zyx, actions)
    if proposal is not None and actions.flip_above is not None:
        _flip(label, reason, given_core, proposal, actions.flip_above)
    reason[label == given_core] = Reason.UNCHANGED
    return Applied(label, reason)


@dataclass(frozen=True)
class TakenBack:
    """Changes that a person undid: those of a case, a class and a reason; None means any."""

    case: str | None = None
    channel: int | None = None
    reason: int | None = None
    """`Reason.VOTE` means every vote."""


def take_back(
    applied: Applied, given_zyx: Label, undone: Sequence[TakenBack], case: str
) -> Applied:
    """Return the applied block with the undone changes of `case` as given again.

    A change belongs to a class when it was or became that class; axes z, y, x.
    """
    back = np.zeros(given_zyx.shape, np.bool_)
    for one in undone:
        if one.case not in (None, case):
            continue
        mine = applied.reason_zyx > 0
        if one.reason is not None:
            same = applied.reason_zyx == one.reason
            votes = applied.reason_zyx >= VOTE_BIT
            mine &= same | votes if one.reason == Reason.VOTE else same
        if one.channel is not None:
            mine &= (given_zyx == one.channel) | (applied.label_zyx == one.channel)
        back |= mine
    return Applied(
        label_zyx=np.where(back, given_zyx, applied.label_zyx),
        reason_zyx=np.where(back, np.uint8(Reason.UNCHANGED), applied.reason_zyx),
    )


def _take(
    label: Label, reason: NDArray[np.uint8], new: Label, where: NDArray[np.bool_], why: Reason
) -> None:
    label[where] = new[where]
    reason[where] = why


def _take_candidates(
    label: Label,
    reason: NDArray[np.uint8],
    given: Label,
    proposal: Proposal,
    actions: Actions,
    classes: int,
) -> None:
    """Take candidates that are confident enough for their kind of change."""
    predicted = proposal.predicted_zyx(given)
    levels = {kind: np.full(classes, LEVELS, np.int64) for kind in Kind}
    for channel, thresholds in actions.replace_above.items():
        for kind, threshold in thresholds.items():
            levels[kind][channel] = max(1, threshold_level(threshold))
    needed = np.where(
        given == 0,
        levels[Kind.ADDED][predicted],
        np.where(predicted == 0, levels[Kind.REMOVED][given], levels[Kind.SWAPPED][predicted]),
    )
    accepted = (proposal.candidate_zyx > 0) & (proposal.confidence_zyx >= needed)
    if actions.replace_below and proposal.score_zyx is not None:
        bounds = np.zeros(256, np.int64)
        for channel, below in actions.replace_below.items():
            bounds[channel] = threshold_level(below)
        accepted |= (
            (proposal.candidate_zyx > 0)
            & (proposal.confidence_zyx > 0)
            & (proposal.score_zyx < bounds[given])
        )
    if actions.closed:
        closed = list(actions.closed)
        accepted &= ~np.isin(given, closed) & ~np.isin(predicted, closed)
    _take(label, reason, predicted, accepted, Reason.REPLACE)
    if actions.fills:
        reason[accepted & np.isin(predicted, list(actions.fills))] = Reason.FILL
    if actions.by_vote and proposal.score_zyx is not None:
        reason[accepted] = VOTE_BIT | proposal.score_zyx[accepted]


def _correct(
    label: Label,
    reason: NDArray[np.uint8],
    given: Label,
    correction: NDArray[np.uint8],
    actions: Actions,
) -> None:
    """Take the corrector's class where every foreground class of the change is open to it."""
    is_open = np.zeros(256, np.bool_)
    is_open[[0, *actions.correct]] = True
    corrected = np.where(correction > 0, correction - (correction > 0), given).astype(np.uint8)
    where = (correction > 0) & is_open[given] & is_open[corrected]
    _take(label, reason, corrected, where, actions.correct_reason)


def _flip(
    label: Label,
    reason: NDArray[np.uint8],
    given: Label,
    proposal: Proposal,
    threshold: float,
) -> None:
    assert proposal.score_zyx is not None
    uncertain = proposal.score_zyx >= threshold_level(threshold)
    _take(label, reason, (1 - given).astype(np.uint8), uncertain, Reason.FLIP)
