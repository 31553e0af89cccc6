"""Whether a label fits its image: as many voxels, at the same place, with whole numbers.

One check for files that come in and for archives of others, so that nothing is used here that is
refused there. What is known of a cause is said with its remedy.
"""

from dataclasses import dataclass

import numpy as np

from raysegclean.errors import CaseError
from raysegclean.store.arrays import Array
from raysegclean.voxels.geometry import triple
from raysegclean.voxels.placement import Affine, same_place

__all__ = ["Placed", "as_label", "check_fit", "check_shape"]

_EXACT = 2.0**53
"""From here on a float skips whole numbers."""
_ROUNDED = 1e-3
_MOST_ROUNDED = 0.05


@dataclass(frozen=True)
class Placed:
    """Voxels, and where they lie."""

    shape: tuple[int, ...]
    """Axes z, y, x, after those of channels."""
    affine: Affine


def check_fit(case: str, name: str, label: Placed, image: Placed, remedy: str) -> None:
    """Raise CaseError unless a label has the voxels of its image, and lies on it.

    `remedy` is said where it lies elsewhere.
    """
    check_shape(case, name, label.shape, image.shape)
    elsewhere = same_place(image.affine, label.affine, triple(image.shape[-3:]))
    if elsewhere:
        raise CaseError(
            case,
            f"label {name!r} lies elsewhere than its image: {elsewhere}. "
            f"Resample the label to the image, or {remedy} if that is known to be wrong.",
        )


def check_shape(
    case: str, name: str, label_shape: tuple[int, ...], image_shape: tuple[int, ...]
) -> None:
    """Raise CaseError unless a label has the voxels z, y, x of its image."""
    image_zyx = image_shape[-3:]
    if label_shape == image_zyx:
        return
    if label_shape[-3:] == image_zyx:
        raise CaseError(
            case,
            f"label {name!r} has {label_shape[0]} channels on the voxels of its image, expected "
            "one volume of class numbers. With one channel per class, save their argmax.",
        )
    raise CaseError(
        case,
        f"label {name!r} has {label_shape} voxels (z, y, x), its image {image_zyx}. "
        "Resample the label to the image.",
    )


def as_label(
    case: str, name: str, label: Array, shape_zyx: tuple[int, ...], scale: float = 0.0
) -> Array:
    """Return `label` as unsigned integers: its own type, or the smallest that holds its values.

    `scale` is the factor of a file's header that made floats of stored integers, 0 where there is
    none: such values are whole up to half of it, and are rounded. Raises CaseError for another
    shape, for values that are no whole numbers or too large for a float to be one, and below zero.
    """
    check_shape(case, name, label.shape, shape_zyx)
    if label.dtype.kind == "u":
        return label
    if label.dtype.kind == "f":
        _check_no_nan(case, name, label)
        label = _rounded(label, scale)
    if label.dtype.kind not in "bif" or not np.array_equal(label, np.floor(label)):
        raise CaseError(case, f"label {name!r} ({label.dtype}) {_why_not_whole(scale)}")
    low, high = label.min(initial=0), label.max(initial=0)
    if label.dtype.kind == "f" and not max(-low, high) < _EXACT:
        raise CaseError(
            case,
            f"label {name!r} ({label.dtype}) holds {low if -low > high else high}, expected whole "
            "numbers below 2^53. Map its values to small ones.",
        )
    lowest, highest = int(low), int(high)
    if lowest < 0:
        raise CaseError(
            case, f"label {name!r} holds {lowest}. Labels start at 0: shift or map its values."
        )
    return label.astype(np.min_scalar_type(highest))


def _check_no_nan(case: str, name: str, label: Array) -> None:
    missing = int(np.isnan(label).sum())
    if missing:
        raise CaseError(
            case,
            f"label {name!r} ({label.dtype}) holds NaN in {missing} voxels, as resampling leaves "
            "outside. Set them to 0, the background.",
        )


def _rounded(label: Array, scale: float) -> Array:
    """Return the whole numbers that a header's scale has blurred; `label` where it has not."""
    if not scale:
        return label
    whole = np.rint(label)
    blur = min(_MOST_ROUNDED, _ROUNDED + abs(scale) / 2)
    return whole if np.abs(label - whole).max(initial=0) <= blur else label


def _why_not_whole(scale: float) -> str:
    if scale:
        return (
            f"holds values that are no whole numbers: its header scales what is stored by {scale:g}"
            " (scl_slope). Save it again as integers without a scale, rounded."
        )
    return (
        "holds values that are no whole numbers. It may be a probability map: threshold it first."
    )
