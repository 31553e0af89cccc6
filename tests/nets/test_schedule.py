"""A training goes on while agreement rises, through plateaus and noise, and ends soon after."""

from itertools import pairwise

import numpy as np
import pytest

from raysegclean.nets.schedule import Course, Phases, ending
from raysegclean.planning.plan import CPU_STEPS, LEAST_STEPS

EVERY = 80
"""Steps between evaluations of 16 classes at batch 4."""


def ends_at(curve, *, most=50_000, every=EVERY, least=1_000):
    """Return the step at which the decay begins, and why; curve: step -> agreement."""
    course = Course.planned(least, most)
    for step in range(every, most, every):
        course = course.judged(step, float(curve(step)))
        if not course.is_undecided(step):
            break
    return course.phases.decay_at, course.ended_by


def noisy(curve, seed=0, sd=0.02):
    """Return the curve as it is seen at the full rate, from one evaluation to the next."""
    return lambda step: curve(step) + sd * np.random.default_rng([seed, step]).standard_normal()


def organs(onsets, tops, speed=0.25):
    """Return the mean Dice of classes that are learnt one after the other, each within a while."""
    onsets, tops = np.array(onsets, float), np.array(tops, float)
    return lambda step: float(
        np.mean(tops * (1 - np.exp(-np.maximum(step - onsets, 0) / (speed * onsets))))
    )


LIKE_LEARN = organs(np.geomspace(180, 1500, 16), np.linspace(0.9, 0.7, 16))
"""Three of 16 organs after 200 steps, ten after 600, the small ones last."""


def test_all_phases_of_a_given_length_are_shares_of_it():
    phases = Phases.of(1_000)
    assert (phases.warm_up, phases.decay_at, phases.steps) == (50, 750, 1_000)
    assert (phases.recalibrate_at, phases.frozen_at) == (800, 850)
    assert phases.decaying_from(750) == phases


@pytest.mark.parametrize("steps", range(1, 30))
def test_the_phases_of_the_shortest_trainings_are_in_order_and_something_is_learnt(steps):
    phases = Phases.of(steps)
    assert 0 < phases.decay_at <= phases.recalibrate_at <= phases.frozen_at <= phases.steps == steps
    assert all(0 < phases.rate_at(step) <= 1 for step in range(steps))


def test_the_rate_warms_up_stays_and_falls_to_almost_nothing():
    phases = Phases.of(100)
    rates = [phases.rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[5:76] == [1.0] * 71
    assert all(a > b for a, b in pairwise(rates[75:]))
    assert rates[-1] < 0.03


@pytest.mark.parametrize("seed", range(5))
def test_organs_that_are_learnt_one_after_the_other_are_waited_for(seed):
    step, why = ends_at(noisy(LIKE_LEARN, seed))
    assert why == "plateau"
    assert 2_000 < step < 5_000, "all are learnt after 1,900 steps"


def test_the_first_plateau_where_everything_is_background_ends_nothing():
    late = organs(np.geomspace(2_500, 4_000, 5), [0.8] * 5)
    step, why = ends_at(noisy(lambda step: max(0.0, late(step)), sd=0.004))
    assert why == "plateau"
    assert step > 4_500


@pytest.mark.parametrize("seed", range(5))
def test_agreement_that_wrong_labels_keep_low_ends_as_soon_as_any_other(seed):
    step, why = ends_at(noisy(lambda step: 0.55 * (1 - np.exp(-step / 150)), seed))
    assert why == "plateau"
    assert step < 2_500


def test_one_class_of_sixty_that_is_learnt_late_is_waited_for():
    without, _ = ends_at(organs([100] * 59 + [1e9], [0.8] * 60))
    with_it, _ = ends_at(organs([100] * 59 + [800], [0.8] * 60))
    assert without < 1_100
    assert with_it > 1_400


def test_what_falls_is_ended_before_the_patience_for_a_plateau_is_over():
    def curve(step):
        return 0.8 * (1 - np.exp(-min(step, 3_000) / 1_000)) - 2e-4 * max(0, step - 3_000)

    step, why = ends_at(noisy(curve, sd=0.01))
    assert why == "fall"
    assert 3_500 < step < 4_000


def test_a_training_that_keeps_rising_is_ended_by_its_bound_alone():
    course = Course.planned(1_000, 3_000)
    for step in range(EVERY, 3_000, EVERY):
        course = course.judged(step, step / 3_000)
    assert course.ended_by == ""
    assert (course.phases.decay_at, course.phases.steps) == (2_250, 3_000)
    assert not course.is_undecided(2_250)


def test_nothing_is_decided_before_the_shortest_training_nor_without_an_open_end():
    flat = [(step, 0.8) for step in range(10, 510, 10)]
    assert ending(flat) == "plateau"
    for steps, most in ((1_000, 3_000), (600, None)):
        course = Course.planned(steps, most)
        for step, value in flat:
            course = course.judged(step, value)
        assert course.ended_by == ""


def test_time_that_is_up_ends_the_stable_phase_at_once_and_the_step_is_kept():
    open_end = Course.planned(1_000, 3_000)
    course = open_end.judged(80, 0.3, minutes=1.0, budget_minutes=2.0)
    assert not course.ended_by
    course = course.judged(160, 0.3, minutes=1.6, budget_minutes=2.0)
    assert (course.phases.decay_at, course.phases.steps, course.ended_by) == (160, 214, "time")
    assert open_end.gone_on(course.state(), 170) == course
    assert course.judged(200, 0.9, minutes=1.9, budget_minutes=2.0) == course
    allowed = {budget: course.may_go_on(1_000, 3_000, budget) for budget in (2.0, 2.5, None)}
    assert allowed == {2.0: False, 2.5: True, None: True}


@pytest.mark.parametrize("most", [999, 1_001, 3_000])
def test_a_decay_that_a_bound_began_goes_on_and_so_does_a_stable_phase_under_another(most):
    course = Course.planned(400, most)
    at = course.phases.decay_at
    assert course.phases.steps <= most
    assert course.gone_on(course.state(), at + 1) == course
    raised, lowered = Course.planned(400, 2 * most), Course.planned(400, most // 2)
    assert raised.gone_on(course.state(), at).phases == raised.phases
    assert raised.gone_on(course.state(), at + 1).phases == course.phases
    assert lowered.gone_on(course.state(), at - 9).phases.decay_at == at - 9
    assert course.may_go_on(400, 2 * most, None)
    assert not course.may_go_on(400, most, None)


def test_a_course_goes_on_from_what_it_remembers():
    course = Course.planned(1_000, 50_000)
    for step in range(EVERY, 50_000, EVERY):
        course = course.judged(step, noisy(LIKE_LEARN)(step))
        again = Course.planned(1_000, 50_000).gone_on(course.state(), step)
        assert again == course
        if course.ended_by:
            return
    raise AssertionError


MEMORISING = """
    .294 .361 .558 .736 .768 .752 .782 .800 .788 .790 .771 .751 .694 .766 .739 .760
    .748 .722 .693 .693 .744 .715 .729 .731 .701 .678 .726 .693 .703 .702 .728 .712
    .712 .684 .685 .710 .693 .675 .671 .662
"""
LEARNING = """
    .195 .377 .454 .657 .657 .667 .732 .718 .734 .701 .747 .744 .734 .743 .748 .737
    .762 .752 .758 .735 .758 .748 .717 .733 .716 .747 .742 .735 .713 .751 .730 .739
    .739 .736 .756 .718 .726 .740 .753 .742
"""


@pytest.mark.parametrize(("agreements", "best_at"), [(MEMORISING, 225), (LEARNING, 425)])
def test_real_networks_end_before_they_have_memorised_what_is_wrong(
    agreements: str, best_at: int
) -> None:
    """Two folds of 60 hippocampus cases, 32 of them wrong, every 25 steps; no end was set then."""
    course = Course.planned(LEAST_STEPS, CPU_STEPS)
    for step, value in zip(range(25, 1_001, 25), map(float, agreements.split()), strict=True):
        course = course.judged(step, value)
    assert best_at <= course.phases.decay_at <= 1.75 * best_at


ORGANS = """
    .129 .288 .416 .514 .587 .619 .645 .659 .654 .669 .666 .694 .690 .694 .682 .698
    .709 .680 .698 .694 .702 .694 .690 .701 .689 .701 .707 .697 .697 .704 .705 .700
"""
OTHER_ORGANS = """
    .125 .207 .327 .547 .640 .672 .707 .734 .739 .739 .751 .756 .775 .781 .786 .781
    .773 .767 .798 .773 .771 .787 .776 .775 .773 .768 .756 .779 .787 .788 .786 .772
"""


@pytest.mark.parametrize("agreements", [ORGANS, OTHER_ORGANS])
def test_real_networks_that_have_learnt_their_organs_end_soon_after(agreements: str) -> None:
    """Two folds of 40 warped CTs with 16 organs, every 80 steps; both are flat from 1,200 on."""
    values = list(map(float, agreements.split()))
    course = Course.planned(LEAST_STEPS, CPU_STEPS)
    for step, value in zip(range(80, 2_561, 80), values, strict=True):
        course = course.judged(step, value)
    assert course.ended_by == "plateau"
    assert 1_200 <= course.phases.decay_at <= 1_600
