"""Rules: from a proposal to a new label, voxel by voxel, with a reason for every change.

A rule never invents: it moves the given boundary, takes the candidate, or leaves the label alone.
Decisions come per case and class (research: voxel thresholds alone remove a quarter of the error
or harm clean cases), so the rule is handed the edits of one case.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysegclean.evidence.case_scores import Kind
from raysegclean.evidence.proposals import Proposal
from raysegclean.evidence.voxel_evidence import LEVELS, threshold_level
from raysegclean.policy.edits import (
    VOTE_BIT,
    CaseEdits,
    FlipAbove,
    Gross,
    Reason,
    ReplaceBelow,
    Review,
    Shift,
    TakesCandidates,
    Votes,
)
from raysegclean.policy.gross_apply import repair_gross
from raysegclean.policy.taking import take, take_open
from raysegclean.voxels.channels import CHANNELS, UNKNOWN
from raysegclean.voxels.geometry import Box, Index3
from raysegclean.voxels.signed_distance import Spacing, shift_label

__all__ = ["Applied", "TakenBack", "apply_edits", "take_back"]

Label = NDArray[np.uint8]


@dataclass(frozen=True)
class Applied:
    """The new label of one block and why; axes z, y, x."""

    label_zyx: Label
    reason_zyx: NDArray[np.uint8]


def apply_edits(
    given_zyx: Label,
    core: Box,
    proposal: Proposal | None,
    edits: CaseEdits,
    *,
    classes: int,
    spacing_mm: Spacing,
    restated_zyx: Label | None = None,
    start_zyx: Index3 = (0, 0, 0),
) -> Applied:
    """Return the new label of `core` from the given label with halo (channel indices, z y x).

    Gross errors are repaired first. The outline moves; candidates of the voters are then taken on
    top of it, and what a second pass wrote, where there is one, has the last word. `restated_zyx`
    is what `gross_apply.restated` says of the core, which starts at `start_zyx` of the case. Voxels
    whose given channel is `UNKNOWN` never change.
    """
    given_core = given_zyx[core.slices]
    label = given_core.copy()
    reason = np.zeros(label.shape, np.uint8)
    if edits.of(Gross) and proposal is not None:
        predicted = proposal.predicted_zyx(given_core)
        repair_gross(label, reason, predicted, edits, restated_zyx, start_zyx)
    if edits.of(Shift):
        shifts = {channel: edit.shift_vox for channel, edit in edits.of(Shift).items()}
        moved = shift_label(given_zyx, shifts, classes=range(1, classes), spacing_mm=spacing_mm)
        new = moved[core.slices].astype(np.uint8)
        take(label, reason, new, new != given_core, Shift.reason)
    if proposal is not None:
        if edits.of(TakesCandidates) or isinstance(edits.rule, ReplaceBelow):
            _take_candidates(label, reason, given_core, proposal, edits)
        if proposal.correction_zyx is not None:
            _revise(label, reason, given_core, proposal.correction_zyx, edits)
        if isinstance(edits.rule, FlipAbove):
            _flip(label, reason, given_core, proposal, edits.rule.share)
    unknown = given_core == UNKNOWN
    label[unknown] = UNKNOWN
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


def _take_candidates(
    label: Label,
    reason: NDArray[np.uint8],
    given: Label,
    proposal: Proposal,
    edits: CaseEdits,
) -> None:
    """Take candidates that are confident enough for their kind of change."""
    predicted = proposal.predicted_zyx(given)
    levels = {kind: np.full(CHANNELS, LEVELS, np.int64) for kind in Kind}
    reasons = np.full(CHANNELS, TakesCandidates.reason, np.uint8)
    for channel, edit in edits.of(TakesCandidates).items():
        reasons[channel] = edit.reason
        for kind, threshold in edit.above.items():
            levels[kind][channel] = max(1, threshold_level(threshold))
    needed = np.where(
        given == 0,
        levels[Kind.ADDED][predicted],
        np.where(predicted == 0, levels[Kind.REMOVED][given], levels[Kind.SWAPPED][predicted]),
    )
    accepted = (proposal.candidate_zyx > 0) & (proposal.confidence_zyx >= needed)
    if isinstance(edits.rule, ReplaceBelow) and proposal.score_zyx is not None:
        accepted |= (
            (proposal.candidate_zyx > 0)
            & (proposal.confidence_zyx > 0)
            & (proposal.score_zyx < threshold_level(edits.rule.share))
        )
    is_open = np.ones(CHANNELS, np.bool_)
    is_open[list(edits.of(Review))] = False
    accepted &= is_open[given] & is_open[predicted]
    take(label, reason, predicted, accepted, reasons[predicted])
    if isinstance(edits.rule, Votes) and proposal.score_zyx is not None:
        reason[accepted] = VOTE_BIT | proposal.score_zyx[accepted]


def _revise(
    label: Label,
    reason: NDArray[np.uint8],
    given: Label,
    revised: NDArray[np.uint8],
    edits: CaseEdits,
) -> None:
    """Take a second pass's class where every foreground class of the change is open to it."""
    new = np.where(revised > 0, revised - (revised > 0), given).astype(np.uint8)
    take_open(label, reason, given, new, revised > 0, edits.revisions)


def _flip(
    label: Label,
    reason: NDArray[np.uint8],
    given: Label,
    proposal: Proposal,
    threshold: float,
) -> None:
    assert proposal.score_zyx is not None
    uncertain = proposal.score_zyx >= threshold_level(threshold)
    take(label, reason, (1 - given).astype(np.uint8), uncertain, Reason.FLIP)
