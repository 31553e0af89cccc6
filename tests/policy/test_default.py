"""The policy on archives of numbers: planted errors are found, clean archives are left alone."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from raysegclean.errors import ConfigError
from raysegclean.evidence.case_scores import NEVER, CaseScore, ClassScore, Kind
from raysegclean.policy.default import decide, decide_worst
from raysegclean.policy.edits import Replace
from raysegclean.policy.outlier_cases import excess_threshold, is_learnt
from raysegclean.policy.params import PolicyParams

LEVELS = 16


def class_score(offset=0.0, *, boundary=1000, corruption=0.5, added=60, removed=60):
    """A class of 2000 voxels; candidates get rarer with confidence, from level 8 on."""
    falling = np.zeros(LEVELS)
    falling[8:] = 0.6 ** np.arange(8)
    falling /= falling.sum()
    return ClassScore(
        offset_vox=offset,
        boundary_vox=boundary,
        nats=corruption * 2000,
        union_vox=2000,
        given_vox=1900,
        predicted_vox=1900,
        both_vox=1800,
        candidates={
            Kind.ADDED: np.rint(falling * added).astype(np.int64),
            Kind.REMOVED: np.rint(falling * removed).astype(np.int64),
            Kind.SWAPPED: np.zeros(LEVELS, np.int64),
        },
    )


def case(name, foreground, *classes):
    return CaseScore(name, foreground, dict(enumerate(classes or (foreground,), start=1)))


def clean_case(index, rng):
    def one():
        return class_score(
            rng.normal(0.1, 0.1),
            corruption=0.5 * np.exp(rng.normal(0, 0.1)),
            added=int(60 * np.exp(rng.normal(0, 0.2))),
            removed=int(60 * np.exp(rng.normal(0, 0.2))),
        )

    return case(f"clean{index:03d}", one(), one(), one())


def clean_archive(n=40, seed=0):
    rng = np.random.default_rng(seed)
    return [clean_case(i, rng) for i in range(n)]


def cut_off_cases(n, seed=1, boundary_added=600):
    """Outlines that lack voxels: many sure candidates to add, few to remove, worse fit."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(n):
        bad = class_score(
            rng.normal(-0.1, 0.1),
            corruption=0.8 * np.exp(rng.normal(0, 0.1)),
            added=int(boundary_added * np.exp(rng.normal(0, 0.15))),
            removed=25,
        )
        out.append(case(f"cut{i:03d}", bad, bad, bad))
    return out


def actions(decisions, prefix, classes=(1, 2)):
    return [
        d.edit.action
        for name, decision in sorted(decisions.items())
        if name.startswith(prefix)
        for c, d in decision.classes.items()
        if c in classes
    ]


def test_a_clean_archive_is_left_alone():
    for seed in range(8):
        decisions = decide(clean_archive(60, seed))
        assert set(actions(decisions, "clean")) == {"keep"}
        assert not any(d.flagged for d in decisions.values())


@pytest.mark.parametrize("offset", [-1.2, 0.9])
def test_cases_whose_boundary_is_off_are_shifted_back_from_the_mode(offset):
    bad = [
        case(f"bad{i}", *[class_score(0.1 + offset, corruption=0.9, added=300)] * 3)
        for i in range(10)
    ]
    decisions = decide(clean_archive(30) + bad)
    assert set(actions(decisions, "bad")) == {"shift"}
    assert set(actions(decisions, "clean")) == {"keep"}
    found = decisions["bad3"].classes[2]
    assert found.shift_vox == pytest.approx(0.8 * offset, abs=0.15)
    assert "off by" in found.why and found.offset_vox == pytest.approx(offset, abs=0.15)


def test_a_side_that_fits_better_than_the_centre_is_not_moved():
    scores = [case(f"tight{i}", class_score(0.01 * (i % 3), corruption=0.8)) for i in range(20)]
    scores += [case(f"wide{i}", class_score(0.6 + 0.05 * i, corruption=0.4)) for i in range(15)]
    assert not any(d.flagged for d in decide(scores).values())


def test_networks_of_one_fold_that_draw_wider_do_not_flag_its_cases():
    scores = []
    for fold in (0, 1):
        rng = np.random.default_rng(fold)
        for i in range(24):
            off = 1.2 * (i < 6)
            one = class_score(
                rng.normal(off - fold, 0.1), corruption=0.5 + 0.2 * fold + 0.3 * (i < 6)
            )
            scores.append(CaseScore(f"{'bad' if i < 6 else 'good'}{fold}{i}", one, {1: one}, fold))
    decisions = decide(scores)
    assert set(actions(decisions, "bad")) == {"shift"}
    assert set(actions(decisions, "good")) == {"keep"}


@pytest.mark.parametrize("seed", range(6))
def test_half_of_forty_cases_are_off_in_folds_that_draw_differently_and_are_told_apart(seed):
    rng, scores = np.random.default_rng(seed), []
    for fold in (0, 1):
        for i, off in enumerate([0.0] * 10 + [0.95] * 5 + [-0.9] * 5):
            offset = rng.normal(off - 0.5 * fold, 0.12 if off == 0 else 0.05)
            one = class_score(offset, corruption=0.9 if off else 0.4)
            name = f"{'bad' if off else 'good'}{fold}{i}"
            scores.append(CaseScore(name, one, {1: one, 2: one}, fold))
    decisions = decide(scores)
    assert set(actions(decisions, "bad")) == {"shift"}
    assert set(actions(decisions, "good")) == {"keep"}


def test_in_a_small_archive_one_class_that_is_off_alone_goes_to_a_person():
    good, bad = class_score(0.1), class_score(1.6, corruption=0.9)
    decisions = decide([*clean_archive(20), case("bad", class_score(0.35), good, bad)])
    assert decisions["bad"].classes[1].edit.action == "keep"
    assert decisions["bad"].classes[2].edit.action == "review"


def test_one_class_that_is_off_is_shifted_alone():
    good, bad = class_score(0.1), class_score(1.6, corruption=0.9)
    off = [case(f"bad{i}", class_score(0.35), good, bad) for i in range(3)]
    decisions = decide([*clean_archive(45), *off])
    assert decisions["bad0"].classes[1].edit.action == "keep"
    assert decisions["bad0"].classes[2].edit.action == "shift"
    assert decisions["bad0"].classes[2].shift_vox == pytest.approx(1.2, abs=0.15)


def test_one_case_in_fifty_that_is_off_is_odd_and_goes_to_a_person():
    bad = class_score(1.6, corruption=0.9)
    decisions = decide([*clean_archive(49), case("bad", bad, bad, bad)])
    assert decisions["bad"].classes[1].edit.action == "review"
    assert "which few others are" in decisions["bad"].classes[1].why


def test_a_large_organ_that_is_off_does_not_move_a_small_one_that_is_not():
    wide = class_score(1.4, corruption=0.9)
    small = class_score(0.1, corruption=0.9)
    decisions = decide([*clean_archive(30), *(case(f"bad{i}", wide, wide, small) for i in (1, 2))])
    assert decisions["bad1"].classes[1].edit.action == "shift"
    assert decisions["bad1"].classes[2].edit.action == "keep"


def test_a_missing_structure_is_no_shifted_outline_and_goes_to_a_person():
    gone = class_score(-4.9, corruption=3.0)
    decisions = decide([*clean_archive(30), case("bad", class_score(-0.2), class_score(0.1), gone)])
    assert decisions["bad"].classes[2].edit.action == "review"
    assert decisions["bad"].flagged


def drawn(n, name, offset, corruption, seed=0):
    """Cases of one way of drawing: offsets near one value, and a fit to the networks."""
    rng = np.random.default_rng([seed, n])
    out = []
    for i in range(n):
        parts = [
            class_score(
                rng.normal(offset, 0.12), corruption=corruption * np.exp(rng.normal(0, 0.2))
            )
            for _ in range(3)
        ]
        out.append(case(f"{name}{i:02d}", *parts))
    return out


@pytest.mark.parametrize("wide_is_wrong", [True, False])
def test_of_two_ways_of_drawing_the_one_that_fits_worse_is_moved_onto_the_other(wide_is_wrong):
    fits = (0.7, 0.55) if wide_is_wrong else (0.55, 0.7)
    wide, narrow = drawn(45, "wide", 0.3, fits[0]), drawn(50, "narrow", -0.45, fits[1], seed=1)
    decisions = decide([*wide, *narrow])
    wrong, right = ("wide", "narrow") if wide_is_wrong else ("narrow", "wide")
    assert actions(decisions, wrong).count("shift") >= 0.9 * 90
    assert set(actions(decisions, right)) == {"keep"}
    moved = decisions[f"{wrong}03"].classes[1]
    assert moved.shift_vox == pytest.approx(0.75 if wide_is_wrong else -0.75, abs=0.1)
    assert "as in a group of cases apart" in moved.why and moved.edit.fit_gain < 0


def test_an_outline_that_is_moved_onto_another_way_must_fit_as_those_drawn_that_way_do():
    wide, narrow = drawn(45, "wide", 0.3, 0.7), drawn(50, "narrow", -0.45, 0.55, seed=1)
    fits = np.linspace(0.7, 0.9, len(narrow))
    narrow = [
        CaseScore(
            s.case,
            s.foreground,
            {c: replace(one, both_vox=round(1900 * fit)) for c, one in s.classes.items()},
        )
        for s, fit in zip(narrow, fits, strict=True)
    ]
    moved = decide([*wide, *narrow])["wide03"].classes[1]
    assert moved.edit.action == "shift"
    # Nineteen of twenty right labels fit at least so well, wherever the networks lie.
    assert moved.edit.min_fit == pytest.approx(0.71, abs=0.001)
    assert moved.edit.fit_gain == -1.0


def test_of_two_ways_that_fit_alike_none_is_touched():
    wide, narrow = drawn(45, "wide", 0.3, 0.6), drawn(50, "narrow", -0.45, 0.6, seed=1)
    # The foreground alone fits worse, and the wide ones lack nothing that the narrow ones do not.
    narrow = [
        CaseScore(
            s.case, class_score(s.foreground.offset_vox, corruption=0.9, added=300), s.classes
        )
        for s in narrow
    ]
    decisions = decide([*wide, *narrow])
    found = [d for one in decisions.values() for d in one.classes.values()]
    assert {d.edit.action for d in found} == {"not judged"}
    assert all("in two ways and nothing tells" in d.why for d in found)


def of_three_classes(scores, worse):
    """The same cases with three classes, each fitting the networks so many times worse."""
    out = []
    for score in scores:
        parts = [score.foreground, *score.classes.values()]
        fits = [replace(one, nats=one.nats * w) for one, w in zip(parts, worse, strict=True)]
        out.append(case(score.case, score.foreground, *fits))
    return out


@pytest.mark.parametrize(
    "worse",
    [
        pytest.param((1.07, 1.07, 1.07), id="a third of a deviation, as right ones can"),
        pytest.param((3.0, 1.0, 1.0), id="one class of three"),
    ],
)
def test_of_two_ways_none_is_touched_where_fits_differ_little_or_in_one_class_alone(worse):
    wide = of_three_classes(drawn(45, "wide", 0.3, 0.6), worse)
    narrow = of_three_classes(drawn(50, "narrow", -0.45, 0.6, seed=1), (1, 1, 1))
    found = [d for one in decide([*wide, *narrow]).values() for d in one.classes.values()]
    assert {d.edit.action for d in found} == {"not judged"}
    assert all("in two ways and nothing tells" in d.why for d in found)


@pytest.mark.parametrize(("trusted_offset", "wrong"), [(0.25, "narrow"), (-0.5, "wide")])
def test_one_trusted_case_tells_which_of_two_ways_is_right(trusted_offset, wrong):
    both = [*drawn(45, "wide", 0.3, 0.6), *drawn(50, "narrow", -0.45, 0.6, seed=1)]
    expert = class_score(trusted_offset)
    decisions = decide(both, trusted=[case("wide07", expert, expert, expert)])
    right = {"wide": "narrow", "narrow": "wide"}[wrong]
    assert actions(decisions, wrong).count("shift") >= 0.9 * 2 * 45
    assert set(actions(decisions, right)) == {"keep"}


def test_a_class_that_does_not_lie_off_stays_when_the_foreground_has_two_ways():
    wide = [
        CaseScore(s.case, s.foreground, {**s.classes, 2: class_score(-0.45, corruption=0.7)})
        for s in drawn(45, "wide", 0.3, 0.7)
    ]
    decisions = decide([*wide, *drawn(50, "narrow", -0.45, 0.55, seed=1)])
    assert actions(decisions, "wide", classes=[1]).count("shift") >= 40
    assert "shift" not in actions(decisions, "wide", classes=[2])


def lacking(score, predicted_vox):
    """The same case, whose label has no voxel of class 1 where the networks see so many."""
    one = replace(score.classes[1], given_vox=0, both_vox=0, predicted_vox=predicted_vox)
    return CaseScore(f"lacks{score.case}", score.foreground, {**score.classes, 1: one})


@pytest.mark.parametrize(
    ("predicted_vox", "action"),
    [(1900, "fill"), (1200, "fill"), (300, "keep"), (9000, "keep")],
)
def test_a_forgotten_structure_is_filled_where_the_networks_see_it_at_its_usual_size(
    predicted_vox, action
):
    bad = [lacking(s, predicted_vox) for s in clean_archive(20)]
    decisions = decide([*clean_archive(30), *bad])
    assert set(actions(decisions, "lacks", classes=[1])) == {action}
    assert set(actions(decisions, "lacks", classes=[2])) == {"keep"}
    assert set(actions(decisions, "clean")) == {"keep"}


def test_a_structure_that_most_labels_lack_is_not_filled():
    bad = [lacking(s, 1900) for s in clean_archive(50)]
    decisions = decide([*clean_archive(30), *bad])
    assert "fill" not in actions(decisions, "lacks")


def test_cut_off_outlines_get_back_what_they_lack_and_lose_nothing():
    decisions = decide(clean_archive(40) + cut_off_cases(30))
    assert actions(decisions, "cut").count("replace") >= 0.9 * 60
    assert actions(decisions, "clean").count("keep") >= 0.98 * 80
    found = decisions["cut003"].classes[1]
    assert found.edit.above[Kind.ADDED] < 0.6
    assert Kind.REMOVED not in found.edit.above
    assert "networks see are not drawn" in found.why and found.posterior > 0.8


def test_a_case_that_the_networks_do_not_understand_leaves_its_noisy_group():
    def spread(score, vox):
        parts = {c: replace(one, spread_vox=vox) for c, one in score.classes.items()}
        return CaseScore(score.case, replace(score.foreground, spread_vox=vox), parts)

    rng = np.random.default_rng(3)
    cut = cut_off_cases(30)
    usual = [spread(s, rng.normal(0.7, 0.05)) for s in [*clean_archive(40), *cut[1:]]]
    decisions = decide([*usual, spread(cut[0], 1.7)])
    assert decisions["cut000"].classes[1].edit.action == "keep"
    assert decisions["cut001"].classes[1].edit.action == "replace"


def off_cases(n):
    bad = class_score(1.2, corruption=1.0)
    return [case(f"bad{i}", bad, bad, bad) for i in range(n)]


def agreeing(score, dice, given_vox=1900):
    """The same case, whose label of class 1 overlaps the prediction by so much."""
    one = score.classes[1]
    both = int(dice * (given_vox + one.predicted_vox) / 2)
    first = replace(one, given_vox=given_vox, both_vox=both)
    return CaseScore(score.case, score.foreground, {**score.classes, 1: first})


@pytest.mark.parametrize(("usual", "lower"), [(0.70, 0.70), (0.85, 0.60)])
def test_networks_that_half_or_a_quarter_of_the_labels_contradict_ask_but_do_not_edit(usual, lower):
    archive = [*clean_archive(54), *off_cases(6)]
    decisions = decide([agreeing(s, lower if i % 10 < 3 else usual) for i, s in enumerate(archive)])
    assert decisions["bad1"].classes[1].edit.action == "review"
    assert "have not learnt" in decisions["bad1"].classes[1].why
    assert decisions["bad1"].classes[2].edit.action == "shift"


@pytest.mark.parametrize(("classes", "edits"), [(2, False), (3, True)])
def test_networks_that_know_no_more_than_half_of_the_classes_replace_nothing(classes, edits):
    def wider(score):
        more = dict.fromkeys(range(1, classes + 1), score.classes[1])
        return agreeing(CaseScore(score.case, score.foreground, more), 0.6)

    decisions = decide([wider(s) for s in [*clean_archive(40), *cut_off_cases(20)]])
    for name, decision in decisions.items():
        found = {decision.classes[c].edit.action for c in range(2, classes + 1)}
        if name.startswith("cut"):
            assert found == {"replace" if edits else "review"}
            assert decision.classes[1].edit.action == "review"
        else:
            assert found == {"keep"}


def test_cases_that_lack_a_class_do_not_make_it_look_unlearnt():
    lacking = [agreeing(s, 0.0, given_vox=0) for s in clean_archive(40)]
    lacking = [replace(s, case=f"lacks {s.case}") for s in lacking]
    decisions = decide([*clean_archive(40), *off_cases(8), *lacking])
    assert decisions["bad1"].classes[1].edit.action == "shift"


def test_when_half_is_cut_off_the_better_fitting_half_is_taken_for_right():
    rng = np.random.default_rng(4)
    right = [
        case(f"right{i}", *[class_score(0.1, added=40 + i % 7, removed=300 + 9 * (i % 5))] * 2)
        for i in range(30)
    ]
    decisions = decide(right + cut_off_cases(30, seed=int(rng.integers(100))))
    assert set(actions(decisions, "right")) == {"keep"}
    assert "replace" in actions(decisions, "cut")


def test_no_candidate_of_less_than_the_least_confidence_is_taken():
    scores = clean_archive(60) + cut_off_cases(30)
    free, strict = (decide(scores, PolicyParams(least_confidence=least)) for least in (0.0, 0.97))
    above = [
        max(edit.above.values())
        for decision in free.values()
        for edit in decision.edits.of(Replace).values()
        if edit.above
    ]
    assert above and max(above) < 0.97
    for case, decision in free.items():
        for channel, one in decision.classes.items():
            found = strict[case].classes[channel]
            assert found.edit.action == one.edit.action
            if isinstance(one.edit, Replace):
                assert found.edit.above == dict.fromkeys(one.edit.above, 0.97)


def test_a_class_that_no_trusted_label_holds_is_judged_by_the_given_ones():
    def seen(given_vox, both_vox):
        return ClassScore(0.0, 100, 1.0, 100, given_vox, 100, both_vox)

    given = [seen(100, 10)] * 20
    assert not is_learnt(given, [], PolicyParams())
    assert not is_learnt(given, [seen(0, 0)] * 8, PolicyParams())
    assert not is_learnt(given, [seen(0, 0)] * 8 + [seen(100, 95)], PolicyParams())
    assert is_learnt(given, [seen(100, 95)] * 8, PolicyParams())


def test_cases_that_fit_the_networks_worse_as_a_group_go_to_a_person():
    def bare(name, corruption):
        return case(name, ClassScore(0.0, 1000, corruption * 2000, 2000, 1900, 1900, 1800))

    rng = np.random.default_rng(0)
    scores = [bare(f"clean{i}", 0.4 * np.exp(rng.normal(0, 0.1))) for i in range(30)]
    scores += [bare(f"bad{i}", 1.6 * np.exp(rng.normal(0, 0.1))) for i in range(15)]
    decisions = decide(scores)
    assert set(actions(decisions, "bad")) == {"review"}
    assert set(actions(decisions, "clean")) == {"keep"}
    assert "hard to see, or drawn wrong" in decisions["bad0"].classes[1].why


def test_too_few_cases_decide_nothing():
    scores = [*clean_archive(5), case("bad", class_score(3.0, corruption=3.0))]
    decisions = decide(scores)
    assert not any(d.flagged for d in decisions.values())
    assert "6 cases" in decisions["bad"].classes[1].why


def test_when_most_of_the_archive_looks_wrong_nothing_is_done():
    rng = np.random.default_rng(0)
    scattered = [case(f"c{i}", class_score(rng.uniform(-3, 3))) for i in range(40)]
    scattered += [case(f"d{i}", class_score(0.2 + 0.001 * i)) for i in range(4)]
    assert not any(d.flagged for d in decide(scattered).values())


def test_a_bias_of_all_cases_is_seen_with_trusted_cases_only():
    rng = np.random.default_rng(0)
    scores = [case(f"c{i}", class_score(rng.normal(0.1, 0.1))) for i in range(30)]
    assert not any(d.flagged for d in decide(scores).values())
    trusted = [case(f"c{i}", class_score(rng.normal(-1.1, 0.1))) for i in range(8)]
    decisions = decide(scores, trusted=trusted)
    assert set(actions(decisions, "c")) == {"shift"}
    assert decisions["c20"].classes[1].shift_vox == pytest.approx(0.8 * 1.2, abs=0.3)
    assert not any(d.flagged for d in decide(scores, trusted=trusted[:7]).values())


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 1000))
def test_decisions_do_not_depend_on_the_order_of_the_cases(seed):
    scores = clean_archive(20, seed) + cut_off_cases(12, seed + 1)
    order = np.random.default_rng(seed).permutation(len(scores))
    assert decide(scores) == decide([scores[i] for i in order])


def test_cases_without_any_measurement_are_kept():
    nothing = ClassScore(float("nan"), 0, 0.0, 0, 0, 0, 0)
    decisions = decide([*clean_archive(20), case("empty", nothing), CaseScore("none", nothing, {})])
    assert decisions["empty"].classes[1].edit.action == "keep"
    assert not decisions["none"].classes
    assert np.isnan(nothing.log_corruption) and np.isnan(nothing.agreement)
    everything_empty = [case(f"e{i}", nothing) for i in range(20)]
    assert not any(d.flagged for d in decide(everything_empty).values())


@settings(max_examples=100, deadline=None)
@given(
    noisy=st.lists(st.integers(0, 50), min_size=2, max_size=20),
    rate=st.floats(0, 3),
    weight=st.sampled_from([0.5, 1.0, 2.0]),
)
def test_the_excess_threshold_is_the_best_of_all_thresholds(noisy, rate, weight):
    counts = np.array(noisy, float)
    reference = np.linspace(3, 1, len(noisy)) * rate
    got = excess_threshold(counts, reference, weight)
    gains = [0.0]
    for level in range(1, len(noisy)):
        repaired = (counts - reference)[level:].sum()
        gains.append(repaired - weight * reference[level:].sum())
    if got == NEVER:
        assert max(gains[1:], default=0.0) <= 1e-9
    else:
        assert gains[round(got * len(noisy))] == pytest.approx(max(gains))


def test_the_published_form_flags_the_worst_share_by_corruption_score():
    scores = [case(f"c{i}", class_score(corruption=1 + (i * 7) % 10)) for i in range(10)]
    decisions = decide_worst(scores, alpha=0.7)
    worst = sorted(scores, key=lambda s: -s.foreground.nats)[:3]
    assert {c for c, d in decisions.items() if d.flagged} == {s.case for s in worst}
    assert decisions[worst[0].case].classes[1].edit.above == dict.fromkeys(Kind, 0.5)
    assert not any(d.flagged for d in decide_worst(scores, alpha=1.0).values())
    with pytest.raises(ConfigError, match="alpha"):
        decide_worst(scores, alpha=0.0)


def test_bad_input_is_refused_with_a_reason():
    twice = [case("a", class_score()), case("a", class_score())]
    for rule in (decide, lambda s: decide_worst(s, alpha=0.5)):
        with pytest.raises(ConfigError, match="twice"):
            rule(twice)
    with pytest.raises(ValidationError, match="posterior"):
        PolicyParams(posterior=0.0)
    with pytest.raises(ValidationError, match="min_cases"):
        PolicyParams(min_cases=2)
