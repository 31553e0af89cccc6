"""What a place for objects must be able to do, and how its faults are worded.

Two places exist: folders (`files.LocalFiles`) and buckets (`buckets.Bucket`). Both promise that an
object appears whole or not at all, that `create` and `swap` have exactly one winner, and that a
failed write leaves nothing behind. Neither promises that listing sees a write in flight.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from raysegclean.errors import AlreadyExists, Conflict, MissingObject, UnfitEnvironment

__all__ = ["Backend", "ObjectInfo", "already_exists", "changed", "missing", "unfit"]


@dataclass(frozen=True, order=True)
class ObjectInfo:
    """One version of one object. `key` is relative to the store that returned it."""

    key: str
    size_bytes: int
    etag: str


class Backend(Protocol):
    """A folder or a bucket prefix; keys are relative, with `/` between segments."""

    def read(self, key: str) -> tuple[bytes, ObjectInfo]:
        """Return the bytes and the version they belong to; raise MissingObject."""

    def head(self, key: str) -> ObjectInfo | None:
        """Return the present version, or None."""

    def put(self, key: str, data: bytes) -> ObjectInfo:
        """Write the object, over an old one if there is one."""

    def create(self, key: str, data: bytes) -> ObjectInfo:
        """Write the object where none is; raise AlreadyExists."""

    def swap(self, key: str, data: bytes, expected: ObjectInfo) -> ObjectInfo:
        """Write over exactly the version `expected`; raise Conflict."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield all objects below the folder `prefix`, sorted by key."""

    def folders(self, prefix: str) -> tuple[str, ...]:
        """Return the sorted names of the folders directly below `prefix`."""

    def delete(self, key: str) -> None:
        """Remove one object; a missing one is no error."""

    def delete_all(self, prefix: str) -> None:
        """Remove all objects below the folder `prefix`."""

    def sweep(self, prefix: str) -> None:
        """Remove what writers that died have left below `prefix`."""

    def kvstore(self, key: str) -> dict[str, Any]:
        """Return the tensorstore key-value spec of the folder `key`."""

    def zarr_store(self) -> Any:
        """Return a zarr-python store over this place."""


def missing(uri: str) -> MissingObject:
    """Say that nothing is at `uri`."""
    return MissingObject(f"{uri}: no such object. Check the path; a bucket may need a prefix.")


def already_exists(uri: str) -> AlreadyExists:
    """Say that `uri` was to be created but is there."""
    return AlreadyExists(f"{uri}: exists already, and objects here are created once.")


def changed(uri: str) -> Conflict:
    """Say that another writer was faster."""
    return Conflict(f"{uri}: another writer changed it in between; read it again and retry.")


def unfit(uri: str, cause: str, remedy: str) -> UnfitEnvironment:
    """Say that the place itself refuses, why, and what to do."""
    return UnfitEnvironment(f"{uri}: {cause}. {remedy}")
