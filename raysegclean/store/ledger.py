"""What a run has committed: committed means listed here.

One object per item, attempt and part is created under `ledger/<stage>/<term>/`, after the shards
that it lists, so a listed shard is always there; a shard that is not listed is computed again. The
records of all terms count, in the order of terms and keys; of two records for one shard the
first counts, whichever term wrote the second. Compaction moves many small objects into packs and
is safe to interrupt: a record is never in neither place.

A line is one record with its place in that order, sealed by a checksum. A line that is torn or
damaged is skipped with a warning, as if it had never been committed, and never read as another.
"""

import hashlib
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

import google_crc32c
from pydantic import TypeAdapter

from raysegclean.errors import AlreadyExists, MissingObject, RunConflict
from raysegclean.evidence.records import ShardRecord
from raysegclean.store.objects import Store, check_key

__all__ = ["Ledger"]

log = logging.getLogger("raysegclean")

R = TypeVar("R", bound=ShardRecord)
_Order = tuple[int, str, int]
"""Term, object and line: where a record was committed."""

_READERS = 16
_PACK = 1000
"""Objects in one pack."""
_LOOSE, _PACKED = ".jsonl", ".pack"
_NAMED = 10
"""Damaged lines that a warning names at most."""


@dataclass(frozen=True)
class Ledger(Generic[R]):
    """The records of one stage, of `kind` or a parent of it, for those who need no more.

    Commits go to `term`, the term of the run's lock.
    """

    store: Store
    stage: str
    kind: type[R]
    term: int = 0

    def commit(self, item: str, attempt: int, part: int, records: Sequence[R]) -> None:
        """Commit `records`, all of one kind, in one conditional put; the same twice is one.

        Raises RunConflict when this item, attempt and part was committed with other records.
        """
        name = check_key(f"{item}-{attempt}-{part}")
        key = f"{self._folder}/{self.term}/{name}{_LOOSE}"
        dump = TypeAdapter(type(records[0])).dump_json
        texts = (dump(record, exclude_defaults=True) for record in records)
        lines = (_sealed(text, (self.term, name, i)) for i, text in enumerate(texts))
        data = b"".join(lines)
        try:
            self.store.create(key, data)
        except AlreadyExists as fault:
            if self.store.get(key) != data:
                raise RunConflict(
                    f"{self.store.uri}/{key}: committed before with other records. Two drivers "
                    "work on this run: stop one of them, then run again."
                ) from fault

    def records(self) -> list[R]:
        """Return the records of all terms, oldest first, one for each shard under one key."""
        found: dict[_Order, R] = {}
        with ThreadPoolExecutor(_READERS) as pool:
            # Packs last: what a compaction takes away while we read is then in one of them.
            for suffix in (_LOOSE, _PACKED):
                for lines in pool.map(self._lines, self._keys(suffix)):
                    found.update(map(self._opened, lines))
        chosen: dict[tuple[str, str], R] = {}
        for order in sorted(found):
            chosen.setdefault((found[order].task, found[order].key), found[order])
        return list(chosen.values())

    def of_item(self, item: str) -> list[R]:
        """Return what any attempt at one item has committed in this term."""
        keys = [info.key for info in self.store.list(f"{self._folder}/{self.term}")]
        mine = [key for key in keys if key.rpartition("/")[2].rsplit("-", 2)[0] == item]
        return [self._opened(line)[1] for key in mine for line in self._lines(key)]

    def compact(self, least: int = _PACK) -> int:
        """Move the lines of objects, `least` to a pack, as they are; return how many were moved.

        Fewer than `least` are left as they are. Safe to interrupt, to repeat, and beside readers
        and other compactions: a pack is whole before the first of its objects goes, and is named
        by its content.
        """
        keys, moved = self._keys(_LOOSE), 0
        with ThreadPoolExecutor(_READERS) as pool:
            while len(keys) - moved >= least:
                pack = keys[moved : moved + least]
                lines = [line for part in pool.map(self._lines, pack) for line in part]
                data = b"".join(line + b"\n" for line in lines)
                name = hashlib.sha256(data).hexdigest()[:16]
                self.store.put(f"{self._folder}/{name}{_PACKED}", data)
                list(pool.map(self.store.delete, pack))
                moved += least
        return moved

    @property
    def _folder(self) -> str:
        return f"ledger/{self.stage}"

    def _keys(self, suffix: str) -> list[str]:
        return [i.key for i in self.store.list(self._folder) if i.key.endswith(suffix)]

    def _lines(self, key: str) -> list[bytes]:
        """Return the whole lines of an object; warn of the others."""
        try:
            *lines, torn = self.store.get(key).split(b"\n")
        except MissingObject:
            return []  # A compaction took it since it was listed.
        whole = [line for line in lines if _is_whole(line)]
        if torn or len(whole) < len(lines):
            bad = [str(n) for n, line in enumerate(lines, 1) if not _is_whole(line)]
            bad += [f"{len(lines) + 1} (torn)"] if torn else []
            log.warning(
                "%s/%s: skipped what is damaged, line %s: the checksum of a line does not fit. "
                "Shards that only these listed are done again.",
                self.store.uri,
                key,
                ", ".join(bad[:_NAMED]) + (", ..." if len(bad) > _NAMED else ""),
            )
        return whole

    def _opened(self, line: bytes) -> tuple[_Order, R]:
        text, _, at = line.rpartition(_SEAL)[0].rpartition(_AT)
        term, name, place = at[1:-1].decode().split("/")
        return (int(term), name, int(place)), self._adapter.validate_json(text + b"}")

    @cached_property
    def _adapter(self) -> TypeAdapter[R]:
        return TypeAdapter(self.kind)


_AT, _SEAL = b',"at":', b',"crc32c":"'


def _sealed(text: bytes, order: _Order) -> bytes:
    """Return the line of a record: its JSON, where it was committed, the checksum of all that."""
    body = text[:-1] + _AT + b'"%d/%b/%d"' % (order[0], order[1].encode(), order[2])
    return body + _SEAL + _checksum(body) + b'"}\n'


def _is_whole(line: bytes) -> bool:
    body, _, end = line.rpartition(_SEAL)
    return end == _checksum(body) + b'"}'


def _checksum(data: bytes) -> bytes:
    return b"%08x" % google_crc32c.value(data)
