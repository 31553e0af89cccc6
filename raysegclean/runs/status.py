"""How far a run is, from its folder alone; any machine that can read it may ask."""

from collections import Counter
from datetime import UTC, datetime
from typing import Any

from raysegclean.store.run import existing_run

__all__ = ["status"]


def status(run_uri: str) -> dict[str, Any]:
    """Return the state of a run: run.json, its failed cases and what its stages committed."""
    run = existing_run(run_uri)
    stages = Counter(info.key.split("/")[1] for info in run.store.list("ledger"))
    committed = {stage: len(run.ledger(stage).records()) for stage in sorted(stages)}
    state = run.state()
    for name in {"started", "updated", "finished"} & state.keys():
        state[name] = datetime.fromtimestamp(state[name], UTC).isoformat(timespec="seconds")
    return state | {"failed": run.failed(), "committed_shards": committed}
