"""Rough cases are found by the roughness of their outline, whatever else they have in common."""

from dataclasses import replace

import numpy as np
import pytest

from raysegclean.evidence.case_scores import CaseScore, ClassScore, Kind
from raysegclean.policy.contour_roughness import rough_groups
from raysegclean.policy.default import decide, two_ways
from raysegclean.policy.edits import Replace
from raysegclean.policy.params import PolicyParams
from raysegclean.simulate.noise import corrupt
from raysegclean.voxels.contour_offset import boundary_sums
from raysegclean.voxels.geometry import Box


def score(name, rough, offset=0.0, corruption=0.5):
    one = ClassScore(
        offset, 1000, corruption * 2000, 2000, 1900, 1900, 1800, spread_vox=0.6, roughness_vox=rough
    )
    return CaseScore(name, one, {1: one})


def archive(clean, noisy, gap=0.3, seed=0, offset=0.0):
    """Clean cases around a roughness of 0.35; noisy ones are rougher by `gap`, and fit worse."""
    rng = np.random.default_rng(seed)

    def rough(log):
        return float(0.35 * np.exp(log + rng.normal(0, 0.03)))

    def drawn(centre):
        return float(rng.normal(centre, 0.1))

    good = [score(f"clean{i:03d}", rough(0.0), drawn(0.0)) for i in range(clean)]
    bad = [score(f"noisy{i:03d}", rough(gap), drawn(offset), 0.8) for i in range(noisy)]
    return good + bad


def members(scores):
    groups = rough_groups(scores, [0, 1], PolicyParams())
    return {s.case for g in groups for s, m in zip(scores, g.members, strict=True) if m}


def test_rough_outlines_are_a_group():
    found = members(archive(30, 20))
    assert found == {f"noisy{i:03d}" for i in range(20)}


def test_without_counts_of_candidates_they_take_those_of_a_fixed_confidence():
    found = decide(archive(30, 20))
    assert found["noisy000"].classes[1].edit == Replace(dict.fromkeys(Kind, 0.7))
    assert found["clean000"].classes[1].edit.action == "keep"


def test_an_archive_drawn_alike_has_none():
    assert not members(archive(60, 0))


def test_few_cases_or_a_small_difference_are_no_group():
    assert not members(archive(20, 15))  # fewer than 40 cases
    assert not members(archive(40, 40, gap=0.06))


def test_rough_outlines_that_fit_the_networks_as_well_are_no_group():
    alike = [replace(s, foreground=replace(s.foreground, nats=1000.0)) for s in archive(30, 20)]
    alike = [replace(s, classes={1: s.foreground}) for s in alike]
    assert not members(alike)


def test_rough_cases_that_are_wider_too_are_no_second_way_of_drawing():
    scores = archive(30, 20, offset=0.9)
    assert not two_ways(scores, PolicyParams())
    decisions = decide(scores)
    acts = {name: one.classes[1].edit.action for name, one in decisions.items()}
    assert {acts[name] for name in acts if name.startswith("noisy")} == {"replace"}
    assert {acts[name] for name in acts if name.startswith("clean")} == {"keep"}
    assert "is rougher than in most cases" in decisions["noisy000"].classes[1].why


@pytest.mark.parametrize(
    ("noise", "params", "is_rough"),
    [
        ("markov", {"steps": 12, "th2": 0.1}, True),
        ("polygon", {"vertices": 4}, True),
        ("bias", {"amount": 1.0}, False),
        ("bias", {"amount": 1.0, "sign": -1}, False),
    ],
)
def test_wandering_and_clicked_outlines_are_rough_and_wider_or_narrower_ones_are_not(
    noise, params, is_rough
):
    shape = (24, 32, 32)
    away = np.indices(shape) - np.array([11.5, 15.5, 15.5]).reshape(3, 1, 1, 1)
    truth = (np.sqrt((away**2).sum(axis=0)) < 9).astype(np.uint8)
    label = corrupt(truth, noise, np.random.default_rng(1), **params)
    plain, other = (
        boundary_sums(one, truth, classes=(1,), core=Box.whole(shape)).roughness_vox(1)
        for one in (truth, label)
    )
    assert plain < 0.05
    assert (other > 0.32) == is_rough
