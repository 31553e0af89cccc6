"""What changed, and what a label is made of, as connected regions.

A region is a 6-connected set of voxels that went from one class to another for one reason; it is
what `changes.parquet` lists, what a reviewer accepts or refuses and what undo takes back. Regions
are found per block and joined on the driver (`voxels.components`), so they do not depend on the
cut.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

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

_Keys = NDArray[np.unsignedinteger[Any]]

CLASS_BITS = 28
REASON_BITS = 8
SMALL_CLASS_BITS = 12
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
    given_zyx: IntLabel,
    output_zyx: IntLabel,
    box: Box,
    *,
    reason_zyx: NDArray[np.uint8] | None = None,
    confidence_zyx: NDArray[np.uint8] | None = None,
) -> BlockComponents:
    """Return the changed components of one block; `box` is the block, without halo, in its case.

    `confidence_zyx` holds levels (`evidence.voxel_evidence.quantise`). Raises InputError for a
    class outside 0 .. 2^28 - 1 or a shape other than that of the box.
    """
    if given_zyx.shape != output_zyx.shape:
        raise InputError(
            f"Given label and output of the block at {box.start_zyx} must have one shape, got "
            f"{given_zyx.shape} and {output_zyx.shape}."
        )
    bits = _class_bits(given_zyx, output_zyx)
    key_zyx = _change_keys(given_zyx, output_zyx, reason_zyx, bits=bits)
    found = block_components(key_zyx, box, weight_zyx=confidence_zyx)
    return replace(found, key=_repack(found.key, bits))


def change_regions(
    case: str,
    blocks: Iterable[BlockComponents],
    spacing_mm: Spacing,
    *,
    with_confidence: bool = True,
) -> list[Region]:
    """Join the blocks of one case (`change_components`) into its regions, by order of anchor.

    `with_confidence=False` says that the blocks were made without confidences.
    """
    voxel_mm3 = spacing_mm[0] * spacing_mm[1] * spacing_mm[2]
    return [
        _region(case, component, voxel_mm3, with_confidence=with_confidence)
        for component in merge_components(blocks)
    ]


def class_components(given_zyx: IntLabel, box: Box) -> BlockComponents:
    """Return the components of every class of one block of the given label."""
    if int(given_zyx.min(initial=0)) < 0:
        raise InputError(f"A label may not be negative, got {given_zyx.min()} at {box.start_zyx}.")
    return block_components(given_zyx.astype(f"u{given_zyx.dtype.itemsize}", copy=False), box)


def _class_bits(given_zyx: IntLabel, output_zyx: IntLabel) -> int:
    low = min(int(label.min(initial=0)) for label in (given_zyx, output_zyx))
    high = max(int(label.max(initial=0)) for label in (given_zyx, output_zyx))
    if low < 0 or high >= 1 << CLASS_BITS:
        raise InputError(
            f"Classes of changed regions must lie in 0..{(1 << CLASS_BITS) - 1}, got {low}..{high};"
            " renumber the classes of the label."
        )
    return SMALL_CLASS_BITS if high < 1 << SMALL_CLASS_BITS else CLASS_BITS


def _change_keys(
    given_zyx: IntLabel, output_zyx: IntLabel, reason_zyx: NDArray[np.uint8] | None, *, bits: int
) -> _Keys:
    """Pack (from, to, reason) into one integer per changed voxel, 0 where nothing changed."""
    dtype = np.uint32 if 2 * bits + REASON_BITS <= 32 else np.uint64
    key_zyx = np.zeros(given_zyx.shape, dtype)
    changed = given_zyx != output_zyx
    inner = bounding_box(changed)
    if inner is None:
        return key_zyx
    here = inner.slices
    reason = np.zeros((), dtype) if reason_zyx is None else reason_zyx[here]
    packed = _pack(given_zyx[here].astype(dtype), output_zyx[here].astype(dtype), reason, bits=bits)
    key_zyx[here] = packed * changed[here]
    return key_zyx


def _pack(class_from: _Keys, class_to: _Keys, reason: _Keys, *, bits: int) -> _Keys:
    one = class_from.dtype.type
    return (((class_from << one(bits)) | class_to) << one(REASON_BITS)) | reason


def _repack(key: NDArray[np.uint64], bits: int) -> NDArray[np.uint64]:
    """Return keys that were packed with `bits` per class in the one width that leaves here."""
    classes, reason = key >> np.uint64(REASON_BITS), key & np.uint64((1 << REASON_BITS) - 1)
    class_from, class_to = classes >> np.uint64(bits), classes & np.uint64((1 << bits) - 1)
    return _pack(class_from, class_to, reason, bits=CLASS_BITS).astype(np.uint64)


def _region(case: str, component: Component, voxel_mm3: float, *, with_confidence: bool) -> Region:
    classes, reason = divmod(component.key, 1 << REASON_BITS)
    class_from, class_to = divmod(classes, 1 << CLASS_BITS)
    level = component.weight / component.voxels
    return Region(
        case=case,
        class_from=class_from,
        class_to=class_to,
        reason=reason,
        voxels=component.voxels,
        mm3=component.voxels * voxel_mm3,
        start_zyx=component.box.start_zyx,
        stop_zyx=component.box.stop_zyx,
        anchor_zyx=component.anchor_zyx,
        confidence=(level + 0.5) / LEVELS if with_confidence else None,
    )
