"""Hashes of voxel positions: a random order of voxels that does not depend on blocks or workers."""

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["position_hash"]


def position_hash(
    case: str, z: NDArray[Any], y: NDArray[Any], x: NDArray[Any]
) -> NDArray[np.uint64]:
    """Return the hash of positions in a case, of the shape that z, y and x broadcast to.

    splitmix64, a bijection, of the coordinates (below 2^21 each) and the case's id: no two voxels
    of one case collide.
    """
    seed = int.from_bytes(hashlib.blake2b(case.encode(), digest_size=8).digest(), "little")
    z, y, x = (np.asarray(axis).astype(np.uint64) for axis in (z, y, x))
    with np.errstate(over="ignore"):
        h = ((z << np.uint64(42)) | (y << np.uint64(21)) | x) ^ np.uint64(seed)
        h += np.uint64(0x9E3779B97F4A7C15)
        h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(h ^ (h >> np.uint64(31)), np.uint64)
