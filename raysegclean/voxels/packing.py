"""Small arrays as text, for ledger records: compressed npz without pickles, in base64."""

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["arrays_to_text", "text_to_arrays"]


def arrays_to_text(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return named arrays as one line of text; object arrays are refused with ValueError."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **dict(arrays))
    return base64.b64encode(buffer.getvalue()).decode()


def text_to_arrays(text: str) -> dict[str, NDArray[Any]]:
    """Return what `arrays_to_text` packed."""
    with np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
