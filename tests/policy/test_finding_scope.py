"""Archives of many classes: what is odd about one class says nothing about the others."""

import numpy as np
import pytest

from raysegclean.evidence.case_scores import CaseScore, ClassScore, Kind
from raysegclean.methods.spatial.bias import like_trusted
from raysegclean.policy.default import decide, two_ways
from raysegclean.policy.finding_scope import Speaking
from raysegclean.policy.params import PolicyParams

NONE = float("nan")
LEVELS = 64


def class_score(rng, *, noisy=False, lacks=False, offset=None):
    """A class of 1000 voxels; a noisy one fits worse and has far more sure candidates."""
    counts = {kind: rng.poisson(0.2, LEVELS).astype(np.int32) for kind in Kind}
    if noisy:
        counts[Kind.REMOVED] = counts[Kind.REMOVED] + rng.poisson(8.0, LEVELS).astype(np.int32)
    given, both = (0, 0) if lacks else (1000, 900)
    return ClassScore(
        offset_vox=NONE if lacks else rng.normal(0, 0.1) if offset is None else offset,
        boundary_vox=2000,
        nats=float(np.exp(rng.normal(3 + 1.5 * noisy, 0.2))),
        union_vox=given + 1000 - both,
        given_vox=given,
        predicted_vox=1000,
        both_vox=both,
        spread_vox=0.3,
        roughness_vox=0.25,
        candidates=counts,
    )


def speck():
    """A class that is rightly absent, of which the networks see 40 voxels."""
    counts = {kind: np.zeros(LEVELS, np.int32) for kind in Kind}
    counts[Kind.ADDED][LEVELS // 2] = 40
    return ClassScore(NONE, 30, 80.0, 40, 0, 40, 0, candidates=counts)


def actions_of(decisions, channels):
    return {
        (case, c): one.edit.action
        for case, decision in decisions.items()
        for c, one in decision.classes.items()
        if c in channels
    }


@pytest.mark.parametrize("classes", [2, 40])
def test_where_every_case_is_noisy_in_some_class_each_noisy_class_is_still_found(classes):
    rng = np.random.default_rng(0)
    noisy = rng.random((200, classes)) < 0.12
    scores = [
        CaseScore(
            f"c{i:03}",
            class_score(rng),
            {c + 1: class_score(rng, noisy=bool(noisy[i, c])) for c in range(classes)},
        )
        for i in range(200)
    ]
    found = actions_of(decide(scores), range(1, classes + 1))
    wanted = {
        (f"c{i:03}", c + 1): "replace" if noisy[i, c] else "keep"
        for i in range(200)
        for c in range(classes)
    }
    assert found == wanted


@pytest.mark.parametrize("rare", [0, 4, 16])
def test_specks_of_absent_classes_ask_nobody_and_hide_no_noise_elsewhere(rare):
    rng = np.random.default_rng(0)
    scores = []
    for i in range(80):
        noisy = i >= 62
        classes = {1: class_score(rng, noisy=noisy), 2: class_score(rng, noisy=noisy)}
        for k in range(rare):
            classes[3 + k] = speck() if (i * 7 + k * 5) % 80 < 5 else class_score(rng)
        scores.append(CaseScore(f"c{i:02}", class_score(rng, noisy=noisy), classes))
    decisions = decide(scores)
    for (case, _), action in actions_of(decisions, (1, 2)).items():
        assert action is ("replace" if case >= "c62" else "keep")
    about = {one.why for d in decisions.values() for c, one in d.classes.items() if c > 2}
    assert not any("nothing of it is near" in why for why in about)


def test_a_structure_that_lies_elsewhere_than_the_networks_see_it_goes_to_a_person():
    rng = np.random.default_rng(0)
    scores = [CaseScore(f"c{i:02}", class_score(rng), {1: class_score(rng)}) for i in range(40)]
    scores[0].classes[1] = class_score(rng, offset=NONE)
    found = decide(scores)["c00"].classes[1]
    assert found.edit.action == "review"
    assert "nothing of it is near where the networks see it" in found.why


@pytest.mark.parametrize("trusted", [0, 1])
def test_structures_that_one_fold_lacks_do_not_make_two_ways_of_drawing(trusted):
    rng = np.random.default_rng(0)
    scores = [
        CaseScore(
            f"c{i:02}",
            class_score(rng),
            {1: class_score(rng, lacks=i % 2 == 0 and i < 12), 2: class_score(rng)},
            fold=i % 2,
        )
        for i in range(60)
    ]
    known = [s for s in scores if s.case == "c59"][:trusted]
    assert not two_ways(scores, PolicyParams(), known)
    assert "shift" not in actions_of(decide(scores, trusted=known), (1, 2)).values()


def test_a_trusted_case_whose_given_label_lacks_the_class_does_not_hide_a_bias():
    rng = np.random.default_rng(0)

    def case(i, offset, *, lacks=False):
        return CaseScore(
            f"c{i:02}", class_score(rng), {1: class_score(rng, offset=offset, lacks=lacks)}
        )

    given = [case(i, 1.5 + rng.normal(0, 0.05)) for i in range(20)]
    trusted = [case(i, rng.normal(0, 0.02)) for i in range(4)]
    everyone = {s.case for s in given}
    assert like_trusted(given, trusted, 1, PolicyParams()) == everyone
    given[0] = case(0, 0.0, lacks=True)
    assert like_trusted(given, trusted, 1, PolicyParams()) == everyone - {"c00"}
    assert like_trusted(given, [trusted[0]], 1, PolicyParams()) == frozenset()


def test_a_finding_on_the_foreground_is_about_all_and_on_a_large_class_about_the_foreground():
    rng = np.random.default_rng(0)
    large, small = class_score(rng), speck()
    scores = [CaseScore(f"c{i}", large, {1: large, 2: small}) for i in range(3)]
    speaking = Speaking.of(scores, PolicyParams())
    found = {n: np.arange(3) == n for n in range(3)}
    about = {key: flags.tolist() for key, flags in speaking.all_about(found).items()}
    assert about == {0: [True, True, False], 1: [True, True, False], 2: [True, False, True]}
    assert speaking.telling([1]) == {0, 1}
    assert speaking.telling([2]) == {2}
    assert not any(flags.any() for flags in speaking.all_about({}).values())
