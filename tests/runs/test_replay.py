"""What a run's policy read is enough to decide again; other numbers say what they would change."""

from pathlib import Path

import numpy as np
import pytest

import raysegclean as rsc
from raysegclean.errors import ConfigError, InputError
from raysegclean.evidence.case_scores import CaseScore, ClassScore, evidence_rows
from raysegclean.policy.gross_look import look_at
from raysegclean.store.run import RunFolder

from ..policy import gross_scenes as gross

CONFIG = {"archive": "archive", "label": "organs", "run": "run", "method": "uncertainty"}


def score(case: str, offset_vox: float) -> CaseScore:
    nats = 900.0 if offset_vox > 0.5 else 300.0 + 10 * offset_vox
    one = ClassScore(offset_vox, 500, nats, 2000, 1900, 1900, 1800, 0.3, 0.1)
    return CaseScore(case, one, {1: one})


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Sixty cases, ten of which are drawn a voxel too wide."""
    rng = np.random.default_rng(0)
    scores = [score(f"c{n:02d}", rng.normal(0, 0.1) + (n < 10)) for n in range(60)]
    folder = RunFolder(str(tmp_path / "run"))
    folder.freeze({"identity": {}, "config": CONFIG})
    folder.write_table("evidence.parquet", evidence_rows(scores, []))
    return folder


def test_the_same_numbers_decide_the_same(run: RunFolder) -> None:
    report = rsc.replay(run.uri)
    assert report.edits["shift"] == 10
    assert (report.cases, report.changed) == (60, 0)


def test_other_numbers_are_told_with_what_they_would_change(run: RunFolder) -> None:
    report = rsc.replay(run.uri, {"policy.offset_sds": 12.0})
    assert report.changed == 10
    assert {one.before for one in report.changes} == {"shift"}
    assert "shift" not in {one.after for one in report.changes}
    assert rsc.replay(run.uri, ["policy.offset_sds=12.0"]) == report


def test_gross_errors_are_decided_again_where_the_run_looked(run: RunFolder) -> None:
    truths = {f"c{n}": gross.body(n) for n in range(12)}
    scores = [
        gross.score(case, truth, gross.networks(truth, 100 + n, 0.5))
        for n, (case, truth) in enumerate(truths.items())
    ]
    given, seen = gross.body(20)[:, :, ::-1], gross.networks(gross.body(20), 20, 0.5)
    scores += [gross.score(case, given, seen) for case in ("looked", "unseen")]
    run.write_table("evidence.parquet", evidence_rows(scores, []))
    look = look_at(given, seen, [1, 2, 3]).to_text()
    run.write_table("looks.parquet", [{"case": "looked", "look": look}])
    run.write_json("actions.json", {"held": {"c1": {"1": "it would shrink", "2": "too"}}})
    report = rsc.replay(run.uri)
    assert report.edits["mirror"] == 3
    assert [text.split(",")[0] for text in report.not_replayed] == [
        "gross errors in 1 suspicious cases that the run did not look at as a whole",
        "the guard against harm",
    ]
    assert "left 2 classes in 1 cases" in report.not_replayed[1]
    strict = rsc.replay(run.uri, {"policy.max_gross_lag": 0.001})
    assert "mirror" not in strict.edits
    assert {one.case for one in strict.changes} == {"looked"}


def test_a_number_that_is_none_is_refused(run: RunFolder) -> None:
    with pytest.raises(ConfigError, match=r"policy\.speed"):
        rsc.replay(run.uri, {"policy.speed": 2})
    told = r"policy\.posterior: expected a probability, above 0 and at most 1; got 2"
    with pytest.raises(ConfigError, match=told):
        rsc.replay(run.uri, {"policy.posterior": 2})
    with pytest.raises(ConfigError, match=r"train\.steps: only numbers of the policy"):
        rsc.replay(run.uri, {"train.steps": 2})
    with pytest.raises(ConfigError, match=r"--set policy: expected KEY=VALUE, as in --set policy"):
        rsc.replay(run.uri, ["policy"])


def test_what_the_run_decided_by_is_what_other_numbers_are_held_against(run: RunFolder) -> None:
    run.write_json("config.json", {**CONFIG, "policy": {"offset_sds": 12.0}})
    report = rsc.replay(run.uri)
    assert report.changed == 0
    assert "shift" not in report.edits
    assert rsc.replay(run.uri, {"policy.offset_sds": 2.5}).edits["shift"] == 10


def test_a_run_that_has_not_proposed_has_nothing_to_replay(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path / "run"))
    folder.freeze({"identity": {}, "config": CONFIG})
    folder.write_state(status="running")
    with pytest.raises(InputError, match=r"evidence\.parquet is missing"):
        rsc.replay(folder.uri)
