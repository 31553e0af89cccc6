"""A run whose training a bound ended: said so, and gone on with under the same output label."""

from pathlib import Path

import pytest

from raysegclean.evidence.records import ProposeRecord
from raysegclean.runs.metrics import read_metrics
from raysegclean.runs.pipeline import clean
from raysegclean.store.run import RunFolder

from .scenes import Scene, config_for, write_archive

pytestmark = pytest.mark.usefixtures("local_executor")
SCENES = [Scene(f"c{number}", (12, 20 + number, 20)) for number in range(4)]


def _propose_keys(run: str) -> set[str]:
    return {r.key for r in RunFolder(run).ledger("propose", ProposeRecord).records()}


def test_a_raised_bound_trains_on_in_the_same_run_and_cleans_again(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "archive", SCENES)
    config = config_for(
        archive, tmp_path / "run", method="uncertainty", train__steps="auto", train__max_steps=8
    )
    first = clean(config)
    (note,) = [note for note in first.notes if note.startswith("Learnt ")]
    assert "After 8 steps train.max_steps ended it" in note
    keys = _propose_keys(config.run)

    def trained() -> list[dict]:
        rows = read_metrics(RunFolder(config.run).store)
        return [row for row in rows if row["stage"] == "train" and row["kind"] == "progress"]

    before = len(trained())
    clean(config)
    assert len(trained()) == before, "nothing is trained twice"
    assert _propose_keys(config.run) == keys
    raised = config.with_settings({"train.max_steps": 16})
    second = clean(raised)
    assert len(trained()) > before
    assert _propose_keys(config.run) - keys, "other networks, other proposals"
    assert second.output_label == first.output_label
    assert "After 16 steps" in " ".join(second.notes)
    measured = [r for r in read_metrics(RunFolder(config.run).store) if r["kind"] == "agreement"]
    assert measured
    assert all(set(row["agreement"]) <= {"1", "2"} for row in measured)
