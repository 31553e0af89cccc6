"""metrics.jsonl stays small and whole, and tells where a run is."""

from pathlib import Path

import pytest

from raysegclean.errors import RunConflict
from raysegclean.events import Events
from raysegclean.runs import metrics as module
from raysegclean.runs.metrics import Metrics, kept_metrics, read_metrics
from raysegclean.runs.status import _progress
from raysegclean.store.objects import Store


def test_the_latest_figures_are_kept_however_long_a_run_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_ROWS", 50)
    monkeypatch.setattr(module, "EVERY_S", 0.0)
    store = Store.open(tmp_path)
    kept = Metrics(store)
    events = Events(kept)
    with events.stage("train", 1000, "steps") as stage:
        for step in range(1, 501):
            stage.at(step, part="fold 0, network 0", total=1000, loss=1 / step)
        events.warn("train", "case p7 cannot be read")
        kept.flush()
        rows = read_metrics(store)
        assert len(rows) <= 52
        assert rows[0]["kind"] == "start"
        told = _progress(rows)
        assert told["now"].startswith("train: 500/1,000 steps")
        whole, network = told["progress"]
        assert (whole["done"], network["part"], network["loss"]) == (
            500,
            "fold 0, network 0",
            0.002,
        )
        assert told["warnings"] == ["case p7 cannot be read"]
    kept.flush()
    assert "now" not in _progress(read_metrics(store))


def test_a_second_start_goes_on_with_the_rows_and_one_that_lost_the_run_writes_none(
    tmp_path: Path,
) -> None:
    store = Store.open(tmp_path)
    for text in ("first", "second"):
        events = Events()
        with kept_metrics(store, events, lambda: None):
            events.say("run", text)

    def taken() -> None:
        raise RunConflict("taken over")

    events = Events()
    with kept_metrics(store, events, taken):
        events.say("run", "third")
    assert [row["text"] for row in read_metrics(store)] == ["first", "second"]
