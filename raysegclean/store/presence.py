"""What is gone is not zero: finding the objects that must be there and are not.

Zarr reads an object that is gone as background. The ledger knows which objects a shard left, so
one that is gone, or cut short, is found by listing, without a voxel read.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from raysegclean.evidence.records import ShardRecord
from raysegclean.store.objects import Store

__all__ = ["lacking"]

R = TypeVar("R", bound=ShardRecord)

_READERS = 16
_FOLDER_PARTS = 2
"""Objects lie under two names, such as proposals/<key> or labels/<label>."""


def lacking(records: Iterable[R], at: Callable[[str], Store]) -> list[R]:
    """Return the records that list an object which is gone or has another size.

    at: case -> where the keys of its objects begin.
    """
    wanted = [(one, entry) for one in records for entry in one.objects if not entry.empty]
    folders = sorted({(one.case, _folder(entry.key)) for one, entry in wanted})

    def sizes(place: tuple[str, str]) -> dict[tuple[str, str], int]:
        case, folder = place
        return {(case, info.key): info.size_bytes for info in at(case).list(folder)}

    present: dict[tuple[str, str], int] = {}
    with ThreadPoolExecutor(_READERS) as pool:
        for found in pool.map(sizes, folders):
            present |= found
    gone = {
        id(one): one
        for one, entry in wanted
        if present.get((one.case, entry.key)) != entry.size_bytes
    }
    return list(gone.values())


def _folder(key: str) -> str:
    return "/".join(key.split("/")[:_FOLDER_PARTS])
