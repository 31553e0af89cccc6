"""Parts of the stored evidence, as archives of few cases: what is moved in them was moved."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from raysegclean.evidence.case_scores import CaseScore, scores_of
from raysegclean.policy.default import decide
from raysegclean.policy.edits import Shift
from raysegclean.policy.params import PolicyParams

EVIDENCE = Path(__file__).resolve().parents[2] / "benchmarks" / "evidence"
ARCHIVES = 40


def moved_alone(name: str, cases: int, params: PolicyParams) -> list[float]:
    """Return the Dice to the truth of each class moved alone in many archives of so many cases."""
    rows = pq.read_table(EVIDENCE / f"{name}.uncertainty.s1.parquet").to_pylist()
    truth = {(row["case"], row["class"]): row["dice_given"] for row in rows}
    scores, rng = scores_of(rows), np.random.default_rng(0)
    together = PolicyParams(min_alone_cases=1000)
    found = []
    for _ in range(ARCHIVES):
        part = [scores[row] for row in rng.choice(len(scores), cases, replace=False)]
        both = _moved(part, params), _moved(part, together)
        found += [float(truth[one]) for one in sorted(both[0] - both[1])]
    return found


def _moved(scores: list[CaseScore], params: PolicyParams) -> set[tuple[str, int]]:
    found = decide(scores, params).items()
    classes = [(case, value, one) for case, d in found for value, one in d.classes.items()]
    return {(case, value) for case, value, one in classes if isinstance(one.edit, Shift)}


def right_share(dices: list[float]) -> float:
    return sum(dice > 0.99 for dice in dices) / len(dices)


def test_a_class_is_moved_alone_where_cases_are_enough_to_tell_that_it_is_wrong() -> None:
    bold, cases = PolicyParams(min_alone_cases=8), PolicyParams().min_alone_cases
    assert right_share(moved_alone("phantom.boundary", cases, bold)) < 0.02
    assert right_share(moved_alone("phantom.boundary", 20, bold)) > 0.05, "20 would do"
    assert len(moved_alone("phantom.boundary", cases, PolicyParams())) > ARCHIVES
    assert not moved_alone("phantom.boundary", 20, PolicyParams())


@pytest.mark.parametrize("name", ["hippocampus.none", "phantom.none", "hippocampus.drop"])
def test_where_no_outline_was_moved_none_is_moved_alone(name: str) -> None:
    assert not moved_alone(name, PolicyParams().min_alone_cases, PolicyParams())
