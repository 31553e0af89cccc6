"""Transition matrices as a policy, and as a correction of the loss."""

from typing import Any

import numpy as np
import pytest

from raysegclean.errors import ConfigError
from raysegclean.evidence.case_scores import CaseScore, ClassScore, Kind
from raysegclean.evidence.second_pass import CaseQuery
from raysegclean.evidence.stats import CaseStats
from raysegclean.methods.base import ArchiveEvidence, Verdict, make_params
from raysegclean.methods.transition.matrix import PosteriorReviser
from raysegclean.methods.transition.method import (
    TRANSITION,
    TransitionParams,
    _relabelled,
)
from raysegclean.methods.transition.reservoir import FeatureLook
from raysegclean.policy.decisions import Decision, edits_of
from raysegclean.policy.default import decide
from raysegclean.policy.edits import Fill, Reason, Replace, Revise, Shift
from raysegclean.policy.params import PolicyParams

T = np.array([[0.9, 0.1], [0.3, 0.7]])


def score(case: str, nats: float = 100.0, offset: float = 0.0, added: int = 20) -> CaseScore:
    counts = np.zeros(256, np.int64)
    counts[200:] = added
    zero = np.zeros(256, np.int64)
    one = ClassScore(
        offset_vox=offset,
        boundary_vox=500,
        nats=nats,
        union_vox=1000,
        given_vox=900,
        predicted_vox=900,
        both_vox=800,
        spread_vox=0.3,
        candidates={Kind.ADDED: counts, Kind.REMOVED: zero, Kind.SWAPPED: zero},
    )
    return CaseScore(case, one, {1: one}, fold=int(case[-1]) % 2)


def evidence(*scores: CaseScore) -> ArchiveEvidence:
    return ArchiveEvidence(scores, (), CaseStats.zero(2))


def cut_off(clean: int = 40, noisy: int = 20) -> ArchiveEvidence:
    """Return an archive of which a group of cases lacks voxels that the networks add."""
    rng = np.random.default_rng(0)
    right = [
        score(
            f"c{n:02d}", 100 * rng.uniform(0.9, 1.1), rng.normal(0, 0.05), int(rng.integers(3, 6))
        )
        for n in range(clean)
    ]
    wrong = [
        score(
            f"n{n:02d}", 400 * rng.uniform(0.9, 1.1), rng.normal(0, 0.05), int(rng.integers(60, 80))
        )
        for n in range(noisy)
    ]
    return evidence(*right, *wrong)


def answer(seed: int, rows: int = 400) -> dict[str, np.ndarray]:
    """Return a sample of one band whose labels are noisy as T says."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, rows)
    given = (rng.random(rows) < T[truth, 1]).astype(np.uint8)
    features = np.eye(2)[truth] * 4 + rng.normal(0, 0.4, (rows, 2))
    return {
        "hashes": np.sort(rng.integers(0, 2**60, rows).astype(np.uint64)),
        "features": features.astype(np.float16),
        "given": given,
        "band": np.zeros(rows, np.uint8),
    }


def driven(archive: ArchiveEvidence, **params: Any) -> tuple[CaseQuery, Verdict]:
    policy = TRANSITION.policy(archive, TransitionParams(**params))
    assert not isinstance(policy, Verdict)
    ask = next(policy)
    with pytest.raises(StopIteration) as end:
        policy.send({case: answer(seed) for seed, case in enumerate(sorted(ask.cases))})
    return ask, end.value.value


def test_the_published_rule_looks_at_some_cases_and_relabels_all() -> None:
    cases = [score(f"c{n:02d}") for n in range(30)]
    ask, verdict = driven(evidence(*cases), rule="published", cases=20, rows=5_000)
    assert ask.look == FeatureLook(250)
    assert len(ask.cases) == 20
    assert verdict.revision is not None
    assert set(verdict.revision.cases) == {one.case for one in cases}
    for one in verdict.decisions.values():
        assert one.edits.revisions == {1: Reason.POSTERIOR}
    found = np.array([[verdict.chosen[f"T[0][{i},{j}]"] for j in range(2)] for i in range(2)])
    assert np.abs(found - T).max() < 0.06
    assert not [name for name in verdict.chosen if not name.startswith("T[0]")]
    reviser = verdict.revision.reviser
    assert isinstance(reviser, PosteriorReviser)
    np.testing.assert_array_equal(np.array(reviser.transition)[0], found)
    np.testing.assert_array_equal(np.array(reviser.transition)[3], np.eye(2))


def test_by_default_the_posterior_decides_in_the_noisy_cases_alone() -> None:
    archive = cut_off()
    ask, verdict = driven(archive)
    noisy = {one.case for one in archive.scores if one.case.startswith("n")}
    assert set(ask.cases) == noisy
    assert verdict.revision is not None
    assert set(verdict.revision.cases) == set(edits_of(verdict.decisions)) == noisy
    for case, decision in verdict.decisions.items():
        assert decision.classes[1].edit.action == ("correct" if case in noisy else "keep")


def test_what_the_policy_decided_beside_the_posterior_stays() -> None:
    archive = cut_off()
    decided = decide(archive.scores, PolicyParams())
    shift, fill = Shift(1.2, min_fit=0.7, fit_gain=-0.02), Fill({Kind.ADDED: 0.5})
    base = {
        case: one.but({2: Decision(shift, "off"), 3: Decision(fill, "lacks it")})
        for case, one in decided.items()
        if case.startswith("n")
    }
    due = {case: frozenset({1}) for case in base}
    policy = _relabelled(archive, TransitionParams(), Verdict(base), due)
    ask = next(policy)
    with pytest.raises(StopIteration) as end:
        policy.send({case: answer(seed) for seed, case in enumerate(sorted(ask.cases))})
    for case, found in end.value.value.decisions.items():
        assert found.edits.classes == {1: Revise(Reason.POSTERIOR), 2: shift, 3: fill}, case


@pytest.mark.parametrize("rows", [40, 400])
def test_where_the_matrix_cannot_be_estimated_candidates_stay(rows: int) -> None:
    archive = cut_off()
    policy = TRANSITION.policy(archive, TransitionParams())
    assert not isinstance(policy, Verdict)
    ask = next(policy)
    # Few rows; or many, of two cases in each fold, where three neighbours need three cases.
    few = sorted(ask.cases) if rows == 40 else ["n00", "n01", "n02", "n03"]
    answers = {case: answer(seed, rows if rows == 400 else 4) for seed, case in enumerate(few)}
    with pytest.raises(StopIteration) as end:
        policy.send(answers)
    verdict = end.value.value
    assert verdict.revision is None
    assert set(edits_of(verdict.decisions)) == set(ask.cases)
    for one in edits_of(verdict.decisions).values():
        assert one.of(Replace) and not one.revisions


def test_the_published_rule_says_where_it_could_not_estimate() -> None:
    archive = evidence(*(score(f"c{n:02d}") for n in range(4)))
    policy = TRANSITION.policy(archive, TransitionParams(rule="published"))
    assert not isinstance(policy, Verdict)
    ask = next(policy)
    with pytest.raises(StopIteration) as end:
        policy.send({case: answer(seed) for seed, case in enumerate(sorted(ask.cases))})
    for one in end.value.value.decisions.values():
        assert one.classes[1].edit.action == "not judged"
        assert "too few voxels" in one.classes[1].why


def test_without_noisy_cases_nobody_looks() -> None:
    verdict = TRANSITION.policy(cut_off(noisy=0), TransitionParams())
    assert isinstance(verdict, Verdict)
    assert not edits_of(verdict.decisions)


def test_a_look_that_failed_everywhere_leaves_the_policys_own_decision() -> None:
    policy = TRANSITION.policy(cut_off(), TransitionParams())
    assert not isinstance(policy, Verdict)
    next(policy)
    with pytest.raises(StopIteration) as end:
        policy.send({})
    assert end.value.value.revision is None
    assert all(one.of(Replace) for one in edits_of(end.value.value.decisions).values())


def test_only_a_corrected_loss_trains_with_the_hook() -> None:
    assert not TRANSITION.voters(TransitionParams()).hook.params
    forward = dict(TRANSITION.voters(TransitionParams(loss="forward", rows=200)).hook.params)
    assert forward == {"loss": "forward", "flip": 0.0, "divergence": "tv", "rows": 200}
    known = TRANSITION.voters(TransitionParams(loss="backward", flip=0.2)).hook
    assert dict(known.params)["flip"] == 0.2


@pytest.mark.parametrize(
    "values",
    [
        {"rule": "bold"},
        {"loss": "sideways"},
        {"divergence": "js"},
        {"flip": 0.5},
        {"cases": 2},
        {"rows": 10},
        {"members": 0},
    ],
)
def test_values_outside_their_range_are_refused_by_name(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        make_params(TRANSITION, values)
