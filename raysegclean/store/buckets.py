"""Objects in a bucket, through obstore: S3 and what speaks it, Google Cloud Storage, Azure.

Endpoint, region and keys come from the environment (AWS_ENDPOINT_URL, AWS_REGION,
AWS_ACCESS_KEY_ID, ...), never from a URI or a config, so that none is ever pickled or logged.
`create` and `swap` are conditional puts, which the bucket must support (S3, GCS and Azure do;
some look-alikes silently do not, and `Store.check_writable` finds out). Every object is one put,
never a multipart upload, so its size is limited to the 5 GB of S3.

Every request is repeated while the store stutters (`patience`). A conditional put carries a mark in
the object's metadata, so one whose answer is unclear is resolved by looking: ours, another's, or
not there.
"""

import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, GenericError, PreconditionError
from obstore.store import ObjectStore as Client
from obstore.store import from_url

from raysegclean.errors import Conflict, UnfitEnvironment
from raysegclean.store.backend import ObjectInfo, already_exists, changed, missing
from raysegclean.store.patience import Unclear, ask, passes

__all__ = ["Bucket"]

_LIMITS = {
    f"{cloud}_{name}": value
    for cloud in ("AWS", "GOOGLE", "AZURE")
    for name, value in (("TIMEOUT", "1h"), ("CONNECT_TIMEOUT", "30s"))
}
"""A put is one request, and 5 GB over a slow line take long; the library's own limit is 30 s."""
_PLAIN = {"AWS_ALLOW_HTTP": "true"}

_MARK = "raysegclean"
"""Of an object's metadata: which put wrote it."""


@dataclass(frozen=True)
class Bucket:
    """A prefix in a bucket. `uri` is scheme://bucket/prefix without a slash at the end."""

    uri: str

    def read(self, key: str) -> tuple[bytes, ObjectInfo]:
        """See `Store.read`."""

        def request() -> tuple[bytes, ObjectInfo]:
            try:
                answer = obstore.get(self._client, self._full(key))
                data = bytes(answer.bytes())
            except FileNotFoundError:
                raise missing(self._uri(key)) from None
            return data, ObjectInfo(key, len(data), answer.meta["e_tag"] or "")

        return ask(self._uri(key), "read", request)

    def head(self, key: str) -> ObjectInfo | None:
        """See `Store.head`."""
        found = ask(self._uri(key), "read", lambda: self._look(key))
        return found and found[0]

    def put(self, key: str, data: bytes) -> ObjectInfo:
        """See `Store.put`."""
        return ask(self._uri(key), "written", lambda: self._put(key, data, "overwrite"))

    def create(self, key: str, data: bytes) -> ObjectInfo:
        """See `Store.create`."""
        mark = uuid.uuid4().hex

        def request() -> ObjectInfo:
            try:
                return self._put(key, data, "create", mark)
            except (AlreadyExistsError, GenericError) as fault:
                if not passes(fault):
                    raise
                found = self._look(key)
                if found is None:  # 409 is also "somebody is at it", and he may have failed
                    raise Unclear(str(fault)) from fault
                if found[1] != mark:
                    raise already_exists(self._uri(key)) from None
                return found[0]

        return ask(self._uri(key), "written", request)

    def swap(self, key: str, data: bytes, expected: ObjectInfo) -> ObjectInfo:
        """See `Store.swap`."""
        mark = uuid.uuid4().hex

        def request() -> ObjectInfo:
            try:
                return self._put(key, data, self._only(key, expected), mark)
            except (AlreadyExistsError, PreconditionError, GenericError, Conflict) as fault:
                if isinstance(fault, GenericError) and not passes(fault):
                    raise
                found = self._look(key)
                if found is not None and found[1] == mark:
                    return found[0]
                if found is None or found[0].etag != expected.etag:
                    raise changed(self._uri(key)) from None
                raise Unclear(str(fault)) from fault

        return ask(self._uri(key), "written", request)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `Store.list`."""
        cut = len(self._full(""))

        def request() -> list[ObjectInfo]:
            batches = obstore.list(self._client, self._full(prefix) or None)
            return [
                ObjectInfo(meta["path"][cut:], meta["size"], meta["e_tag"] or "")
                for batch in batches
                for meta in batch
            ]

        yield from sorted(ask(self._uri(prefix), "listed", request))

    def folders(self, prefix: str) -> tuple[str, ...]:
        """See `Store.folders`."""
        at = self._full(prefix) or None
        answer = ask(
            self._uri(prefix), "listed", lambda: obstore.list_with_delimiter(self._client, at)
        )
        names = (path.rstrip("/").rpartition("/")[2] for path in answer["common_prefixes"])
        return tuple(sorted(names))

    def delete(self, key: str) -> None:
        """See `Store.delete`."""
        self._delete(key, self._full(key))

    def delete_all(self, prefix: str) -> None:
        """See `Store.delete_all`."""
        doomed = [info.key for info in self.list(prefix)]
        if doomed and not self._delete(prefix, [self._full(key) for key in doomed]):
            for key in doomed:  # one was gone; what became of the others is not told
                self.delete(key)

    def sweep(self, prefix: str) -> None:
        """See `Store.sweep`: a put that died leaves nothing in a bucket."""

    def kvstore(self, key: str) -> dict[str, Any]:
        """See `Store.kvstore`."""
        scheme, bucket, _ = self._parts
        where = {"bucket": bucket, "path": f"{self._full(key)}/"}
        if scheme == "s3":
            return {"driver": "s3", **where, **_s3_options()}
        if scheme == "gs":
            return {"driver": "gcs", **where}
        raise UnfitEnvironment(
            f"{self.uri}: arrays in Azure cannot be read yet. Keep the archive in a folder, at "
            "s3:// or at gs://."
        )

    @property
    def _parts(self) -> tuple[str, str, str]:
        """Scheme, bucket and prefix."""
        scheme, _, place = self.uri.partition("://")
        bucket, _, prefix = place.partition("/")
        return scheme, bucket, prefix

    @property
    def _client(self) -> Client:
        scheme, bucket, _ = self._parts
        return _client(f"{scheme}://{bucket}", _environment())

    def _full(self, key: str) -> str:
        prefix = self._parts[2]
        return f"{prefix}/{key}" if prefix else key

    def _uri(self, key: str) -> str:
        return f"{self.uri}/{key}" if key else self.uri

    def _delete(self, key: str, paths: str | Sequence[str]) -> bool:
        """Delete objects; return False when one of them was not there."""

        def request() -> bool:
            with suppress(FileNotFoundError):
                obstore.delete(self._client, paths)
                return True
            return False

        return ask(self._uri(key), "deleted", request)

    def _look(self, key: str) -> tuple[ObjectInfo, str | None] | None:
        """Return what is there and the mark of the conditional put that wrote it, once asked."""
        try:
            answer = obstore.get(self._client, self._full(key), options={"head": True})
        except FileNotFoundError:
            return None
        meta = answer.meta
        return ObjectInfo(key, meta["size"], meta["e_tag"] or ""), answer.attributes.get(_MARK)

    def _put(self, key: str, data: bytes, mode: Any, mark: str | None = None) -> ObjectInfo:
        about: Any = {_MARK: mark} if mark else None
        answer = obstore.put(
            self._client,
            self._full(key),
            data,
            attributes=about,
            mode=mode,
            use_multipart=False,
        )
        return ObjectInfo(key, len(data), answer["e_tag"] or "")

    def _only(self, key: str, expected: ObjectInfo) -> dict[str, str | None]:
        """Return what a put must find; Google's wants a generation, which no listing tells."""
        if self._parts[0] != "gs":
            return {"e_tag": expected.etag}
        try:
            meta = obstore.head(self._client, self._full(key))
        except FileNotFoundError:
            raise changed(self._uri(key)) from None
        if meta["e_tag"] != expected.etag:
            raise changed(self._uri(key))
        return {"e_tag": meta["e_tag"], "version": meta["version"]}


@lru_cache(maxsize=64)
def _client(uri: str, environment: tuple[tuple[str, str], ...]) -> Client:
    """Open one client per bucket, process and credentials: it owns the connections."""
    settings = dict(environment)
    plain = settings.get("AWS_ENDPOINT_URL", "").startswith("http://")
    # By the environment, because options that are given here would replace those of the user there.
    for name, value in (_LIMITS | (_PLAIN if plain else {})).items():
        os.environ.setdefault(name, value)
    return from_url(uri, retry_config={"max_retries": 0})  # `patience` repeats, here only


def _environment() -> tuple[tuple[str, str], ...]:
    prefixes = ("AWS_", "GOOGLE_", "AZURE_")
    return tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith(prefixes)))


def _s3_options() -> dict[str, Any]:
    """Translate the environment for tensorstore, which reads only a part of it."""
    options: dict[str, Any] = {}
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if endpoint:
        options["endpoint"] = endpoint.rstrip("/")
    if region:
        options["aws_region"] = region
    if os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true"):
        options["aws_credentials"] = {"type": "anonymous"}
    elif "AWS_ACCESS_KEY_ID" in os.environ:
        options["aws_credentials"] = {"type": "environment"}
    return options
