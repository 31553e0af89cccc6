"""One way to reach objects, wherever they are.

A `Store` is a prefix: a folder or a place in a bucket. It carries nothing but its URI, so it costs
nothing to send to another process, which reaches the place anew. An object appears whole or not
at all; `create` never overwrites; `swap` overwrites exactly one known version. Keys use `/` and
are relative to the store. No credentials are kept here; they stay in the environment.
"""

import json
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from raysegclean.errors import (
    AlreadyExists,
    ConfigError,
    Conflict,
    InputError,
    UnfitEnvironment,
)
from raysegclean.store.backend import ObjectInfo
from raysegclean.store.files import LocalFiles

if TYPE_CHECKING:
    from raysegclean.store.buckets import Bucket

__all__ = ["LABEL_NAME", "ObjectInfo", "Store", "as_json", "check_key", "check_label_name"]

LABEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$"
"""What a label may be called, in a config and in an archive."""

# What some bucket or file system refuses or rewrites in a name.
_FORBIDDEN = set('\\{}^%`[]"<>~#|*?\r\n')
_IGNORED = (
    "{}: this bucket ignores conditional puts ({}), so runs could write over each other. Use S3, "
    "Google Cloud Storage, a server that keeps to them (as MinIO does), or a folder."
)


@dataclass(frozen=True)
class Store:
    """A prefix of objects; build it with `Store.open`."""

    uri: str

    @classmethod
    def open(cls, uri: "str | os.PathLike[str] | Store") -> "Store":
        """Return the store at a path, file://, s3://, gs:// or az:// URI; touch nothing.

        Raises ConfigError for another scheme.
        """
        if isinstance(uri, Store):
            return uri
        text = os.fspath(uri)
        scheme, divider, rest = text.partition("://")
        if not divider:
            # Without `..`, which readers of arrays refuse: one place has one spelling.
            return cls(os.path.abspath(Path(text).expanduser()))  # noqa: PTH100
        if scheme == "file":
            return cls(os.path.abspath(unquote(urlsplit(text).path)))  # noqa: PTH100
        if scheme not in ("s3", "gs", "az") or not rest.strip("/"):
            raise ConfigError(
                f"{text}: not a place for data. Give a path, file:///path, s3://bucket/prefix, "
                "gs://bucket/prefix or az://container/prefix."
            )
        return cls(f"{scheme}://{rest.strip('/')}")

    def at(self, *parts: str) -> "Store":
        """Return the store below this one."""
        return Store("/".join([self.uri, *(check_key(part) for part in parts)]))

    def get(self, key: str) -> bytes:
        """Return an object's bytes; raise MissingObject."""
        return self.read(key)[0]

    def read(self, key: str) -> tuple[bytes, ObjectInfo]:
        """Return an object's bytes and their version, as `swap` needs it; raise MissingObject."""
        return self._backend.read(check_key(key))

    def head(self, key: str) -> ObjectInfo | None:
        """Return the present version of an object, or None."""
        return self._backend.head(check_key(key))

    def put(self, key: str, data: bytes) -> ObjectInfo:
        """Write an object whole, over an old one; raise UnfitEnvironment and leave no part."""
        return self._backend.put(check_key(key), data)

    def create(self, key: str, data: bytes) -> ObjectInfo:
        """Write an object where there is none; raise AlreadyExists."""
        return self._backend.create(check_key(key), data)

    def swap(self, key: str, data: bytes, expected: ObjectInfo | None) -> ObjectInfo:
        """Write an object over exactly the version `expected` (None: none); raise Conflict."""
        if expected is not None:
            return self._backend.swap(check_key(key), data, expected)
        try:
            return self._backend.create(check_key(key), data)
        except AlreadyExists as fault:
            raise Conflict(str(fault)) from None

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield all objects below the folder `prefix`, sorted by key."""
        return self._backend.list(check_key(prefix) if prefix else "")

    def folders(self, prefix: str = "") -> tuple[str, ...]:
        """Return the sorted names of the folders directly below `prefix`."""
        return self._backend.folders(check_key(prefix) if prefix else "")

    def delete(self, key: str) -> None:
        """Remove one object; a missing one is no error."""
        self._backend.delete(check_key(key))

    def delete_all(self, prefix: str) -> None:
        """Remove all objects below the folder `prefix` (never the store itself)."""
        self._backend.delete_all(check_key(prefix))

    def sweep(self, prefix: str = "") -> None:
        """Remove temporary files of writers that died; call it when a run starts or resumes."""
        self._backend.sweep(check_key(prefix) if prefix else "")

    def get_json(self, key: str) -> Any:
        """Return a JSON object's value; raise MissingObject, or InputError when it is not JSON."""
        return self.read_json(key)[0]

    def read_json(self, key: str) -> tuple[Any, ObjectInfo]:
        """Return a JSON object's value and its version."""
        data, info = self.read(key)
        try:
            return json.loads(data), info
        except ValueError as fault:
            raise InputError(
                f"{self.uri}/{key}: not JSON ({fault}). It was damaged after it was written: "
                "restore it or delete it."
            ) from fault

    def put_json(self, key: str, value: Any) -> ObjectInfo:
        """Write a value as JSON, over an old one."""
        return self.put(key, as_json(value))

    def kvstore(self, key: str) -> dict[str, Any]:
        """Return the tensorstore spec of the folder `key`."""
        return self._backend.kvstore(check_key(key))

    def check_writable(self) -> None:
        """Write and remove a probe; raise UnfitEnvironment naming the place and the remedy.

        Conditional puts are tried as well: without them two runs may both take one lock.
        """
        probe = f".raysegclean-probe-{uuid.uuid4().hex[:8]}"
        first = self.create(probe, b"probe")
        try:
            self._check_conditional(probe, first)
        finally:
            self.delete(probe)

    def _check_conditional(self, probe: str, first: ObjectInfo) -> None:
        """Raise UnfitEnvironment unless creating and swapping each have one winner."""
        self.swap(probe, b"swapped", first)
        with suppress(AlreadyExists):
            self.create(probe, b"created twice")
            raise UnfitEnvironment(_IGNORED.format(self.uri, "If-None-Match"))
        with suppress(Conflict):
            self.swap(probe, b"swapped twice", first)
            raise UnfitEnvironment(_IGNORED.format(self.uri, "If-Match"))

    def __reduce__(self) -> tuple[type["Store"], tuple[str]]:
        """Pickle the URI alone; connections belong to a process."""
        return Store, (self.uri,)

    @cached_property
    def _backend(self) -> "LocalFiles | Bucket":
        if "://" not in self.uri:
            return LocalFiles(self.uri)
        from raysegclean.store.buckets import Bucket

        return Bucket(self.uri)


def as_json(value: Any) -> bytes:
    """Return readable JSON; NaN is refused because other readers refuse it."""
    return json.dumps(value, indent=2, allow_nan=False).encode() + b"\n"


def check_key(key: str) -> str:
    """Return `key` when every place can hold it under that very name; raise ConfigError."""
    bad = sorted(_FORBIDDEN.intersection(key))
    segments = key.split("/")
    if bad or not all(segments) or "." in segments or ".." in segments:
        raise ConfigError(
            f"{key!r}: not a name for an object. Use names without {' '.join(bad) or 'empty'} "
            "parts; letters, digits, spaces, dots, dashes and underscores are safe."
        )
    return key


def check_label_name(name: str) -> str:
    """Return `name` when a label may be called so; raise ConfigError."""
    if re.fullmatch(LABEL_NAME, name) is None or name.endswith("\n"):
        raise ConfigError(
            f"{name!r}: not a name for a label. Use letters, digits, '_', '-' and '.', and begin "
            "with a letter or digit."
        )
    return name
