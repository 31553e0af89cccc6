"""Spatial Correction as a policy: what few trusted cases may change, and what they may not."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from raysegclean.errors import ConfigError
from raysegclean.evidence.case_scores import CaseScore, ClassScore
from raysegclean.evidence.second_pass import CaseQuery
from raysegclean.evidence.stats import CaseStats
from raysegclean.methods.base import ArchiveEvidence, Verdict, make_params
from raysegclean.methods.spatial.bias import BiasReviser, ShellLook
from raysegclean.methods.spatial.method import SPATIAL, SpatialParams
from raysegclean.policy.decisions import edits_of
from raysegclean.policy.edits import CaseEdits, Reason, Shift


def score(case: str, offset_vox: float, nats: float = 100.0) -> CaseScore:
    """Return a case of two classes, both with this offset."""
    one = ClassScore(offset_vox, 500, nats, 1000, 900, 900, 800, spread_vox=0.3)
    return CaseScore(case, one, {1: one, 2: one})


def evidence(
    given: dict[str, float], trusted: dict[str, float], spacing: float = 1.0
) -> ArchiveEvidence:
    return ArchiveEvidence(
        scores=[score(c, o, 100 + 50 * abs(o)) for c, o in given.items()],
        trusted=[score(c, o) for c, o in trusted.items()],
        totals=CaseStats.zero(3),
        spacing_mm=dict.fromkeys(given, (2 * spacing, spacing, spacing)),
    )


def biased(cases: int = 12, **offsets: float) -> dict[str, float]:
    """Return offsets of given labels: near those of networks that learnt the same bias."""
    rng = np.random.default_rng(3)
    return {f"c{n:02d}": float(rng.normal(0, 0.05)) for n in range(cases)} | offsets


def shifts(edits: CaseEdits) -> dict[int, float]:
    return {channel: edit.shift_vox for channel, edit in edits.of(Shift).items()}


def decided(archive: ArchiveEvidence, **params: Any) -> Verdict:
    verdict = SPATIAL.policy(archive, SpatialParams(**params))
    assert isinstance(verdict, Verdict)
    return verdict


@pytest.mark.parametrize("known", [2, 3, 9])
def test_few_trusted_cases_show_what_all_cases_share(known: int) -> None:
    trusted = {f"c{n:02d}": -1.5 + 0.1 * (n % 2) for n in range(known)}
    verdict = decided(evidence(biased(), trusted))
    assert set(edits_of(verdict.decisions)) == set(biased())
    for one in edits_of(verdict.decisions).values():
        for shift in shifts(one).values():
            assert shift == pytest.approx(0.8 * 1.45, abs=0.3)


def test_a_case_that_is_off_in_its_own_way_is_moved_by_its_own_offset() -> None:
    trusted = {"c00": -1.5, "c01": -1.4, "c02": -1.5}
    verdict = decided(evidence(biased(larger=0.8), trusted))
    assert verdict.decisions["larger"].classes[1].shift_vox == pytest.approx(0.8 * 2.3, abs=0.1)
    assert verdict.decisions["c04"].classes[1].shift_vox == pytest.approx(0.8 * 1.45, abs=0.1)


def test_a_case_that_was_right_all_along_is_not_moved_with_the_others() -> None:
    trusted = {"c00": -1.5, "c01": -1.4, "c02": -1.5}
    verdict = decided(evidence(biased(right=-1.5), trusted))
    assert set(edits_of(verdict.decisions)) == set(biased())


@pytest.mark.parametrize(
    "trusted",
    [
        {"c00": 0.02, "c01": -0.1},  # trusted and given labels are the same
        {"c00": -1.5, "c01": 1.5},  # off, but each another way
        {"c00": -0.4, "c01": -0.5},  # off by less than moves a voxel
        {},
    ],
)
def test_where_trusted_cases_show_no_shared_bias_nothing_moves(trusted: dict[str, float]) -> None:
    assert not edits_of(decided(evidence(biased(), trusted)).decisions)


def test_one_noisy_case_among_clean_ones_does_not_move_the_clean_ones() -> None:
    given = biased(noisy=1.6, noisy2=1.7)
    verdict = decided(evidence(given, {"noisy": 0.15}))
    assert set(edits_of(verdict.decisions)) == {"noisy", "noisy2"}


def test_where_only_half_share_the_bias_of_the_trusted_case_the_other_half_stays() -> None:
    rng = np.random.default_rng(5)
    given = {f"wide{n:02d}": float(rng.normal(0.3, 0.12)) for n in range(50)}
    given |= {f"right{n:02d}": float(rng.normal(-0.3, 0.12)) for n in range(50)}
    verdict = decided(evidence(given, {"wide07": given["wide07"] - 0.65}))
    assert {case[:-2] for case in edits_of(verdict.decisions)} == {"wide"}
    assert len(edits_of(verdict.decisions)) >= 35


def test_the_shift_alone_undoes_the_mean_bias_of_the_given_labels_in_all_cases() -> None:
    trusted = {"c00": -1.5, "c01": -1.0}
    given = biased() | {"c00": 0.0, "c01": 0.0}
    for spacing in (1.0, 0.5):
        verdict = decided(evidence(given, trusted, spacing), rule="shift", gamma=0.9)
        assert set(edits_of(verdict.decisions)) == set(given)
        for one in edits_of(verdict.decisions).values():
            assert shifts(one) == pytest.approx({1: 0.9 * 1.25, 2: 0.9 * 1.25})
    assert verdict.decisions["c05"].classes[1].edit.action == "shift"
    assert "2 trusted cases" in verdict.decisions["c05"].classes[1].why
    assert not edits_of(decided(evidence(given, {"c00": -0.5}), rule="shift").decisions)
    assert not SPATIAL.corrects(SpatialParams(rule="shift"))
    assert SPATIAL.voters(SpatialParams(rule="shift")).members == 0, "no network is trained"


def test_each_site_has_a_bias_of_its_own_and_one_without_trusted_cases_has_none() -> None:
    given = {f"{site}-{n}": 0.0 for site in "abc" for n in range(4)}
    archive = evidence(given, {"a-0": -1.5, "a-1": -1.5, "b-0": 1.0, "b-2": 1.0})
    verdict = decided(archive, rule="shift", gamma=1.0, site="^(.)-")
    moved = {case: shifts(one) for case, one in edits_of(verdict.decisions).items()}
    assert moved == {
        f"{site}-{n}": {1: bias, 2: bias}
        for site, bias in (("a", 1.5), ("b", -1.0))
        for n in range(4)
    }
    assert not edits_of(decided(archive, rule="shift", gamma=1.0).decisions), (
        "together they do not agree"
    )
    for site, told in (("(", "no regular expression"), ("^a", "one group"), ("(a)(b)", "with 2")):
        with pytest.raises(ConfigError, match=f"params.site.*{told}"):
            make_params(SPATIAL, {"site": site})


def test_the_published_rule_takes_back_the_bias_of_each_site() -> None:
    archive = evidence({"a-0": 0.0, "b-0": 0.0, "c-0": 0.0}, {"a-0": -2.0, "b-0": 3.0})
    policy = SPATIAL.policy(archive, SpatialParams(rule="published", gamma=1.0, site="^(.)-"))
    assert not isinstance(policy, Verdict)
    asked = [next(policy)]
    for _ in "bc":
        asked.append(policy.send({case: answer(1.0, 2.0) for case in asked[-1].cases}))
    with pytest.raises(StopIteration) as end:
        policy.send({})
    looks = [(one.look, set(one.cases)) for one in asked]
    assert looks == [
        (ShellLook((0.0, -2.0, -2.0)), {"a-0"}),
        (ShellLook((0.0, 3.0, 3.0)), {"b-0"}),
        (ShellLook((0.0, 0.0, 0.0)), set()),
    ]
    revision = end.value.value.revision
    assert revision.reviser == BiasReviser((0.0, 3.0, 3.0)), "the halo is that of the largest"
    assert revision.cases["a-0"]["delta_mm"] == (0.0, -2.0, -2.0)
    assert set(revision.cases) == {"a-0", "b-0"}
    assert end.value.value.chosen["delta_mm[a][1]"] == -2.0


def test_what_trusted_cases_share_does_not_move_what_networks_have_not_learnt() -> None:
    trusted = {"c00": -1.5, "c01": -1.4, "c02": -1.5}
    archive = evidence(biased(), trusted)

    def unlearnt(one: CaseScore) -> CaseScore:
        poor = replace(one.classes[2], both_vox=200)
        return replace(one, classes={1: one.classes[1], 2: poor})

    archive = replace(
        archive,
        scores=[unlearnt(one) for one in archive.scores],
        trusted=[unlearnt(one) for one in archive.trusted],
    )
    for one in edits_of(decided(archive).decisions).values():
        assert set(shifts(one)) == {1}


def test_a_trusted_outline_that_lies_elsewhere_measures_no_bias() -> None:
    archive = evidence(biased(), {"c00": -1.5, "c01": -1.5, "c02": float("nan")})
    for one in edits_of(decided(archive, rule="shift", gamma=1.0).decisions).values():
        assert shifts(one)[1] == pytest.approx(1.5, abs=0.2)


def published(
    archive: ArchiveEvidence, counts: dict[str, Any], **params: Any
) -> tuple[CaseQuery, Verdict]:
    """Drive the published rule with the answers in `counts`."""
    policy = SPATIAL.policy(archive, SpatialParams(rule="published", **params))
    assert not isinstance(policy, Verdict)
    ask = next(policy)
    with pytest.raises(StopIteration) as end:
        policy.send({case: counts[case] for case in ask.cases if case in counts})
    return ask, end.value.value


def answer(*heights: float) -> dict[str, np.ndarray]:
    counts = np.zeros((3, 320), np.int64)
    for channel, height in enumerate(heights, start=1):
        if height:
            counts[channel, int(height * 16)] = 9
    return {"counts": counts, "highest": np.array([0.0, *heights], np.float32)}


def test_the_published_rule_asks_for_the_shells_and_then_replaces_by_the_corrected_argmax() -> None:
    archive = evidence({"a": 0.0, "b": 0.1}, {"a": -2.0})
    ask, verdict = published(archive, {"a": answer(3.0, 4.0), "b": answer(0.0, 1.0)})
    assert ask.look == ShellLook((0.0, -1.6, -1.6))
    assert set(ask.cases) == {"a", "b"}
    assert verdict.revision is not None
    assert verdict.revision.reviser == BiasReviser((0.0, -1.6, -1.6))
    assert verdict.revision.cases["a"]["height"] == pytest.approx([0.0, 3.0, 4.0], abs=1 / 16)
    edits = edits_of(verdict.decisions)
    assert edits["a"].revisions == {1: Reason.BIAS, 2: Reason.BIAS}
    assert set(edits["b"].revisions) == {2}, "class 1 has no shell here and keeps its label"
    assert verdict.decisions["b"].classes[1].edit.action == "keep"
    assert verdict.chosen == {"delta_mm[1]": -1.6, "delta_mm[2]": -1.6}


def test_the_published_rule_without_a_bias_keeps_the_given_labels() -> None:
    ask, verdict = published(evidence({"a": 0.0, "b": 0.1}, {"a": 0.3}), {})
    assert not ask.cases
    assert not edits_of(verdict.decisions)
    fine = evidence({"a": 0.0, "b": 0.1}, {"a": 0.9}, spacing=0.5)
    assert set(published(fine, {})[0].cases) == {"a", "b"}, "half a voxel of .5 mm is little"


def test_it_needs_a_trusted_case_and_refuses_values_outside_their_range() -> None:
    for rule in ("default", "published", "shift"):
        assert SPATIAL.wants_trusted(SpatialParams(rule=rule))
    for values in ({"rule": "bold"}, {"gamma": 0.0}, {"gamma": 1.5}, {"b": "p5"}, {"members": 0}):
        with pytest.raises(ConfigError, match=next(iter(values))):
            make_params(SPATIAL, values)
