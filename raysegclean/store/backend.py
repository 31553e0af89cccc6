"""What a place for objects promises, and how its faults are worded.

Two places exist: folders (`files.LocalFiles`) and buckets (`buckets.Bucket`), with the methods that
`objects.Store` describes. Both promise that an object appears whole or not at all, that `create`
and `swap` have exactly one winner, and that a failed write leaves nothing behind. Neither promises
that listing sees a write in flight.
"""

from dataclasses import dataclass

from raysegclean.errors import AlreadyExists, Conflict, MissingObject

__all__ = ["ObjectInfo", "already_exists", "changed", "missing"]


@dataclass(frozen=True, order=True)
class ObjectInfo:
    """One version of one object. `key` is relative to the store that returned it."""

    key: str
    size_bytes: int
    etag: str


def missing(uri: str) -> MissingObject:
    """Say that nothing is at `uri`."""
    return MissingObject(f"{uri}: no such object. Check the path; a bucket may need a prefix.")


def already_exists(uri: str) -> AlreadyExists:
    """Say that `uri` was to be created but is there."""
    return AlreadyExists(f"{uri}: exists already, and objects here are created once.")


def changed(uri: str) -> Conflict:
    """Say that another writer was faster."""
    return Conflict(f"{uri}: another writer changed it in between; read it again and retry.")
