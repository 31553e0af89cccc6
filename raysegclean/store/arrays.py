"""Reading voxels.

A `Volume` is one Zarr v3 array of a case, image or label, in any chunk layout, on files or S3. It
is cheap to send to a process and opens there at the first read. Decoded chunks are kept in one
cache of 256 MB per process, so neighbouring boxes do not decode their shared halo twice; what was
cached before a volume was opened is checked for changes, what it reads later is not, because
inputs are immutable during a run. A damaged shard is an InputError that names array and box.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from raysegclean.errors import InputError, MissingObject, UnfitEnvironment
from raysegclean.store.objects import Store
from raysegclean.voxels.geometry import Box, Index3, triple

__all__ = ["Array", "PendingRead", "Volume"]

Array = npt.NDArray[Any]

_CACHE_BYTES = 256_000_000
_UNKNOWN_CODEC = re.compile(r'"([^"]+)" is not registered')


@dataclass(frozen=True)
class PendingRead:
    """A read under way; `result` waits for it."""

    future: Any
    """Of tensorstore."""
    explain: Callable[[Exception], Exception]

    def result(self) -> Array:
        """Return the voxels; raise InputError when a shard is damaged."""
        try:
            return np.asarray(self.future.result())
        except (ValueError, OSError, RuntimeError) as fault:
            raise self.explain(fault) from fault


@dataclass(frozen=True)
class Volume:
    """An array with axes z, y, x or c, z, y, x at `path` in `store`.

    Others write a c of one channel and a t of one time point as well; these axes are left out.
    """

    store: Store
    path: str
    axes: str = ""
    """What the metadata of its group calls the axes, a letter each, where there is any."""

    @property
    def uri(self) -> str:
        """Where the array is, for messages."""
        return f"{self.store.uri}/{self.path}"

    @property
    def shape(self) -> tuple[int, ...]:
        """All edge lengths, c first if there is a c."""
        return tuple(self._array.shape)

    @property
    def shape_zyx(self) -> Index3:
        """Edge lengths in voxels, without c."""
        return triple(self.shape[-3:])

    @property
    def channels(self) -> int:
        """Number of channels; 1 when there is no c axis."""
        return self.shape[0] if len(self.shape) == 4 else 1

    @property
    def dtype(self) -> np.dtype[Any]:
        """Voxel type, in native byte order."""
        return np.dtype(self._array.dtype.numpy_dtype)

    def start(self, box: Box) -> PendingRead:
        """Begin to read all channels of `box`; raise InputError when it sticks out."""
        if box.clipped(Box.whole(self.shape_zyx)) != box or 0 in box.shape_zyx:
            raise InputError(
                f"{self.uri}: box {_words(box)} is empty or sticks out of {self.shape_zyx} voxels "
                "(z, y, x). Clip it."
            )
        slices = (slice(None),) * (len(self.shape) - 3) + box.slices
        return PendingRead(self._array[slices].read(), lambda fault: self._damaged(box, fault))

    def read(self, box: Box) -> Array:
        """Return the voxels of `box`, CZYX when the array has a c axis, else ZYX."""
        return self.start(box).result()

    def read_all(self) -> Array:
        """Return the whole array; for small cases and tests."""
        return self.read(Box.whole(self.shape_zyx))

    def __reduce__(self) -> tuple[type["Volume"], tuple[Store, str, str]]:
        """Pickle the place alone; the opened array belongs to a process."""
        return Volume, (self.store, self.path, self.axes)

    @cached_property
    def _array(self) -> ts.TensorStore:
        spec = {
            "driver": "zarr3",
            "kvstore": self.store.kvstore(self.path),
            "recheck_cached_data": "open",
            "recheck_cached_metadata": "open",
        }
        try:
            array = ts.open(spec, read=True, open=True, context=_context()).result()
        except (ValueError, OSError, RuntimeError) as fault:
            raise self._unopened(fault) from fault
        return self._without_single_axes(array)

    def _without_single_axes(self, array: ts.TensorStore) -> ts.TensorStore:
        """Return the array as (c) z, y, x; raise InputError where it has more."""
        axes = self.axes or "tczyx"[-array.rank :]
        if len(axes) != array.rank or not axes.endswith("zyx"):
            raise InputError(
                f"{self.uri}: {array.rank} axes, expected {self.axes or 'z, y, x or c, z, y, x'}. "
                "Ingest the case again from its source."
            )
        if "t" in axes and array.shape[axes.index("t")] != 1:
            raise InputError(
                f"{self.uri}: {array.shape[axes.index('t')]} time points, expected one. "
                "Make a case of each."
            )
        single = [n for n in range(array.rank - 3) if array.shape[n] == 1]
        return array[tuple(0 if n in single else slice(None) for n in range(array.rank))]

    def _unopened(self, fault: Exception) -> Exception:
        cause = _cause(fault)
        if cause.startswith("NOT_FOUND"):
            return MissingObject(f"{self.uri}: no Zarr v3 array here. Ingest the case again.")
        if _is_refusal(cause):
            return UnfitEnvironment(f"{self.uri}: cannot be read ({cause}). Check access rights.")
        if codec := _UNKNOWN_CODEC.search(str(fault)):
            return InputError(
                f"{self.uri}: its voxels are packed with the codec {codec[1]!r}, which is not read "
                "here. Write the array again with zstd, blosc or gzip."
            )
        return InputError(f"{self.uri}: not a readable Zarr v3 array ({cause}). Ingest it again.")

    def _damaged(self, box: Box, fault: Exception) -> Exception:
        cause = _cause(fault)
        if _is_refusal(cause):
            return UnfitEnvironment(f"{self.uri}: cannot be read ({cause}). Check the connection.")
        return InputError(
            f"{self.uri}: box {_words(box)} cannot be decoded ({cause}). A shard is truncated or "
            "damaged: restore it or ingest the case again."
        )


@lru_cache(maxsize=1)
def _context() -> ts.Context:
    """Share cache and threads among all volumes of this process."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
    return ts.Context(
        {
            "cache_pool": {"total_bytes_limit": _CACHE_BYTES},
            "data_copy_concurrency": {"limit": cores},
        }
    )


def _words(box: Box) -> str:
    return f"{box.start_zyx} to {box.stop_zyx}"


def _cause(fault: Exception) -> str:
    """Shorten tensorstore's message, which repeats its whole specification."""
    return str(fault).partition(" [source locations")[0][:300]


_REFUSALS = (
    *("PERMISSION_DENIED", "UNAUTHENTICATED", "UNAVAILABLE", "DEADLINE_EXCEEDED"),
    *("ABORTED", "CANCELLED", "RESOURCE_EXHAUSTED"),
)
"""Of tensorstore: no right to it, no connection, retries used up, too many open files."""


def _is_refusal(cause: str) -> bool:
    return cause.startswith(_REFUSALS) or "ExpiredToken" in cause
