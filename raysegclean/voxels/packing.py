"""Small arrays as text, for ledger records: compressed npz without pickles, in base64."""

import base64
import io
import zlib
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["arrays_to_text", "mask_to_text", "text_to_arrays", "text_to_mask"]


def arrays_to_text(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return named arrays as one line of text; object arrays are refused with ValueError."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **dict(arrays))
    return base64.b64encode(buffer.getvalue()).decode()


def text_to_arrays(text: str) -> dict[str, NDArray[Any]]:
    """Return what `arrays_to_text` packed."""
    with np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def mask_to_text(mask_zyx: NDArray[np.bool_]) -> str:
    """Return which voxels of a box are true as one line of text; a bit each, compressed."""
    return base64.b64encode(zlib.compress(np.packbits(mask_zyx).tobytes())).decode()


def text_to_mask(text: str, shape_zyx: tuple[int, int, int]) -> NDArray[np.bool_]:
    """Return what `mask_to_text` packed, as a mask of this shape."""
    bits = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
    return np.unpackbits(bits, count=prod(shape_zyx)).astype(np.bool_).reshape(shape_zyx)
