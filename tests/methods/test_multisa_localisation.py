"""The weak witness: what stands out among cases of its own kind, and what does not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegclean.evidence.case_scores import CaseScore, ClassScore
from raysegclean.methods.multisa.localisation import Localisation

LIMITS = {"sds": 4.0, "found": 0.5, "min_cases": 8}


def seen(given_vox: int, predicted_vox: int, both_vox: int) -> ClassScore:
    return ClassScore(0.0, 0, 0.0, 0, given_vox, predicted_vox, both_vox)


def case(name: str, one: ClassScore, fold: int = 0) -> CaseScore:
    return CaseScore(name, one, {1: one}, fold)


def ordinary(count: int = 12, fold: int = 0, scale: float = 1.0) -> list[CaseScore]:
    """Maps twice as large as the labels that they cover to nine tenths, with some spread."""
    rng = np.random.default_rng(fold)
    out = []
    for number in range(count):
        size = int(rng.integers(900, 1100))
        predicted = int(scale * size * rng.uniform(1.8, 2.2))
        both = int(min(size, predicted) * rng.uniform(0.87, 0.93))
        out.append(case(f"f{fold}c{number}", seen(size, predicted, both), fold))
    return out


def judged(odd: ClassScore, usual: list[CaseScore]):
    scores = [*usual, case("odd", odd)]
    witness = Localisation.of(scores, **LIMITS)
    decisions = {s.case: witness.judge(s).classes[1] for s in scores}
    others = [d for name, d in decisions.items() if name != "odd"]
    return decisions["odd"], others


@pytest.mark.parametrize(
    ("odd", "told"),
    [
        (seen(1000, 2000, 0), "labelled where the map never looks"),
        (seen(1000, 2000, 200), "covers only 20% of the label"),
        (seen(300, 2000, 275), "only 14% of the map lies in the label"),
        (seen(0, 1900, 0), "not labelled, but the map finds it"),
    ],
    ids=["elsewhere", "half elsewhere", "a part is missing", "missing"],
)
def test_what_stands_out_goes_to_a_person_with_the_reason_and_ranks_first(odd, told) -> None:
    decision, others = judged(odd, ordinary())
    assert decision.edit.action == "review"
    assert told in decision.why
    assert decision.posterior > 0.5
    assert all(o.edit.action == "keep" and o.posterior < 0.5 for o in others)


@pytest.mark.parametrize(
    "odd", [seen(1000, 2100, 880), seen(0, 300, 0), seen(0, 0, 0), seen(1400, 2600, 1290)]
)
def test_ordinary_cases_and_classes_that_nobody_sees_are_kept(odd: ClassScore) -> None:
    decision, _ = judged(odd, ordinary())
    assert decision.edit.action == "keep"
    assert decision.posterior <= 0.5


def test_cases_are_compared_with_those_that_the_same_networks_judged() -> None:
    """The networks of the second fold draw maps of half the size; none of its cases is odd."""
    scores = [*ordinary(12, 0), *ordinary(12, 1, scale=0.5)]
    witness = Localisation.of(scores, **LIMITS)
    assert all(witness.judge(s).classes[1].edit.action == "keep" for s in scores)
    # Half the usual overlap is odd in the first fold only.
    small = seen(1000, 1000, 900)
    assert witness.judge(case("a", small, 1)).classes[1].edit.action == "keep"
    large_miss = seen(1000, 2000, 470)
    assert witness.judge(case("a", large_miss, 0)).classes[1].edit.action == "review"


def test_folds_that_are_too_small_are_judged_by_the_whole_archive() -> None:
    scores = [*ordinary(5, 0), *ordinary(5, 1), case("odd", seen(1000, 2000, 0), 1)]
    assert Localisation.of(scores, **LIMITS).judge(scores[-1]).classes[1].edit.action == "review"


def test_few_cases_decide_nothing() -> None:
    decision, _ = judged(seen(1000, 2000, 0), ordinary(6))
    assert decision.edit.action == "not judged"
    assert "fewer than 8 cases" in decision.why


def test_a_class_that_the_map_never_learnt_accuses_nobody() -> None:
    blind = [case(f"c{n}", seen(1000 + n, 50 * (n % 3), 10 * (n % 3))) for n in range(12)]
    for odd in (seen(1000, 2000, 0), seen(0, 2000, 0)):
        decision, _ = judged(odd, blind)
        assert decision.edit.action == "not judged"
        assert "not learnt" in decision.why


voxels = st.integers(0, 3000)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(voxels, voxels, st.floats(0, 1), st.integers(0, 1)), min_size=1, max_size=30
    ),
    st.randoms(use_true_random=False),
)
def test_judgements_do_not_depend_on_the_order_of_cases(rows, random) -> None:
    scores = [
        case(f"c{number}", seen(g, p, int(share * min(g, p))), fold)
        for number, (g, p, share, fold) in enumerate(rows)
    ]
    shuffled = random.sample(scores, len(scores))
    first, second = (Localisation.of(s, **LIMITS) for s in (scores, shuffled))
    for score in scores:
        decision = first.judge(score).classes[1]
        assert decision == second.judge(score).classes[1]
        assert 0 <= decision.posterior < 1
        assert (decision.edit.action == "review") == (decision.posterior > 0.5)
