"""What a method promises, the ones that ship with the package and one that a user wrote."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegclean.config.settings import METHODS, make_config
from raysegclean.errors import ConfigError
from raysegclean.evidence.case_scores import CaseScore, ClassScore, Kind
from raysegclean.evidence.proposals import score_of
from raysegclean.evidence.stats import CaseStats
from raysegclean.evidence.voxel_evidence import LEVELS, MAX_UNCERTAINTY, EvidenceSum
from raysegclean.methods.base import (
    ArchiveEvidence,
    Verdict,
    Voters,
    load_method,
    make_params,
)
from raysegclean.methods.coseg.method import COSEG, CosegParams
from raysegclean.methods.uncertainty.method import UNCERTAINTY, UncertaintyParams, solve_delta
from raysegclean.nets.hooks import HookSpec
from raysegclean.policy.decisions import edits_of
from raysegclean.policy.edits import FlipAbove, ReplaceBelow, Shift

RNG = np.random.default_rng(0)


def score(case: str, nats: float, offset_vox: float = 0.0, channels: int = 1) -> CaseScore:
    """Return a case whose classes all have the same score."""
    one = ClassScore(
        offset_vox=offset_vox,
        boundary_vox=500,
        nats=nats,
        union_vox=1000,
        given_vox=900,
        predicted_vox=900,
        both_vox=800,
    )
    return CaseScore(case, one, dict.fromkeys(range(1, channels + 1), one))


def evidence_of(
    *scores: CaseScore, trusted: tuple[CaseScore, ...] = (), totals: CaseStats | None = None
) -> ArchiveEvidence:
    channels = len(scores[0].classes) if scores else 1
    return ArchiveEvidence(scores, trusted, totals or CaseStats.zero(1 + channels))


def ten_cases(**changes: float) -> list[CaseScore]:
    """Return ten ordinary cases; `changes` give other offsets, which fit worse, by case name."""
    offsets = {f"c{i}": float(RNG.normal(0, 0.02)) for i in range(10)} | changes
    return [score(case, 100 + 200 * abs(offset), offset) for case, offset in offsets.items()]


WITHOUT_NETWORKS = {"combine": {"labels": "first second"}, "integrity": {}}
"""Methods that train nothing, with the params they cannot do without."""

ONLY_RANKING = {"multisa"}

LEARNED = [name for name in METHODS if name not in {*WITHOUT_NETWORKS, *ONLY_RANKING}]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_of_the_package_is_found_by_its_name_and_keeps_the_contract(name):
    method = load_method(name)
    params = make_params(method, WITHOUT_NETWORKS.get(name, {}))
    assert method.name == name
    assert (method.voters(params).members == 0) == (name in WITHOUT_NETWORKS)
    assert method.retrains(params) in (True, False)
    assert method.corrects(params) in (True, False)
    verdict = method.policy(evidence_of(*ten_cases()), params)
    assert set(verdict.decisions) == {f"c{i}" for i in range(10)}
    assert not edits_of(verdict.decisions), "ordinary cases stay as they are"


@pytest.mark.parametrize("name", LEARNED)
def test_by_default_a_case_whose_outline_is_off_is_shifted_back_and_no_other(name):
    method = load_method(name)
    cases = ten_cases(c3=1.2)
    verdict = method.policy(evidence_of(*cases), make_params(method, {}))
    assert set(edits_of(verdict.decisions)) == {"c3"}
    (shift,) = (one.shift_vox for one in edits_of(verdict.decisions)["c3"].of(Shift).values())
    assert shift == pytest.approx(0.8 * 1.2, abs=0.1)
    assert verdict.decisions["c3"].classes[1].edit.action == "shift"


@pytest.mark.parametrize("name", LEARNED)
def test_a_decision_does_not_depend_on_the_order_of_the_cases(name):
    method = load_method(name)
    params = make_params(method, {})
    cases = ten_cases(c3=1.2, c7=-0.9)
    forward = method.policy(evidence_of(*cases), params)
    backward = method.policy(evidence_of(*reversed(cases)), params)
    assert edits_of(forward.decisions) == edits_of(backward.decisions)


def test_coseg_has_two_peers_that_choose_each_others_samples():
    voters = COSEG.voters(CosegParams(start_epoch=5, keep=0.7))
    hook = HookSpec.of("coseg", keep=0.7, start_epoch=5)
    assert voters == Voters(members=2, hook=hook)


def test_the_peers_of_the_published_form_must_agree_and_keep_the_share_of_clean_cases():
    voters = COSEG.voters(CosegParams(alpha=0.6))
    assert voters.needs_agreement
    assert dict(voters.hook.params)["keep"] == 0.6


@pytest.mark.parametrize(("alpha", "noisy"), [(1.0, 0), (0.9, 1), (0.7, 3), (0.5, 5)])
def test_published_coseg_replaces_in_the_worst_cases_by_score_per_voxel(alpha, noisy):
    cases = [score(f"c{i}", nats=10.0 * (i + 1)) for i in range(10)]
    large = replace(cases[9].foreground, nats=200.0, union_vox=40_000)
    cases[9] = replace(cases[9], foreground=large)  # most nats of all, fewest per voxel
    verdict = COSEG.policy(evidence_of(*cases), CosegParams(alpha=alpha))
    worst = {f"c{i}" for i in range(9 - noisy, 9)}
    assert set(edits_of(verdict.decisions)) == worst
    for case in worst:
        # Peers that agree are enough: any level but the one of those that do not.
        assert set(verdict.decisions[case].classes[1].edit.above.values()) == {1 / LEVELS}
        assert set(verdict.decisions[case].classes[1].edit.above) == set(Kind)
    assert dict(COSEG.voters(CosegParams(alpha=alpha)).hook.params)["keep"] == alpha
    assert not COSEG.corrects(CosegParams(alpha=alpha)), "the published form has no corrector"


def test_dropout_and_ensembles_differ_in_their_voters_alone():
    ensemble = UNCERTAINTY.voters(UncertaintyParams(members=3))
    dropout = UNCERTAINTY.voters(UncertaintyParams(members=3, voters="dropout", passes=5))
    assert (ensemble.members, ensemble.passes) == (3, 0)
    assert (dropout.members, dropout.passes) == (3, 5)
    assert not ensemble.score
    for rule, score in (("safe", "total"), ("published", "aleatoric")):
        assert UNCERTAINTY.voters(UncertaintyParams(rule=rule)).score == score


def test_the_safe_rule_replaces_below_delta_and_the_published_one_flips_above_it():
    cases = evidence_of(score("a", 10), score("b", 20))
    safe = UNCERTAINTY.policy(cases, UncertaintyParams(rule="safe", delta=0.12))
    published = UNCERTAINTY.policy(cases, UncertaintyParams(rule="published", delta=0.12))
    assert safe.chosen == published.chosen == {"delta": 0.12}
    for case in ("a", "b"):
        # Rules compare shares of the score's range, which ends at 0.5.
        assert safe.decisions[case].rule == ReplaceBelow(0.24)
        assert published.decisions[case].rule == FlipAbove(0.24)
    assert not UNCERTAINTY.corrects(UncertaintyParams(rule="safe"))


def test_voters_that_contradict_each_other_are_not_sure():
    sums = EvidenceSum()
    for p in (0.99, 0.03):
        sums.add(torch.tensor([1 - p, p]).reshape(2, 1, 1, 1))
    found = sums.finish(np.zeros((1, 1, 1), np.uint8))
    level = UNCERTAINTY.voters(UncertaintyParams(rule="safe")).score
    total = float(score_of(found, np.zeros((1, 1, 1), np.uint8), level)[0, 0, 0])
    assert total * MAX_UNCERTAINTY == pytest.approx(0.51 * 0.49, abs=1e-6)


def with_trusted_hits(right: list[int], harm: list[int], neither: list[int]) -> CaseStats:
    """Return stats of two classes whose histograms of uncertainty are these."""
    totals = CaseStats.zero(2)
    for row, counts in enumerate((right, harm, neither)):
        half = np.array(counts) // 2
        totals.trusted[1, row, 0, : len(counts)] = half
        totals.trusted[1, row, 1, : len(counts)] = np.array(counts) - half
    return totals


counts = st.lists(st.integers(0, 30), min_size=LEVELS, max_size=LEVELS)


@settings(max_examples=60, deadline=None)
@given(right=counts, harm=counts, neither=counts)
def test_delta_is_the_one_that_trying_every_threshold_finds(right, harm, neither):
    gains = []
    for level in range(1, LEVELS + 1):
        repaired = sum(r for r in right[:level])
        harmed = sum(h for h in harm[:level])
        gains.append((repaired - harmed, -level))
    best, level = max(gains)
    found = solve_delta(with_trusted_hits(right, harm, neither))
    if best <= 0:
        assert found is None
    else:
        assert found == -level / LEVELS * MAX_UNCERTAINTY


def test_a_delta_that_the_trusted_cases_solve_comes_before_the_fallback():
    totals = with_trusted_hits([5] * 30 + [0] * 226, [0] * 60 + [1] * 196, [0] * LEVELS)
    cases = evidence_of(score("a", 10), totals=totals)
    solved = UNCERTAINTY.policy(cases, UncertaintyParams(rule="safe"))
    assert solved.chosen["delta"] == pytest.approx(30 / LEVELS * MAX_UNCERTAINTY)
    blind = UNCERTAINTY.policy(evidence_of(score("a", 10)), UncertaintyParams(rule="safe"))
    assert blind.chosen["delta"] == 0.1
    # What pays below a delta says nothing of flipping above it.
    flips = UNCERTAINTY.policy(cases, UncertaintyParams(rule="published"))
    assert flips.chosen["delta"] == 0.2


@pytest.mark.parametrize(
    ("method", "values"),
    [
        (COSEG, {"alpha": 0.0}),
        (COSEG, {"alpha": 1.5}),
        (COSEG, {"keep": 0.0}),
        (COSEG, {"confidence": -0.1}),
        (COSEG, {"start_epoch": -1}),
        (COSEG, {"start_epoch": 10}),
        (UNCERTAINTY, {"relabel_from": 10}),
        (UNCERTAINTY, {"delta": 0.25, "rule": "published"}),
        (UNCERTAINTY, {"members": 0}),
        (UNCERTAINTY, {"passes": 0}),
        (UNCERTAINTY, {"delta": 0.0}),
        (UNCERTAINTY, {"delta": 0.5}),
        (UNCERTAINTY, {"confidence": 0.0}),
        (UNCERTAINTY, {"rule": "bold"}),
        (UNCERTAINTY, {"voters": "crowd"}),
    ],
)
def test_values_outside_their_range_are_refused_by_name(method, values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        make_params(method, values)


def test_an_unknown_parameter_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"alfa.*not a parameter of coseg.*alpha, keep"):
        make_params(COSEG, {"alfa": 0.8})


OWN_METHOD = '''
"""A method of somebody who uses the package: swap nothing, look at every case that is off."""

from dataclasses import dataclass

from raysegclean.policy.decisions import CaseDecision, Decision
from raysegclean.policy.edits import Keep, Shift
from raysegclean.errors import ConfigError
from raysegclean.nets.hooks import HookSpec
from raysegclean.methods.base import ArchiveEvidence, Method, Verdict, Voters


@dataclass(frozen=True)
class Params:
    limit_vox: float = 0.5

    def __post_init__(self) -> None:
        if self.limit_vox <= 0:
            raise ConfigError(f"params.limit_vox: expected above 0, got {self.limit_vox}.")


def _policy(evidence: ArchiveEvidence, params: Params) -> Verdict:
    decisions = {}
    for score in evidence.scores:
        off = abs(score.foreground.offset_vox) > params.limit_vox
        one = Decision(Shift(score.foreground.offset_vox), "off")
        kept = Decision(Keep(), "fine")
        decisions[score.case] = CaseDecision(dict.fromkeys(score.classes, one if off else kept))
    return Verdict(decisions)


MINE = Method(
    name="mine",
    params=Params,
    voters=lambda params: Voters(members=3),
    policy=_policy,
    retrains=lambda params: False,
    corrects=lambda params: False,
)
NOT_A_METHOD = Params
'''


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "somebodys_methods.py").write_text(OWN_METHOD)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "somebodys_methods"
    sys.modules.pop("somebodys_methods", None)


def test_a_users_own_method_is_named_by_its_import_path_and_runs_like_the_others(own_module):
    values = {"archive": "a", "label": "organs", "run": "r", "group": "case"}
    config = make_config(values | {"method": f"{own_module}:MINE", "params": {"limit_vox": 1.0}})
    method = load_method(config.method)
    params = make_params(method, config.params)
    assert method.voters(params).members == 3
    verdict = method.policy(evidence_of(*ten_cases(c3=1.2, c4=0.8)), params)
    assert isinstance(verdict, Verdict)
    assert {case: one.of(Shift) for case, one in edits_of(verdict.decisions).items()} == {
        "c3": {1: Shift(1.2)}
    }


def test_a_users_own_method_gets_its_parameters_checked_before_anything_runs(own_module):
    values = {"archive": "a", "label": "organs", "run": "r", "group": "case"}
    with pytest.raises(ConfigError, match="limit_vocks"):
        make_config(values | {"method": f"{own_module}:MINE", "params": {"limit_vocks": 1.0}})
    with pytest.raises(ConfigError, match="limit_vox"):
        make_params(load_method(f"{own_module}:MINE"), {"limit_vox": -1.0})


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("cosegg", r"'cosegg' cannot be loaded.*coseg, .*uncertainty"),
        ("no_such_package:M", r"no_such_package.*package\.module:NAME"),
        ("raysegclean.methods.coseg.method:NOTHING", "NOTHING"),
        (
            "raysegclean.methods.coseg.method:CosegParams",
            "is a type, expected a raysegclean Method",
        ),
        ("raysegclean.methods.coseg.method", "cannot be loaded"),
        ("tests.methods.broken_method:MINE", r"NameError: name 'undefined' is not defined"),
    ],
)
def test_a_method_that_cannot_be_loaded_is_refused_with_what_was_tried(name, told):
    with pytest.raises(ConfigError, match=told):
        load_method(name)


def test_what_an_own_module_lacks_itself_is_told(tmp_path, monkeypatch):
    (tmp_path / "lacks_something.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="a_package_that_is_not_there"):
        load_method("lacks_something:M")
