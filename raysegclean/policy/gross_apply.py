"""Gross errors, repaired voxel by voxel: a block of the case gives what the whole case gives.

A label that was mirrored or displaced is read where it lies; what comes in from outside the case,
what lies beyond a cut and what belongs to a blob is the networks'. Only background and classes that
are open to the edit are taken or given; a class that is left for a person is neither.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from raysegclean.policy.edits import (
    CaseEdits,
    Cut,
    Displace,
    Exchange,
    Mirror,
    Reason,
    Region,
    Review,
    WholeLabel,
)
from raysegclean.policy.taking import take, take_open
from raysegclean.voxels.channels import CHANNELS, UNKNOWN
from raysegclean.voxels.geometry import Box, Index3, triple
from raysegclean.voxels.packing import text_to_mask

__all__ = ["UNSEEN", "repair_gross", "restated"]

Label = NDArray[np.uint8]

UNSEEN = UNKNOWN
"""Channel of voxels of which a label that lay elsewhere says nothing."""


def restated(
    read: Callable[[Box], Label], core: Box, shape_zyx: Index3, edits: CaseEdits
) -> Label | None:
    """Return the given label of `core` as it would be without the error of the whole label.

    `read` returns the given channels (z y x) of a box inside the case. Voxels that come in from
    outside the case are `UNSEEN`. None where nothing is wrong with the whole label.
    """
    mirrors, moves = list(edits.of(Mirror).values()), list(edits.of(Displace).values())
    exchanged = edits.of(Exchange)
    if mirrors:
        label = _mirrored(read, core, shape_zyx, mirrors[0].axis)
    elif moves:
        label = _displaced(read, core, shape_zyx, moves[0].by_zyx)
    elif exchanged:
        label = read(core)
    else:
        return None
    becomes = np.arange(CHANNELS, dtype=np.uint8)
    for channel, edit in exchanged.items():
        becomes[channel] = edit.becomes
    return becomes[label]


def _mirrored(read: Callable[[Box], Label], core: Box, shape_zyx: Index3, axis: int) -> Label:
    start, stop = list(core.start_zyx), list(core.stop_zyx)
    start[axis] = shape_zyx[axis] - core.stop_zyx[axis]
    stop[axis] = shape_zyx[axis] - core.start_zyx[axis]
    return np.flip(read(Box.of(start, stop)), axis)


def _displaced(read: Callable[[Box], Label], core: Box, shape_zyx: Index3, by_zyx: Index3) -> Label:
    out = np.full(core.shape_zyx, UNSEEN, np.uint8)
    source = core.moved(triple(-step for step in by_zyx)).clipped(Box.whole(shape_zyx))
    if source.voxels:
        out[source.moved(by_zyx).relative_to(core).slices] = read(source)
    return out


def repair_gross(
    label: Label,
    reason: NDArray[np.uint8],
    predicted: Label,
    edits: CaseEdits,
    restated_zyx: Label | None,
    start_zyx: Index3,
) -> None:
    """Write the repairs of one block into its `label` and `reason`, both as given before.

    `predicted` are the networks' channels, `restated_zyx` is what `restated` returned for the
    block, which starts at `start_zyx` of the case; axes z, y, x.
    """
    given = label.copy()
    if restated_zyx is not None:
        _restate(label, reason, predicted, edits, restated_zyx)
    for channel, cut in edits.of(Cut).items():
        lost = _beyond(cut, start_zyx, triple(given.shape)) & (given == 0)
        lost &= (predicted == channel) & (predicted != label)
        take(label, reason, predicted, lost, cut.reason)
    closed = np.zeros(CHANNELS, np.bool_)
    closed[list(edits.of(Review))] = True
    for channel, region in edits.of(Region).items():
        mine = _inside(region, start_zyx, triple(given.shape))
        mine &= (given == channel) | (predicted == channel)
        mine &= ~closed[given] & ~closed[predicted] & (predicted != label)
        take(label, reason, predicted, mine, region.reason)


def _restate(
    label: Label, reason: NDArray[np.uint8], predicted: Label, edits: CaseEdits, wanted: Label
) -> None:
    """Take the restated label where every class of the change is restated."""
    reasons = {channel: _reason(edit) for channel, edit in edits.of(WholeLabel).items()}
    seen = np.where(np.isin(predicted, list(reasons)), predicted, 0)
    new = np.where(wanted == UNSEEN, seen, wanted).astype(np.uint8)
    take_open(label, reason, label, new, new != label, reasons)


def _reason(edit: WholeLabel) -> Reason:
    assert isinstance(edit, Exchange | Mirror | Displace)
    return edit.reason


def _beyond(cut: Cut, start_zyx: Index3, shape_zyx: Index3) -> NDArray[np.bool_]:
    index = start_zyx[cut.axis] + np.arange(shape_zyx[cut.axis])
    beyond = index >= cut.plane_vox if cut.upwards else index <= cut.plane_vox
    along = [1, 1, 1]
    along[cut.axis] = -1
    return np.broadcast_to(beyond.reshape(along), shape_zyx)


def _inside(region: Region, start_zyx: Index3, shape_zyx: Index3) -> NDArray[np.bool_]:
    inside = np.zeros(shape_zyx, np.bool_)
    block = Box.whole(shape_zyx).moved(start_zyx)
    shared = region.box.clipped(block)
    if shared.voxels:
        blob = text_to_mask(region.voxels, region.box.shape_zyx)
        inside[shared.relative_to(block).slices] = blob[shared.relative_to(region.box).slices]
    return inside
