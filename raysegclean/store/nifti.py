"""NIfTI files in memory: bytes to voxels and back, bit for bit.

NIfTI indexes x, y, z; archives index z, y, x, so arrays are transposed on the way in and out.
Integers without a scale are kept as they are stored; scaled ones become float32, where that can
hold them. The geometry fields of the header travel as JSON, so that an exported file has the same
affine, voxel sizes and codes as the file that came in. Text fields of the header, which may name a
patient, do not.
"""

import gzip
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from raysegclean.errors import InputError
from raysegclean.store.arrays import Array
from raysegclean.store.name_tables import names_in_extensions

__all__ = ["Nifti", "decode_nifti", "encode_nifti", "stem"]

_SUFFIXES = (".nii.gz", ".nii")
_UNREADABLE = (
    *(ImageFileError, HeaderDataError, WrapStructError),
    *(OSError, EOFError, ValueError, zlib.error),
)
_UNITS_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 1e-3}
"""NIfTI's codes for unknown, metre, millimetre and micrometre."""
_QFORM = ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
_SFORM = ("srow_x", "srow_y", "srow_z")
_GEOMETRY = ("pixdim", "xyzt_units", "qform_code", "sform_code", *_QFORM, *_SFORM)
_CODE_OF = dict.fromkeys(_QFORM, "qform_code") | dict.fromkeys(_SFORM, "sform_code")
"""The field that says whether another one is used: 0 is no."""
_TEXT_CODES = frozenset({0, 6, 30, 44})
"""Extensions that may hold text: unknown (TotalSegmentator), comment, Caret, JSON."""
_NIFTI1_EDGE = 32767
_EXACT_FLOAT32 = 1 << 24
_ORDERS: tuple[Literal["little", "big"], ...] = ("little", "big")


@dataclass(frozen=True)
class Nifti:
    """One decoded file: `array` is ZYX, or CZYX with several channels; `header` is JSON.

    `affine` goes from voxels x, y, z to millimetres, whatever the file's unit; `header` keeps it.
    """

    array: Array
    spacing_mm: tuple[float, float, float]
    affine: npt.NDArray[np.float64]
    header: dict[str, Any]
    class_names: Mapping[int, str] = field(default_factory=dict)
    """What its values are called, where an extension of its header says so."""
    scale: float = 0.0
    """What the header says that stored values are multiplied by; 0 where it says nothing."""


def stem(name: str) -> str | None:
    """Return a file name without its NIfTI extension, or None when it has none."""
    for suffix in _SUFFIXES:
        if name.lower().endswith(suffix) and not name.startswith("."):
            return name[: -len(suffix)]
    return None


def decode_nifti(data: bytes) -> Nifti:
    """Return the content of a .nii or .nii.gz file; raise InputError saying why it cannot be."""
    try:
        raw = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        image = _image_class(raw).from_bytes(raw)
        stored = np.asanyarray(image.dataobj.get_unscaled())
    except _UNREADABLE as fault:
        raise InputError(
            f"not a readable NIfTI file ({fault}). It may be cut short: copy it again."
        ) from fault
    if stored.dtype.kind not in "iuf" or stored.dtype.itemsize > 8:
        raise InputError(f"voxels of type {stored.dtype}. Save it with integer or float voxels.")
    slope, inter = float(image.dataobj.slope), float(image.dataobj.inter)
    plain = (slope, inter) == (1.0, 0.0)
    array = stored if plain else _scaled(stored, slope, inter)
    affine = _affine_mm(image)
    header = {name: _plain(image.header, name) for name in _GEOMETRY}
    header |= {"shape": list(array.shape), "dtype": stored.dtype.newbyteorder("=").name}
    header["version"] = 2 if image.header["sizeof_hdr"] == 540 else 1
    named = names_in_extensions(_texts(image))
    scale = 0.0 if plain else slope
    return Nifti(_to_zyx(array), _spacing_mm(affine), affine, header, named, scale)


def encode_nifti(array: Array, header: dict[str, Any] | None, affine: Array) -> bytes:
    """Return a .nii.gz file of `array`, ZYX or CZYX.

    `header` is that of `decode_nifti`, whose geometry wins; without one, `affine` is used. The
    header's dtype is used where it can hold the values. Equal input gives equal bytes.
    """
    kept = header or {}
    voxels = array.T
    if "shape" in kept and int(np.prod(kept["shape"])) == voxels.size:
        voxels = voxels.reshape(kept["shape"], order="F")
    voxels = voxels.astype(_file_dtype(array, kept.get("dtype")))
    big = kept.get("version") == 2 or max(voxels.shape) > _NIFTI1_EDGE
    kind: Any = nib.Nifti2Image if big else nib.Nifti1Image
    image = kind(voxels, None if header else affine, dtype=voxels.dtype)
    for name in _GEOMETRY:
        if name in kept:
            image.header[name] = kept[name]
    return gzip.compress(image.to_bytes(), compresslevel=6, mtime=0)


def _scaled(stored: Array, slope: float, inter: float) -> Array:
    """Return what is stored, scaled; float32, but float64 for whole numbers too large for it.

    Slice by slice, because a whole volume of float64 is four times the file.
    """
    low, high = (
        abs(float(edge) * slope + inter) for edge in (stored.min(initial=0), stored.max(initial=0))
    )
    whole = stored.dtype.kind in "iu" and slope.is_integer() and inter.is_integer()
    kind = np.float64 if whole and max(low, high) > _EXACT_FLOAT32 else np.float32
    array = np.empty(stored.shape, kind, order="F")
    for number in range(stored.shape[-1]):
        array[..., number] = stored[..., number] * np.float64(slope) + np.float64(inter)
    return array


def _image_class(raw: bytes) -> Any:
    sizes = {int.from_bytes(raw[:4], order) for order in _ORDERS}
    return nib.Nifti2Image if 540 in sizes else nib.Nifti1Image


def _texts(image: Any) -> Iterator[bytes]:
    for extension in image.header.extensions:
        if extension.get_code() in _TEXT_CODES:
            yield extension.content


def _affine_mm(image: Any) -> npt.NDArray[np.float64]:
    unit = int(image.header["xyzt_units"]) % 8
    if unit not in _UNITS_MM:
        raise InputError(
            f"unit {unit} of the voxel sizes (xyzt_units), expected 1 (metre), 2 (millimetre) or "
            "3 (micrometre). Correct it in the header."
        )
    affine = np.array(image.affine, np.float64)
    affine[:3] *= _UNITS_MM[unit]
    if not np.isfinite(affine).all():
        raise InputError("the affine holds NaN or infinite numbers. Correct it in the header.")
    return affine


def _plain(header: Any, name: str) -> Any:
    """Return a field as JSON values, which know no NaN; it is 0 in fields that are not used."""
    field = np.asarray(header[name])
    if np.isfinite(field).all():
        return field.tolist()
    if name not in _CODE_OF or header[_CODE_OF[name]] != 0:
        raise InputError(
            f"header field {name} is {field.tolist()}, expected finite numbers. Correct the header."
        )
    return np.where(np.isfinite(field), field, 0).tolist()


def _spacing_mm(affine: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    if not all(0.0 < edge < float("inf") for edge in (x, y, z)):
        raise InputError(
            f"voxel sizes {x} x {y} x {z} mm are not positive. Correct the affine in its header."
        )
    return z, y, x


def _to_zyx(array: Array) -> Array:
    """Return x, y, z (t) (c) as z, y, x or c, z, y, x, dropping axes of length 1 beyond z."""
    extra = [n for n in array.shape[3:] if n != 1]
    if array.ndim < 3 or len(extra) > 1:
        raise InputError(f"shape {array.shape}, expected x, y, z and at most channels after them.")
    folded = array.reshape(array.shape[:3] + tuple(extra), order="F")
    return np.ascontiguousarray(folded.T, dtype=folded.dtype.newbyteorder("="))


def _file_dtype(array: Array, wanted: str | None) -> np.dtype[Any]:
    """Return the source's dtype where it holds every value, else one that NIfTI knows."""
    if wanted is not None:
        kind = np.dtype(wanted)
        if np.array_equal(array.astype(kind).astype(array.dtype), array):
            return kind
    if array.dtype == np.float16:
        return np.dtype(np.float32)
    return np.dtype(np.uint8) if array.dtype == np.bool_ else array.dtype
