"""What stays as given is found right, in doubt or not judged, and says which."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from raysegclean.evidence.case_scores import CaseScore, ClassScore, scores_of
from raysegclean.policy.decisions import CaseDecision, Decision, edits_of
from raysegclean.policy.default import decide
from raysegclean.policy.edits import Keep, NotJudged, Review, Shift
from raysegclean.policy.kept import (
    Found,
    agreeing,
    in_doubt,
    judged_kept,
    least_agreements,
    usual_labels,
)
from raysegclean.policy.params import PolicyParams

EVIDENCE = Path(__file__).resolve().parents[2] / "benchmarks" / "evidence"
PARAMS = PolicyParams()
KEPT = Decision(Keep(), "no rule speaks against it")


def score(agreement: float, given: int = 1000, predicted: int = 1000) -> ClassScore:
    both = round(agreement * (given + predicted) / 2)
    return ClassScore(0.0, 500, 300.0, given + predicted - both, given, predicted, both, 0.3, 0.1)


def archive(*agreements: float) -> list[CaseScore]:
    """Cases of one class, the first ones as named, then thirty of .82 to .88."""
    usual = 0.85 + 0.03 * np.sin(np.arange(30))
    every = [score(one) for one in (*agreements, *usual.tolist())]
    return [CaseScore(f"c{n:02d}", one, {1: one}) for n, one in enumerate(every)]


def judged(scores: list[CaseScore], decision: Decision = KEPT) -> dict[str, Decision]:
    decisions = {one.case: CaseDecision({1: decision}) for one in scores}
    found = judged_kept(decisions, scores, usual_labels(scores, [], PARAMS))
    return {c: one.classes[1] for c, one in found.items()}


def test_a_label_with_which_the_networks_agree_as_with_others_is_found_right() -> None:
    found = judged(archive(0.75))["c00"]
    assert (found.action, found.why) == ("keep", "the networks agree by 0.75 (others 0.85)")


def test_a_label_with_which_they_agree_by_far_less_is_in_doubt_and_changes_nothing() -> None:
    found = judged(archive(0.07))["c00"]
    assert (found.action, found.doubt) == (
        "review",
        "the networks agree by only 0.07 (others 0.85)",
    )
    assert edits_of({"c00": CaseDecision({1: found})}) == {}


def test_a_class_that_the_networks_have_not_learnt_is_not_judged() -> None:
    scores = [CaseScore(f"c{n}", score(0.4), {1: score(0.4)}) for n in range(20)]
    found = judged(scores)
    assert {one.action for one in found.values()} == {"not judged"}
    assert "have not learnt this class" in found["c0"].why
    assert least_agreements(usual_labels(scores, [], PARAMS)) == {}


def test_a_class_that_few_cases_have_is_not_judged() -> None:
    scores = archive()
    rare = [replace(one, classes={1: score(0.9 if n < 5 else 0, 1000 * (n < 5), 0)})
            for n, one in enumerate(scores)]  # fmt: skip
    assert judged(rare)["c00"].why == "only 5 cases have this class, 8 are needed"


def test_a_class_that_is_absent_for_label_and_networks_is_right() -> None:
    absent = score(0.0, 0, 3)
    scores = [CaseScore("none", absent, {1: absent}), *archive()]
    assert judged(scores)["none"].action == "keep"
    seen = score(0.0, 0, 900)
    assert judged([CaseScore("none", seen, {1: seen}), *archive()])["none"].action == "review"


def test_a_part_smaller_than_in_any_other_case_is_not_judged_by_its_disagreement() -> None:
    part = score(0.1, 40, 60)
    assert judged([CaseScore("part", part, {1: part}), *archive()])["part"].action == "not judged"


def test_where_networks_miss_nothing_a_small_error_is_no_doubt() -> None:
    scores = [
        CaseScore(f"c{n}", s, {1: s}) for n, s in enumerate([score(0.93), *[score(0.995)] * 20])
    ]
    assert judged(scores)["c0"].action == "keep"


def test_what_is_edited_or_left_for_a_person_stays_as_it_was_decided() -> None:
    for decision in (
        Decision(Shift(1.0), "off"),
        Decision(Review(), "odd"),
        Decision(NotJudged(), "few"),
    ):
        assert set(judged(archive(0.07), decision).values()) == {decision}


def test_what_the_checks_find_is_a_doubt_about_what_stays_and_about_nothing_else() -> None:
    decisions = {
        "a": CaseDecision(
            {1: KEPT, 2: Decision(Shift(1.0), "off"), 3: Decision(NotJudged(), "few")}
        )
    }
    found: Found = {"a": {1: "wrong way round", 2: "larger", 3: "missing"}, "b": {1: "empty"}}
    said = in_doubt(decisions, found)
    assert {c: one.action for c, one in said["a"].classes.items()} == {
        1: "review",
        2: "shift",
        3: "review",
    }
    assert said["a"].classes[1].doubt == "wrong way round"
    assert said["b"].classes[1].action == "review"
    assert edits_of(said)["a"].of(Shift) == edits_of(decisions)["a"].of(Shift)


def test_what_is_odd_is_no_doubt_where_the_networks_draw_it_as_the_label_does() -> None:
    scores = archive(0.86, 0.7)
    agree = agreeing(scores, usual_labels(scores, [], PARAMS))
    assert (agree["c00"], agree["c01"]) == ({1}, frozenset())
    odd: Found = {"c00": {1: "it ends flat"}, "c01": {1: "it ends flat"}}
    said = in_doubt({one.case: CaseDecision({1: KEPT}) for one in scores}, odd, agree)
    assert said["c00"].classes[1].action == "keep"
    assert said["c00"].classes[1].why == "no rule speaks against it, though it ends flat"
    assert said["c01"].classes[1].action == "review"


def test_two_doubts_are_both_told() -> None:
    both = judged(archive(0.07))["c00"].doubted("class 1 is smaller than usual (7.0)")
    assert (
        both.doubt
        == "the networks agree by only 0.07 (others 0.85); class 1 is smaller than usual (7.0)"
    )


@pytest.mark.parametrize("path", sorted(EVIDENCE.glob("*.parquet")), ids=lambda path: path.stem)
def test_no_clean_label_of_the_stored_evidence_is_in_doubt(path: Path) -> None:
    rows = pq.read_table(path).to_pylist()
    scores = scores_of(rows)
    found = judged_kept(decide(scores, PARAMS), scores, usual_labels(scores, [], PARAMS))
    clean = {(row["case"], row["class"]) for row in rows if (row["dice_given"] or 0) > 0.99}
    doubted = {(c, k) for c, one in found.items() for k, d in one.classes.items() if d.doubt}
    assert not doubted & clean
