"""What a run has committed: committed means listed here.

One object per item, attempt and part is created under `ledger/<stage>/<term>/`, after the shards
that it lists, so a listed shard is always there; a shard that is not listed is computed again. The
records of all terms count, in the order of terms and keys; of two records for one shard the
first counts, whichever term wrote the second. Compaction moves many small objects into tables and
is safe to interrupt: a record is never in neither place.
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from raysegclean.errors import AlreadyExists, InputError, MissingObject, RunConflict
from raysegclean.store.objects import Store, check_key
from raysegclean.store.parquet import from_parquet, to_parquet

__all__ = ["Ledger", "Record"]

Record = dict[str, Any]

_READERS = 16
_PACK = 1000
"""Objects in one table: of a stage with fewer every line stays readable by eye."""


@dataclass(frozen=True)
class _Line:
    """One record with the key that committed it and its place there; sorts by age."""

    term: int
    source: str
    place: int
    record: Record

    @property
    def order(self) -> tuple[int, str, int]:
        return self.term, self.source, self.place


@dataclass(frozen=True)
class Ledger:
    """The records of one stage; commits go to `term`, the term of the run's lock."""

    store: Store
    stage: str
    term: int

    def commit(self, item: str, attempt: int, part: int, records: list[Record]) -> None:
        """Commit `records` in one conditional put; the same commit twice is one.

        Raises RunConflict when this item, attempt and part was committed with other records.
        """
        name = check_key(f"{item}-{attempt}-{part}.jsonl")
        key = f"{self._folder}/{self.term}/{name}"
        lines = (json.dumps(record, sort_keys=True, allow_nan=False) for record in records)
        data = "".join(f"{line}\n" for line in lines).encode()
        try:
            self.store.create(key, data)
        except AlreadyExists as fault:
            if self.store.get(key) != data:
                raise RunConflict(
                    f"{self.store.uri}/{key}: committed before with other records. Two drivers "
                    "work on this run: stop one of them, then run again."
                ) from fault

    def records(self) -> list[Record]:
        """Return the records of all terms, oldest first, one per `record["shard"]`.

        That name must tell apart the shards of different cases and arrays; records without one
        are all kept.
        """
        seen: set[str] = set()
        chosen = []
        for line in self._lines():
            shard = line.record.get("shard")
            name = json.dumps(shard)
            if shard is None or name not in seen:
                chosen.append(line.record)
                seen.add(name)
        return chosen

    def of_item(self, item: str) -> list[Record]:
        """Return what any attempt at one item has committed in this term."""
        keys = [info.key for info in self.store.list(f"{self._folder}/{self.term}")]
        mine = [key for key in keys if key.rpartition("/")[2].rsplit("-", 2)[0] == item]
        return [line.record for key in mine for line in self._parse(key)]

    def compact(self, least: int = _PACK) -> int:
        """Move objects, `least` to a table, into Parquet tables; return how many were moved.

        Fewer than `least` are left as they are. Safe to interrupt, to repeat, and beside readers
        and other compactions: a table is whole before the first of its objects goes, and is named
        by its content.
        """
        keys, moved = self._keys(".jsonl"), 0
        with ThreadPoolExecutor(_READERS) as pool:
            while len(keys) - moved >= least:
                pack = keys[moved : moved + least]
                lines = [line for part in pool.map(self._parse, pack) for line in part]
                data = _packed(lines)
                name = hashlib.sha256(data).hexdigest()[:16]
                self.store.put(f"{self._folder}/{name}.parquet", data)
                list(pool.map(self.store.delete, pack))
                moved += least
        return moved

    @property
    def _folder(self) -> str:
        return f"ledger/{self.stage}"

    def _keys(self, suffix: str) -> list[str]:
        return [i.key for i in self.store.list(self._folder) if i.key.endswith(suffix)]

    def _lines(self) -> list[_Line]:
        """Return every line once, oldest first; what is in a table and beside it is the same."""
        with ThreadPoolExecutor(_READERS) as pool:
            # Tables last: what a compaction takes away while we read is then in one of them.
            lines = [i for part in pool.map(self._parse, self._keys(".jsonl")) for i in part]
            lines += [i for part in pool.map(self._unpack, self._keys(".parquet")) for i in part]
        return sorted({line.order: line for line in lines}.values(), key=lambda line: line.order)

    def _unpack(self, key: str) -> list[_Line]:
        rows: list[Record] = from_parquet(self.store.get(key)).to_pylist()
        return [_Line(r["term"], r["source"], r["place"], json.loads(r["record"])) for r in rows]

    def _parse(self, key: str) -> list[_Line]:
        term = int(key.split("/")[-2])
        try:
            records = [json.loads(line) for line in self.store.get(key).splitlines()]
        except MissingObject:
            return []  # A compaction took it since it was listed.
        except ValueError as fault:
            raise InputError(
                f"{self.store.uri}/{key}: not JSON lines ({fault}). Delete that object; what it "
                "listed is computed again."
            ) from fault
        return [_Line(term, key, place, record) for place, record in enumerate(records)]


def _packed(lines: list[_Line]) -> bytes:
    table = pa.table(
        {
            "term": pa.array([line.term for line in lines], pa.int64()),
            "source": pa.array([line.source for line in lines], pa.string()),
            "place": pa.array([line.place for line in lines], pa.int64()),
            "record": pa.array([json.dumps(line.record) for line in lines], pa.string()),
        }
    )
    return to_parquet(table)
