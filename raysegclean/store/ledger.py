"""What a run has committed: committed means listed here.

One object per item, attempt and part is created under `ledger/<stage>/<epoch>/`, after the shards
that it lists, so a listed shard is always there; a shard that is not listed is computed again. The
records of all epochs count, in the order of epochs and keys; of two records for one shard the
first counts, whichever epoch wrote the second. Compaction moves many small objects into one table
and is safe to interrupt: a record is never in neither place.
"""

import io
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysegclean.errors import AlreadyExists, InputError, MissingObject, RunConflict
from raysegclean.store.objects import Store, check_key

__all__ = ["Ledger", "Record"]

Record = dict[str, Any]

_READERS = 16
_READS = 3
_TABLE = "compacted.parquet"


@dataclass(frozen=True)
class _Line:
    """One record with the key that committed it and its place there; sorts by age."""

    epoch: int
    source: str
    place: int
    record: Record

    @property
    def order(self) -> tuple[int, str, int]:
        return self.epoch, self.source, self.place


@dataclass(frozen=True)
class Ledger:
    """The records of one stage; commits go to `epoch`, the epoch of the run's lock."""

    store: Store
    stage: str
    epoch: int

    def commit(self, item: str, attempt: int, part: int, records: list[Record]) -> None:
        """Commit `records` in one conditional put; the same commit twice is one.

        Raises RunConflict when this item, attempt and part was committed with other records.
        """
        name = check_key(f"{item}-{attempt}-{part}.jsonl")
        key = f"{self._folder}/{self.epoch}/{name}"
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
        """Return the records of all epochs, oldest first, one per `record["shard"]`.

        That name must tell apart the shards of different cases and arrays; records without one
        are all kept.
        """
        seen: set[str] = set()
        chosen = []
        for line in self._all_lines():
            shard = line.record.get("shard")
            name = json.dumps(shard)
            if shard is None or name not in seen:
                chosen.append(line.record)
                seen.add(name)
        return chosen

    def compact(self) -> int:
        """Move all records of the stage into one Parquet table; return how many it holds.

        One process may do this at a time: the holder of the run's lock.
        """
        sources = self._sources()
        lines = self._all_lines()
        table = pa.table(
            {
                "epoch": pa.array([line.epoch for line in lines], pa.int64()),
                "source": pa.array([line.source for line in lines], pa.string()),
                "place": pa.array([line.place for line in lines], pa.int64()),
                "record": pa.array([json.dumps(line.record) for line in lines], pa.string()),
            }
        )
        sink = io.BytesIO()
        pq.write_table(table, sink)
        self.store.put(f"{self._folder}/{_TABLE}", sink.getvalue())
        for key in sources:
            self.store.delete(key)
        return len(lines)

    @property
    def _folder(self) -> str:
        return f"ledger/{self.stage}"

    def _sources(self) -> list[str]:
        return [i.key for i in self.store.list(self._folder) if i.key.endswith(".jsonl")]

    def _all_lines(self) -> list[_Line]:
        """Read again when a compaction elsewhere took away what was just listed."""
        for _ in range(_READS):
            with suppress(MissingObject):
                return self._lines()
        return self._lines()

    def _lines(self) -> list[_Line]:
        """Return every line once, oldest first; what is in the table and beside it is the same."""
        # Keys first: a compaction in between can then only show a record twice, never hide it.
        keys = self._sources()
        lines = self._compacted()
        known = {line.source for line in lines}
        with ThreadPoolExecutor(_READERS) as readers:
            fresh = readers.map(self._parse, (key for key in keys if key not in known))
            lines += [line for part in fresh for line in part]
        return sorted(lines, key=lambda line: line.order)

    def _compacted(self) -> list[_Line]:
        key = f"{self._folder}/{_TABLE}"
        if self.store.head(key) is None:
            return []
        rows: Iterable[Record] = pq.read_table(io.BytesIO(self.store.get(key))).to_pylist()
        return [_Line(r["epoch"], r["source"], r["place"], json.loads(r["record"])) for r in rows]

    def _parse(self, key: str) -> list[_Line]:
        epoch = int(key.split("/")[-2])
        try:
            records = [json.loads(line) for line in self.store.get(key).splitlines()]
        except ValueError as fault:
            raise InputError(
                f"{self.store.uri}/{key}: not JSON lines ({fault}). Delete that object; what it "
                "listed is computed again."
            ) from fault
        return [_Line(epoch, key, place, record) for place, record in enumerate(records)]
