"""The run folder: everything durable about one run.

`resolved.json` is frozen at the first start; a second start reads it and refuses a config of
another identity, naming the part that differs. `run.json` tells the state. Nothing here is
pickled, and nothing but this folder and the output label is ever written.
"""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import pyarrow as pa

from raysegclean.errors import AlreadyExists, InputError, MissingObject, RunConflict
from raysegclean.evidence.records import FailedCase, ShardRecord
from raysegclean.identity import differing_parts
from raysegclean.store.ledger import Ledger
from raysegclean.store.objects import Store
from raysegclean.store.parquet import from_parquet, to_parquet

R = TypeVar("R", bound=ShardRecord)

__all__ = ["RunFolder", "existing_run"]

RESOLVED = "resolved.json"
FORMAT = 3
"""Of the plan and the ledger in it; 1 named hooks and networks by their import paths, 2 did not
seal the lines of its ledger."""
STATE = "run.json"
FAILED = "failed.jsonl"


class RunFolder:
    """One run's folder in any store; picklable."""

    def __init__(self, uri: str) -> None:
        self.store = Store.open(uri)
        self.uri = self.store.uri

    def resolved(self) -> dict[str, Any] | None:
        """Return what was frozen at the first start, or None when the run never started.

        Raises RunConflict for a folder of a version whose plans this one cannot read.
        """
        frozen: dict[str, Any] | None = self.read_json(RESOLVED)
        if frozen is not None and (found := frozen.get("format", 1)) != FORMAT:
            raise RunConflict(
                f"run folder {self.uri} has format {found}, this version reads {FORMAT}. Go on "
                "with it under the version that began it, or choose another `run:` folder."
            )
        return frozen

    def freeze(self, resolved: Mapping[str, Any]) -> dict[str, Any]:
        """Freeze `resolved` at the first start, or return what an earlier start froze.

        Raises RunConflict when the folder belongs to a run of another identity.
        """
        try:
            self.store.create(RESOLVED, _json({"format": FORMAT, **resolved}))
        except AlreadyExists:
            frozen = self.resolved() or {}
            self._refuse_other(frozen.get("identity", {}), resolved.get("identity", {}))
            return frozen
        return {"format": FORMAT, **resolved}

    def _refuse_other(self, frozen: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        differing = differing_parts(frozen, json.loads(_json(now)))
        if differing:
            raise RunConflict(
                f"run folder {self.uri} belongs to another run: {'; '.join(differing)}. "
                "Choose another `run:` folder, or restore these settings to resume."
            )

    def write_state(self, **changes: Any) -> dict[str, Any]:
        """Merge `changes` into run.json, None taking a value out, and return the whole state."""
        merged = (self.read_json(STATE) or {}) | changes | {"updated": time.time()}
        state = {name: value for name, value in merged.items() if value is not None}
        self.store.put(STATE, _json(state))
        return state

    def state(self) -> dict[str, Any]:
        """Return run.json, empty when the run never started."""
        return self.read_json(STATE) or {}

    def ledger(self, stage: str, kind: type[R], term: int = 0) -> Ledger[R]:
        """Return the ledger of one stage for writing in `term`; reading covers all terms."""
        return Ledger(self.store, stage, kind, term)

    def write_failed(self, failed: Iterable[FailedCase]) -> None:
        """Write failed.jsonl: one line per case that failed, with its reason."""
        self.store.put(FAILED, b"".join(_json(asdict(o), indent=None) + b"\n" for o in failed))

    def failed(self) -> list[FailedCase]:
        """Return the rows of failed.jsonl."""
        try:
            lines = self.store.get(FAILED).splitlines()
        except MissingObject:
            return []
        return [FailedCase(**json.loads(line)) for line in lines]

    def read_json(self, key: str) -> Any:
        """Return the JSON under `key`, or None when there is none."""
        try:
            return json.loads(self.store.get(key))
        except MissingObject:
            return None

    def write_json(self, key: str, value: Any) -> None:
        """Replace the JSON under `key` as a whole."""
        self.store.put(key, _json(value))

    def write_table(self, key: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows as a Parquet table; columns are those of all rows."""
        columns = list(dict.fromkeys(name for row in rows for name in row))
        table = pa.table({name: [row.get(name) for row in rows] for name in columns})
        self.store.put(key, to_parquet(table))

    def read_table(self, key: str) -> list[dict[str, Any]]:
        """Return the rows of a Parquet table, or none when it was never written."""
        try:
            data = self.store.get(key)
        except MissingObject:
            return []
        return list(from_parquet(data).to_pylist())


def existing_run(uri: str) -> RunFolder:
    """Return the folder of a run that was started; InputError where there is none."""
    run = RunFolder(uri)
    if run.resolved() is None:
        raise InputError(
            f"{run.uri}: no run here, resolved.json is missing. Give the `run:` folder of a config "
            "that was started."
        )
    return run


def _json(value: Any, indent: int | None = 1) -> bytes:
    return json.dumps(value, sort_keys=True, indent=indent).encode()
