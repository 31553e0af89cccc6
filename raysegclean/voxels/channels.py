"""Label values and channels: a channel is the position of a label value among the classes."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from raysegclean.voxels.geometry import Box

__all__ = ["CHANNELS", "IGNORE", "UNKNOWN", "byte_channels", "channels_of", "pad_to_box"]

IGNORE = -100
"""Channel index of voxels without a say in training: padding, and values outside the classes."""

UNKNOWN = 255
"""The same in a label of bytes, whose classes are fewer: a value that `label_ignore` names, or none
of the run's classes. Such voxels are not judged and never change."""

CHANNELS = UNKNOWN + 1
"""Values that a channel in a label of bytes can have."""


def pad_to_box(
    array: NDArray[Any], have: Box, want: Box, fill: Literal["edge"] | int = "edge"
) -> NDArray[Any]:
    """Return `array` (..., Z, Y, X), the voxels of `have`, padded to `want`, which contains it.

    Images are padded with their edge values, labels with `IGNORE`.
    """
    before = [h - w for h, w in zip(have.start_zyx, want.start_zyx, strict=True)]
    after = [w - h for h, w in zip(have.stop_zyx, want.stop_zyx, strict=True)]
    if not any(before) and not any(after):
        return array
    widths = [(0, 0)] * (array.ndim - 3) + list(zip(before, after, strict=True))
    if fill == "edge":
        return np.pad(array, widths, mode="edge")
    return np.pad(array, widths, mode="constant", constant_values=fill)


def channels_of(label_zyx: NDArray[Any], classes: Sequence[int]) -> NDArray[np.int16]:
    """Return the channel index of every voxel: the position of its value in `classes`.

    Values that are not among `classes` become `IGNORE`.

    >>> channels_of(np.array([[[0, 7, 3]]]), (0, 3)).tolist()
    [[[0, -100, 1]]]
    """
    values = np.asarray(classes, np.uint64)
    if label_zyx.dtype.kind == "u" and label_zyx.dtype.itemsize <= 2:
        table = np.full(np.iinfo(label_zyx.dtype).max + 1, IGNORE, np.int16)
        fits = values < len(table)
        table[values[fits]] = np.flatnonzero(fits)
        channels: NDArray[np.int16] = table[label_zyx]
        return channels
    order = np.argsort(values)
    label = label_zyx.astype(np.uint64, copy=False)  # a mixture of kinds would become floats
    at = np.searchsorted(values[order], label).clip(max=len(values) - 1)
    known = values[order][at] == label
    return np.where(known, order[at], IGNORE).astype(np.int16)


def byte_channels(label_zyx: NDArray[Any], classes: Sequence[int]) -> NDArray[np.uint8]:
    """Return `channels_of` as bytes: values that are not among `classes` become `UNKNOWN`.

    >>> byte_channels(np.array([[[0, 7, 3]]]), (0, 3)).tolist()
    [[[0, 255, 1]]]
    """
    channels = channels_of(label_zyx, classes)
    channels[channels == IGNORE] = UNKNOWN
    return channels.astype(np.uint8)
