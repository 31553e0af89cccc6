"""How far a run is, from its folder alone; any machine that can read it may ask."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from raysegclean.events import Event, line
from raysegclean.evidence.records import ShardRecord
from raysegclean.runs.metrics import Row, read_metrics
from raysegclean.store.lock import LOOK_S, is_driven
from raysegclean.store.run import existing_run

__all__ = ["status"]

log = logging.getLogger("raysegclean")

WARNINGS = 5
"""The last so many are shown."""
SHOWN = ("stage", "part", "done", "total", "unit", "rate", "left_s", "loss")
REACHED = ("part", "done", "agreement")


def status(run_uri: str) -> dict[str, Any]:
    """Return the state of a run: run.json, where it is now, its failed cases, what is committed.

    `status` is `died` where run.json says `running` and no driver lives; telling that of a driver
    on another machine takes up to `LOOK_S`. While it is not ended, `now` is a line on the stage
    under way, `progress` its figures (rate in units per second) and those of each of its networks,
    and `agreement` the last that each network reached, by label value, and its step.
    """
    run = existing_run(run_uri)
    state = run.state()
    if state.get("status") == "running" and not is_driven(run.store, on_look=_tell_look):
        state["status"] = "died"
        state["error"] = "its driver is gone. Start the same config again: it resumes."
    if state.get("status") in ("running", "died"):
        # Both times are told by the driver's clock.
        rows = [row for row in read_metrics(run.store) if row["time"] >= state["started"]]
        state |= _progress(rows)
    stages = Counter(info.key.split("/")[1] for info in run.store.list("ledger"))
    committed = {stage: len(run.ledger(stage, ShardRecord).records()) for stage in sorted(stages)}
    for name in {"started", "updated", "finished", "heard"} & state.keys():
        state[name] = datetime.fromtimestamp(state[name], UTC).isoformat(timespec="seconds")
    return state | {"failed": [asdict(one) for one in run.failed()], "committed_shards": committed}


def _tell_look() -> None:
    log.info("status: looking for up to %.0f s whether its driver lives", LOOK_S)


def _progress(rows: Sequence[Row]) -> dict[str, Any]:
    """Return where the innermost stage is that has begun and not ended."""
    open_stages: list[str] = []
    latest: dict[str, dict[str, Row]] = {}
    agreement: dict[str, dict[str, Row]] = {}
    for row in rows:
        stage = row["stage"]
        if row["kind"] == "start":
            open_stages.append(stage)
            latest[stage] = {"": row}
        elif row["kind"] == "end" and stage in open_stages:
            open_stages.remove(stage)
        elif row["kind"] == "agreement":
            agreement.setdefault(stage, {})[row["part"]] = row
        elif row["kind"] == "progress":
            latest.setdefault(stage, {})[row.get("part", "")] = row
    found: dict[str, Any] = {}
    if open_stages:
        parts = latest[open_stages[-1]]
        found["now"] = line(Event(**parts[""]))
        found["progress"] = [{name: row.get(name) for name in SHOWN} for row in parts.values()]
        reached = agreement.get(open_stages[-1], {}).values()
        if reached:
            found["agreement"] = [{name: row[name] for name in REACHED} for row in reached]
    if rows:
        found["heard"] = max(row["time"] for row in rows)
    warnings = [row["text"] for row in rows if row["kind"] == "warning"]
    return found | ({"warnings": warnings[-WARNINGS:]} if warnings else {})
