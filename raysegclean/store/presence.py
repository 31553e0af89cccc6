"""What is gone is not zero: finding the objects that must be there and are not.

Zarr reads an object that is gone as background. The ledger knows which objects a shard left, and
an array how many it has, so one that is gone is found by listing, without a voxel read.
"""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from raysegclean.errors import CaseError
from raysegclean.evidence.records import ShardRecord
from raysegclean.store.arrays import Volume
from raysegclean.store.objects import ObjectInfo, Store

__all__ = ["SHARDS", "check_shards", "lacking"]

R = TypeVar("R", bound=ShardRecord)

SHARDS = "shards"
"""The attribute that says how many objects an array has."""
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


def check_shards(
    case: str, volume: Volume, own: Mapping[str, Any], found: Iterable[ObjectInfo] | None = None
) -> None:
    """Raise CaseError when a volume has fewer objects than were written; they would read as 0.

    own: what this package keeps about it; found: a listing of the case, if there is one already.
    """
    wanted = own.get(SHARDS)
    if not isinstance(wanted, int):
        return
    listed = volume.store.list(f"{volume.path}/c") if found is None else found
    present = sum(info.key.startswith(f"{volume.path}/c/") for info in listed)
    if present < wanted:
        remedy = (
            f"`raysegclean verify {own['run']}` names them, and running its config again writes "
            "them."
            if own.get("derived") and "run" in own
            else "Restore them, or delete the case and ingest it again."
        )
        raise CaseError(
            case,
            f"{volume.uri}: {present} of {wanted} objects are there, and those that are gone would "
            f"read as 0. {remedy}",
        )


def _folder(key: str) -> str:
    return "/".join(key.split("/")[:_FOLDER_PARTS])
