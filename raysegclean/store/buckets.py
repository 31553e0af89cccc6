"""Objects in a bucket, through obstore: S3 and what speaks it, Google Cloud Storage, Azure.

Endpoint, region and keys come from the environment (AWS_ENDPOINT_URL, AWS_REGION,
AWS_ACCESS_KEY_ID, ...), never from a URI or a config, so that none is ever pickled or logged.
`create` and `swap` are conditional puts, which the bucket must support (S3, GCS and Azure do;
some look-alikes silently do not, and `Store.check_writable` finds out). Every object is one put,
never a multipart upload, so its size is limited to the 5 GB of S3.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import ObjectStore as Client
from obstore.store import from_url

from raysegclean.errors import RaysegcleanError, UnfitEnvironment
from raysegclean.store.backend import ObjectInfo, already_exists, changed, missing

__all__ = ["Bucket"]

_LIMITS = {
    f"{cloud}_{name}": value
    for cloud in ("AWS", "GOOGLE", "AZURE")
    for name, value in (("TIMEOUT", "1h"), ("CONNECT_TIMEOUT", "30s"))
}
"""A put is one request, and 5 GB over a slow line take long; the library's own limit is 30 s."""
_PLAIN = {"AWS_ALLOW_HTTP": "true"}

_REMEDY = (
    "Check the bucket's name, the endpoint (AWS_ENDPOINT_URL), the region and that the keys in "
    "the environment may do this."
)


@dataclass(frozen=True)
class Bucket:
    """A prefix in a bucket. `uri` is scheme://bucket/prefix without a slash at the end."""

    uri: str

    def read(self, key: str) -> tuple[bytes, ObjectInfo]:
        """See `Store.read`."""
        with self._faults(key, "read"):
            try:
                answer = obstore.get(self._client, self._full(key))
                data = bytes(answer.bytes())
            except FileNotFoundError:
                raise missing(self._uri(key)) from None
        return data, ObjectInfo(key, len(data), answer.meta["e_tag"] or "")

    def head(self, key: str) -> ObjectInfo | None:
        """See `Store.head`."""
        with self._faults(key, "read"):
            try:
                meta = obstore.head(self._client, self._full(key))
            except FileNotFoundError:
                return None
        return ObjectInfo(key, meta["size"], meta["e_tag"] or "")

    def put(self, key: str, data: bytes) -> ObjectInfo:
        """See `Store.put`."""
        return self._put(key, data, "overwrite")

    def create(self, key: str, data: bytes) -> ObjectInfo:
        """See `Store.create`."""
        try:
            return self._put(key, data, "create")
        except AlreadyExistsError:
            raise already_exists(self._uri(key)) from None

    def swap(self, key: str, data: bytes, expected: ObjectInfo) -> ObjectInfo:
        """See `Store.swap`."""
        try:
            return self._put(key, data, self._only(key, expected))
        except PreconditionError:
            raise changed(self._uri(key)) from None

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `Store.list`."""
        cut = len(self._full(""))
        with self._faults(prefix, "listed"):
            batches = obstore.list(self._client, self._full(prefix) or None)
            found = [
                ObjectInfo(meta["path"][cut:], meta["size"], meta["e_tag"] or "")
                for batch in batches
                for meta in batch
            ]
        yield from sorted(found)

    def folders(self, prefix: str) -> tuple[str, ...]:
        """See `Store.folders`."""
        with self._faults(prefix, "listed"):
            answer = obstore.list_with_delimiter(self._client, self._full(prefix) or None)
        names = (path.rstrip("/").rpartition("/")[2] for path in answer["common_prefixes"])
        return tuple(sorted(names))

    def delete(self, key: str) -> None:
        """See `Store.delete`."""
        with self._faults(key, "deleted"), suppress(FileNotFoundError):
            obstore.delete(self._client, self._full(key))

    def delete_all(self, prefix: str) -> None:
        """See `Store.delete_all`."""
        doomed = [info.key for info in self.list(prefix)]
        if not doomed:
            return
        with self._faults(prefix, "deleted"):
            try:
                obstore.delete(self._client, [self._full(key) for key in doomed])
            except FileNotFoundError:  # of one of them; what became of the others is not told
                for key in doomed:
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

    def _put(self, key: str, data: bytes, mode: Any) -> ObjectInfo:
        with self._faults(key, "written"):
            answer = obstore.put(
                self._client, self._full(key), data, mode=mode, use_multipart=False
            )
        return ObjectInfo(key, len(data), answer["e_tag"] or "")

    def _only(self, key: str, expected: ObjectInfo) -> dict[str, str | None]:
        """Return what a put must find; Google's wants a generation, which no listing tells."""
        if self._parts[0] != "gs":
            return {"e_tag": expected.etag}
        with self._faults(key, "read"):
            try:
                meta = obstore.head(self._client, self._full(key))
            except FileNotFoundError:
                raise changed(self._uri(key)) from None
        if meta["e_tag"] != expected.etag:
            raise changed(self._uri(key))
        return {"e_tag": meta["e_tag"], "version": meta["version"]}

    @contextmanager
    def _faults(self, key: str, what: str) -> Iterator[None]:
        try:
            yield
        except (AlreadyExistsError, PreconditionError, RaysegcleanError):
            raise
        except (BaseError, OSError) as fault:
            cause = str(fault).partition("\n")[0][:300]
            text = f"{self._uri(key)}: cannot be {what} ({cause}). {_REMEDY}"
            raise UnfitEnvironment(text) from fault


@lru_cache(maxsize=64)
def _client(uri: str, environment: tuple[tuple[str, str], ...]) -> Client:
    """Open one client per bucket, process and credentials: it owns the connections."""
    settings = dict(environment)
    plain = settings.get("AWS_ENDPOINT_URL", "").startswith("http://")
    # By the environment, because options that are given here would replace those of the user there.
    for name, value in (_LIMITS | (_PLAIN if plain else {})).items():
        os.environ.setdefault(name, value)
    return from_url(uri)


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
