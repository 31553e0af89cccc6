"""What changed, and what a label is made of, as connected regions.

A region is a 6-connected set of voxels that went from one class to another for one reason; it is
what `changes.parquet` lists, what a reviewer accepts or refuses and what undo takes back. Regions
are found per block and joined on the driver (`voxels.components`), so they do not depend on the
cut.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysegclean.errors import InputError
from raysegclean.voxels.boxes import IntLabel, bounding_box
from raysegclean.voxels.components import (
    BlockComponents,
    Component,
    block_components,
    merge_components,
)
from raysegclean.voxels.geometry import Box, Index3
from raysegclean.voxels.surface import Spacing

__all__ = ["Region", "change_components", "change_regions", "class_components"]

ByteLabel = NDArray[np.uint8]
"""Channels, axes z, y, x."""

BYTE = np.uint32(8)
LEVELS = 256
"""Levels of a quantised confidence: level q stands for [q / 256, (q + 1) / 256)."""


@dataclass(frozen=True)
class Region:
    """One connected change of one case; positions in voxels of the case, axes z, y, x."""

    case: str
    class_from: int
    class_to: int
    reason: int
    voxels: int
    mm3: float
    start_zyx: Index3
    stop_zyx: Index3
    """End of its bounding box, exclusive."""
    anchor_zyx: Index3
    """Its first voxel in z, y, x order: certainly inside, and unique to it."""
    confidence: float | None
    """Mean over its voxels, in (0, 1); None where no confidence was recorded."""


def change_components(
    given_zyx: ByteLabel,
    output_zyx: ByteLabel,
    box: Box,
    *,
    reason_zyx: NDArray[np.uint8] | None = None,
    confidence_zyx: NDArray[np.uint8] | None = None,
) -> BlockComponents:
    """Return the changed components of one block; `box` is the block, without halo, in its case.

    The labels hold channels, so that classes may be any number. `confidence_zyx` holds levels
    (`evidence.voxel_evidence.quantise`). Raises InputError for a shape other than that of the box.
    """
    if given_zyx.shape != output_zyx.shape:
        raise InputError(
            f"Given label and output of the block at {box.start_zyx} must have one shape, got "
            f"{given_zyx.shape} and {output_zyx.shape}."
        )
    key_zyx = _change_keys(given_zyx, output_zyx, reason_zyx)
    return block_components(key_zyx, box, weight_zyx=confidence_zyx)


def change_regions(
    case: str,
    blocks: Iterable[BlockComponents],
    spacing_mm: Spacing,
    values: Sequence[int],
    *,
    with_confidence: bool = True,
) -> list[Region]:
    """Join the blocks of one case (`change_components`) into its regions, by order of anchor.

    `values` are the classes by channel. `with_confidence=False` says that the blocks were made
    without confidences.
    """
    voxel_mm3 = spacing_mm[0] * spacing_mm[1] * spacing_mm[2]
    return [
        _region(case, component, voxel_mm3, values, with_confidence=with_confidence)
        for component in merge_components(blocks)
    ]


def class_components(given_zyx: IntLabel, box: Box) -> BlockComponents:
    """Return the components of every class of one block of the given label."""
    if int(given_zyx.min(initial=0)) < 0:
        raise InputError(f"A label may not be negative, got {given_zyx.min()} at {box.start_zyx}.")
    return block_components(given_zyx.astype(f"u{given_zyx.dtype.itemsize}", copy=False), box)


def _change_keys(
    given_zyx: ByteLabel, output_zyx: ByteLabel, reason_zyx: NDArray[np.uint8] | None
) -> NDArray[np.uint32]:
    """Pack (from, to, reason) into one integer per changed voxel, 0 where nothing changed."""
    key_zyx = np.zeros(given_zyx.shape, np.uint32)
    changed = given_zyx != output_zyx
    inner = bounding_box(changed)
    if inner is None:
        return key_zyx
    here = inner.slices
    packed = (given_zyx[here].astype(np.uint32) << BYTE | output_zyx[here]) << BYTE
    if reason_zyx is not None:
        packed |= reason_zyx[here]
    key_zyx[here] = packed * changed[here]
    return key_zyx


def _region(
    case: str,
    component: Component,
    voxel_mm3: float,
    values: Sequence[int],
    *,
    with_confidence: bool,
) -> Region:
    _, channel_from, channel_to, reason = component.key.to_bytes(4)
    level = component.weight / component.voxels
    return Region(
        case=case,
        class_from=values[channel_from],
        class_to=values[channel_to],
        reason=reason,
        voxels=component.voxels,
        mm3=component.voxels * voxel_mm3,
        start_zyx=component.box.start_zyx,
        stop_zyx=component.box.stop_zyx,
        anchor_zyx=component.anchor_zyx,
        confidence=(level + 0.5) / LEVELS if with_confidence else None,
    )
