"""The expected Dice of a given label: monotone, calibrated on labels with known truth, honest."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysegclean.evidence.case_scores import CaseScore, ClassScore, scores_of
from raysegclean.policy.decisions import CaseDecision, Decision
from raysegclean.policy.default import decide
from raysegclean.policy.edits import Keep, NotJudged, Shift
from raysegclean.policy.kept import judged_kept, least_agreements, usual_labels
from raysegclean.policy.params import PolicyParams
from raysegclean.policy.quality import Quality, qualities

EVIDENCE = Path(__file__).resolve().parents[2] / "benchmarks" / "evidence"
KEPT, SHIFTED = Decision(Keep(), ""), Decision(Shift(1.0), "")


def score(agreement: float) -> ClassScore:
    return ClassScore(0.0, 500, 300.0, 2000, 1000, 1000, round(1000 * agreement), 0.3, 0.1)


def judged(agreements: list[float], decisions: list[Decision] | None = None) -> list[Quality]:
    scores = [CaseScore(f"c{n:03d}", score(a), {1: score(a)}) for n, a in enumerate(agreements)]
    decided = decisions or [KEPT] * len(scores)
    cases = {s.case: CaseDecision({1: one}) for s, one in zip(scores, decided, strict=True)}
    found = qualities(cases, scores, [1])
    return [found[one.case][1] for one in scores]


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30), st.booleans())
def test_it_is_a_dice_within_its_interval_and_rises_with_the_agreement(
    agreements: list[float], edited: bool
) -> None:
    usual = [0.8, 0.85, 0.9]
    some = [SHIFTED if edited else KEPT] * len(agreements)
    found = judged([*agreements, *usual], [*some, *[KEPT] * 3])[: len(agreements)]
    for one in found:
        assert 0 <= one.low <= one.expected + 1e-9 <= 1 + 1e-6
        assert one.expected <= one.high + 1e-9
    if edited:
        order = np.argsort(agreements, kind="stable")
        assert (np.diff([found[i].expected for i in order]) >= -1e-6).all()


def test_a_label_that_agrees_as_right_ones_do_is_right_and_one_that_does_not_is_worse() -> None:
    found = judged(
        [0.85 + 0.01 * (n % 5) for n in range(40)] + [0.5, 0.0], [*[KEPT] * 40, *[SHIFTED] * 2]
    )
    assert min(one.expected for one in found[:40]) > 0.9
    assert 0.45 < found[40].expected < 0.6
    assert found[41].expected < 0.05


def test_what_is_not_known_has_no_quality() -> None:
    one = score(0.9)
    absent = ClassScore(0.0, 0, 0.0, 0, 0, 0, 0)
    scores = [CaseScore("a", one, {1: one, 2: one}), CaseScore("b", one, {1: absent, 2: one})]
    cases = {
        s.case: CaseDecision({1: KEPT, 2: Decision(NotJudged(), "").doubted("odd")}) for s in scores
    }
    found = qualities(cases, scores, [1, 2])
    assert list(found["a"]) == [1], "of class 2 no label is without a doubt"
    assert found["b"] == {}


@pytest.mark.parametrize("name", ["hippocampus.boundary", "phantom.boundary", "phantom.polygon"])
def test_on_stored_evidence_it_ranks_as_the_truth_does_and_is_near_it(name: str) -> None:
    rows = pq.read_table(EVIDENCE / f"{name}.uncertainty.s1.parquet").to_pylist()
    scores, params = scores_of(rows), PolicyParams()
    usual = usual_labels(scores, [], params)
    decisions = judged_kept(decide(scores, params), scores, usual)
    found = qualities(decisions, scores, sorted(least_agreements(usual)))
    truth = {(row["case"], row["class"]): row["dice_given"] for row in rows if row["class"]}
    pairs = [(q.expected, truth[c, k]) for c, of in found.items() for k, q in of.items()]
    ours, true = np.array(pairs).T
    ranks = [np.argsort(np.argsort(one, kind="stable")) for one in (ours, true)]
    assert np.corrcoef(*ranks)[0, 1] > 0.7
    assert np.abs(ours - true).mean() < 0.05
