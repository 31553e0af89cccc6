"""Objects as files in a folder.

An object is written under a temporary name in its own folder, synced, and then renamed (`put`) or
hard-linked (`create`) to its name, and the folder is synced: after a kill or a power cut the old
object, the new one or none is there, never a half. Any fault while writing removes the temporary
file and is reported as UnfitEnvironment; what a killed writer leaves is hidden and swept later.
Compare-and-swap takes a lock file, so it needs a file system whose `flock` works.
"""

import errno
import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from raysegclean.errors import MissingObject, UnfitEnvironment
from raysegclean.store.backend import ObjectInfo, already_exists, changed, missing
from raysegclean.store.holder import Holder, this_process

__all__ = ["LocalFiles"]

_HASHED_BYTES = 65536
_FORGOTTEN_S = 86400.0
_REMEDIES = {
    errno.ENOSPC: "Free space on that disk or choose another place, then run the same again.",
    errno.EDQUOT: "Your quota is used up: free space or choose another place, then run again.",
    errno.EACCES: "Give this user write access there or choose another place.",
    errno.EPERM: "Give this user write access, or choose a file system that has hard links.",
    errno.EOPNOTSUPP: "That file system has no hard links: choose another place.",
    errno.EROFS: "The file system is read-only: choose another place.",
    errno.ENOTDIR: "A file stands where a folder is needed: move it or choose another place.",
}


@dataclass(frozen=True)
class LocalFiles:
    """A folder of objects; it is made by the first write."""

    root: str

    def read(self, key: str) -> tuple[bytes, ObjectInfo]:
        """See `Store.read`."""
        path = self._path(key)
        try:
            with path.open("rb") as file:
                data, stat = file.read(), os.fstat(file.fileno())
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            if path.is_symlink() and not path.exists():
                raise MissingObject(
                    f"{path}: a link to {path.readlink()}, where nothing is. Fetch the file (as "
                    "`datalad get` does) or mend the link."
                ) from None
            raise missing(str(path)) from None
        except OSError as fault:
            raise _refused(path, "cannot be read", fault) from fault
        return data, ObjectInfo(key, len(data), _etag(data, stat))

    def head(self, key: str) -> ObjectInfo | None:
        """See `Store.head`. Objects up to 64 KiB are identified by content, others by time."""
        path = self._path(key)
        try:
            stat = path.stat()
            if not path.is_file():
                return None
            small = path.read_bytes() if stat.st_size <= _HASHED_BYTES else b""
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as fault:
            raise _refused(path, "cannot be read", fault) from fault
        return ObjectInfo(key, stat.st_size, _etag(small, stat))

    def put(self, key: str, data: bytes) -> ObjectInfo:
        """See `Store.put`."""
        path = self._path(key)
        with _temporary(path, data) as (temporary, stat):
            temporary.replace(path)
        return ObjectInfo(key, len(data), _etag(data, stat))

    def create(self, key: str, data: bytes) -> ObjectInfo:
        """See `Store.create`. A hard link is the one call that is whole and create-only."""
        path = self._path(key)
        with _temporary(path, data) as (temporary, stat):
            try:
                os.link(temporary, path)
            except FileExistsError:
                raise already_exists(str(path)) from None
        return ObjectInfo(key, len(data), _etag(data, stat))

    def swap(self, key: str, data: bytes, expected: ObjectInfo) -> ObjectInfo:
        """See `Store.swap`."""
        path = self._path(key)
        if not path.parent.is_dir():
            raise changed(str(path))
        with _locked(path.with_name(f".{path.name}.lock")):
            present = self.head(key)
            if present is None or present.etag != expected.etag:
                raise changed(str(path))
            return self.put(key, data)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `Store.list`."""
        keys = sorted(self._key(path) for path in self._files(prefix) if not _is_hidden(path))
        for key in keys:
            info = self.head(key)
            if info is not None:
                yield info
            elif self._path(key).is_symlink():  # of a file that is not here; reading it says so
                yield ObjectInfo(key, 0, "")

    def folders(self, prefix: str) -> tuple[str, ...]:
        """See `Store.folders`."""
        path = self._path(prefix)
        try:
            with os.scandir(path) as entries:
                return tuple(sorted(entry.name for entry in entries if entry.is_dir()))
        except (FileNotFoundError, NotADirectoryError):
            return ()
        except OSError as fault:
            raise _refused(path, "cannot be listed", fault) from fault

    def delete(self, key: str) -> None:
        """See `Store.delete`."""
        path = self._path(key)
        with _write_faults(path), suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()

    def delete_all(self, prefix: str) -> None:
        """See `Store.delete_all`. The folder goes as well, with what dead writers left there."""
        path = self._path(prefix)
        with _write_faults(path), suppress(FileNotFoundError, NotADirectoryError):
            shutil.rmtree(path)

    def sweep(self, prefix: str) -> None:
        """See `Store.sweep`: files of dead processes of this machine, and those a day old."""
        for path in self._files(prefix, links=False):
            if _is_hidden(path) and _is_forgotten(path):
                path.unlink(missing_ok=True)

    def kvstore(self, key: str) -> dict[str, Any]:
        """See `Store.kvstore`."""
        return {"driver": "file", "path": f"{self._path(key)}/"}

    def _path(self, key: str) -> Path:
        return Path(self.root, key)

    def _key(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _files(self, prefix: str, *, links: bool = True) -> Iterator[Path]:
        """Yield the files below a prefix, through links to folders, none twice.

        Raises UnfitEnvironment for a folder that cannot be listed: it would pass for an empty one.
        """

        def refuse(fault: OSError) -> None:
            if not isinstance(fault, FileNotFoundError | NotADirectoryError):
                raise _refused(Path(fault.filename), "cannot be listed", fault) from fault

        seen: set[tuple[int, int]] = set()
        walk = os.walk(self._path(prefix), onerror=refuse, followlinks=links)
        for folder, below, names in walk:
            if links:
                stat = Path(folder).stat()
                if (stat.st_dev, stat.st_ino) in seen:  # a link to a folder that holds it
                    below.clear()
                    continue
                seen.add((stat.st_dev, stat.st_ino))
            for name in names:
                yield Path(folder, name)


def _etag(data: bytes, stat: os.stat_result) -> str:
    """Hash small contents; rewrites within one tick of the clock must not look the same."""
    if stat.st_size <= _HASHED_BYTES:
        return blake2b(data, digest_size=16).hexdigest()
    return f"{stat.st_mtime_ns:x}-{stat.st_size:x}"


@contextmanager
def _temporary(path: Path, data: bytes) -> Iterator[tuple[Path, os.stat_result]]:
    """Offer `data`, synced, under a hidden name beside `path`; drop the name and sync after."""
    me = this_process()
    token = f"{me.machine}-{me.pid}-{me.started}-{uuid.uuid4().hex[:8]}"
    temporary = path.with_name(f".{path.name}.{token}.tmp")
    with _write_faults(path):
        _make_folders(path.parent)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                stat = os.fstat(file.fileno())
            yield temporary, stat
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)


@contextmanager
def _write_faults(path: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise
    except OSError as fault:
        raise _refused(path, "cannot be written", fault) from fault


def _refused(path: Path, what: str, fault: OSError) -> Exception:
    remedy = _REMEDIES.get(fault.errno or 0, "Check that disk, then run the same again.")
    return UnfitEnvironment(f"{path}: {what} ({fault.strerror or fault}). {remedy}")


def _make_folders(folder: Path) -> None:
    """Make `folder` and its parents durably: each new name is synced in the folder above."""
    if folder.is_dir():
        return
    _make_folders(folder.parent)
    try:
        folder.mkdir(exist_ok=True)
    except FileExistsError as fault:
        raise NotADirectoryError(errno.ENOTDIR, "Not a directory", str(folder)) from fault
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _locked(lock: Path) -> Iterator[None]:
    """Hold an exclusive lock file; it is removed before it is let go, so none stays behind."""
    with _write_faults(lock):
        handle = _take(lock)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(handle)


def _take(lock: Path) -> int:
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            if lock.stat().st_ino == os.fstat(handle).st_ino:
                return handle
        except FileNotFoundError:
            pass
        os.close(handle)  # the former holder removed this file after we had opened it


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".") and path.suffix in (".tmp", ".lock")


def _is_forgotten(path: Path) -> bool:
    if path.suffix == ".lock":
        return False
    try:
        machine, pid, started, _ = path.name.split(".")[-2].split("-")
        if Holder(machine, int(pid), int(started)).is_dead():
            return True
        return time.time() - path.stat().st_mtime > _FORGOTTEN_S
    except (ValueError, FileNotFoundError):
        return False
