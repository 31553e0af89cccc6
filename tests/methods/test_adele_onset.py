"""When a class has been learnt: slow classes too, noise never, and the same after a resume."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegclean.methods.adele.onset import LEAST_POINTS, Curve, IouWatch, fit_curve, onset_epoch

EPOCHS = np.arange(1, 101.0)


def fires(iou: np.ndarray, epochs: int = 100) -> int | None:
    """Return the epoch at which somebody who watches the curve grow sees the onset pass."""
    for seen in range(1, len(iou) + 1):
        found = onset_epoch(iou[:seen], epochs)
        if found is not None and found <= seen:
            return seen
    return None


@pytest.mark.parametrize("tau", [3, 6, 8, 10, 20])
def test_a_class_that_learns_slowly_has_an_onset(tau):
    # The slope of a (1 - exp(-t / tau)) has lost nine tenths tau ln 10 epochs after the first.
    exact = 1 + tau * np.log(10)
    assert fires(0.9 * (1 - np.exp(-EPOCHS / tau))) == pytest.approx(exact, abs=3)


def test_epochs_before_learning_began_do_not_count():
    learning = 0.9 * (1 - np.exp(-EPOCHS / 8))
    waited = np.concatenate([np.full(10, 0.01), learning])[:100]
    assert fires(waited) == fires(learning) + 10


@pytest.mark.parametrize("blip", [0.06, 0.5])
def test_one_lucky_epoch_before_learning_began_does_not_count(blip):
    # The first, random predictions of a large class overlap with it.
    learning = 0.9 * (1 - np.exp(-EPOCHS / 8))
    waited = np.concatenate([[blip], np.full(9, 0.01), learning])[:100]
    assert fires(waited) == fires(learning) + 10


@settings(max_examples=25)
@given(
    level=st.floats(0, 0.43),
    width=st.floats(0, 0.05),
    seed=st.integers(0, 2**32 - 1),
)
def test_flat_noise_has_none(level, width, seed):
    noise = np.random.default_rng(seed).uniform(-width, width, 60)
    assert fires(np.clip(level + noise, 0, 1), 60) is None


def test_a_class_that_was_learnt_before_the_first_point_is_on_as_soon_as_there_are_five():
    assert fires(np.full(40, 0.85), 40) == LEAST_POINTS


def test_fewer_than_five_points_decide_nothing():
    steep = 0.9 * (1 - np.exp(-EPOCHS / 0.5))
    assert [onset_epoch(steep[:n], 100) for n in range(LEAST_POINTS)] == [None] * LEAST_POINTS
    assert onset_epoch(steep[:LEAST_POINTS], 100) is not None
    gaps = steep.copy()
    gaps[1:7] = np.nan
    assert onset_epoch(gaps[:9], 100) is None, "epochs without the class are no points"


def test_a_curve_that_rises_to_the_end_has_none():
    assert fires(0.005 * EPOCHS) is None


def test_without_any_overlap_there_is_none():
    assert onset_epoch(np.zeros(30), 40) is None
    assert onset_epoch(np.full(30, np.nan), 40) is None
    assert onset_epoch(np.zeros(0), 40) is None


@pytest.mark.parametrize("planted", [Curve(0.9, 1.0, 20.0), Curve(0.7, 0.8, 5.0)])
def test_the_fit_finds_the_curve_that_made_the_points(planted):
    found = fit_curve(EPOCHS, planted.value(EPOCHS))
    np.testing.assert_allclose(
        [found.a, found.b, found.c], [planted.a, planted.b, planted.c], rtol=0.02
    )


@given(a=st.floats(0.1, 1), b=st.floats(0.3, 1), c=st.floats(0.5, 50))
def test_the_slope_is_the_derivative_and_never_grows(a, b, c):
    curve = Curve(a, b, c)
    step = 1e-5
    numeric = (curve.value(EPOCHS + step) - curve.value(EPOCHS - step)) / (2 * step)
    np.testing.assert_allclose(curve.slope(EPOCHS), numeric, rtol=1e-4, atol=1e-9)
    assert (np.diff(curve.slope(EPOCHS)) <= 0).all()


def confusion_of(given: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    return np.array([[((given == i) & (predicted == j)).sum() for j in range(3)] for i in range(3)])


def learning_batches(steps: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return labels and predictions: class 1 is learnt with time constant 25 steps, class 2 not."""
    rng = np.random.default_rng(seed)
    batches = []
    for step in range(steps):
        given = rng.integers(0, 3, 600)
        knows = rng.random(600) < 0.95 * (1 - np.exp(-step / 25))
        predicted = np.where((given == 1) & knows, 1, np.where(given == 2, 0, given * (given != 1)))
        batches.append((given, predicted))
    return batches


def test_the_curve_is_the_iou_of_the_voxels_of_each_epoch():
    batches = learning_batches(37)
    watch = IouWatch(3, epochs=10, epoch_steps=5, ratio=0.9)
    for step, (given_, predicted) in enumerate(batches):
        watch.see(step, confusion_of(given_, predicted))
    curve = watch.curve(1)
    assert len(curve) == 7, "the epoch under way is not over"
    for epoch in range(7):
        given_, predicted = (
            np.concatenate([batch[part] for batch in batches[5 * epoch : 5 * epoch + 5]])
            for part in (0, 1)
        )
        both = ((given_ == 1) & (predicted == 1)).sum()
        assert curve[epoch] == both / ((given_ == 1) | (predicted == 1)).sum()


def test_a_class_is_switched_on_once_it_is_learnt_and_no_other():
    watch = IouWatch(3, epochs=40, epoch_steps=5, ratio=0.9)
    on = []
    for step, (given_, predicted) in enumerate(learning_batches(200)):
        watch.see(step, confusion_of(given_, predicted))
        on.append(watch.on.tolist())
    assert on[24] == [False, False, False]
    assert on[-1] == [False, True, False]
    assert sum(a != b for a, b in pairwise(on)) == 1, "what is on stays on"
    # Nine tenths of the slope are lost after 25 ln 10 = 58 steps, or 12 epochs.
    assert watch.onset[1] == pytest.approx(12, abs=5)


@pytest.mark.parametrize("half", [1, 5, 62, 64, 150])
def test_a_watch_that_was_saved_goes_on_alike(half):
    batches = learning_batches(200)
    whole = IouWatch(3, epochs=40, epoch_steps=5, ratio=0.9)
    first = IouWatch(3, epochs=40, epoch_steps=5, ratio=0.9)
    second = IouWatch(3, epochs=40, epoch_steps=5, ratio=0.9)
    for step, (given_, predicted) in enumerate(batches):
        whole.see(step, confusion_of(given_, predicted))
        if step == half:
            second.load(first.state())
        (first if step < half else second).see(step, confusion_of(given_, predicted))
    assert second.state() == whole.state()


def test_steps_that_are_left_out_are_epochs_without_points():
    watch = IouWatch(2, epochs=8, epoch_steps=2, ratio=0.9)
    counts = np.array([[5, 0], [1, 3]])
    for step in (0, 1, 6, 8):
        watch.see(step, counts)
    np.testing.assert_array_equal(watch.curve(1), [0.75, np.nan, np.nan, 0.75])
