"""Measures agree with oracles written from their definitions, and with figures worked by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegclean.errors import InputError
from raysegclean.evaluate.metrics import Changes, changes, dice
from raysegclean.evaluate.score import score_labels
from raysegclean.voxels.boxes import bounding_box, class_boxes
from raysegclean.voxels.geometry import Box
from raysegclean.voxels.surface import surface_distances

SPACING = (3.0, 1.0, 0.7)


@st.composite
def label_pairs(draw, classes=(0, 1, 2, 900)):
    shape = tuple(draw(st.integers(1, 6)) for _ in range(3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(st.sampled_from([np.int16, np.uint32, np.int64]))
    return tuple(rng.choice(classes, shape).astype(dtype) for _ in range(3))


# ---- counts -------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(label_pairs())
def test_dice_is_its_definition(labels):
    a, b, _ = labels
    for value, score in dice(a, b, classes=(1, 2, 900, 5)).items():
        total = (a == value).sum() + (b == value).sum()
        expected = 1.0 if total == 0 else 2 * ((a == value) & (b == value)).sum() / total
        assert score == pytest.approx(expected)
    assert set(dice(a, b)) == set(np.unique([a, b])) - {0}
    assert dice(a, b) == dice(b, a)


@settings(max_examples=60, deadline=None)
@given(label_pairs())
def test_changes_are_their_definition(labels):
    found = changes(*labels)
    assert list(found) == sorted(set(np.unique(labels)) - {0})
    for value, counts in found.items():
        was, is_now, should = (label == value for label in labels)
        assert counts.harmed == ((was == should) & (is_now != should)).sum()
        assert counts.fixed == ((was != should) & (is_now == should)).sum()
        assert counts.fixed + counts.harmed == (was != is_now).sum()
        assert counts.extent == (was | should).sum()


def test_harm_and_precision_by_hand():
    given_zyx = np.array([[[1, 1, 1, 1, 0, 0, 0, 0]]])
    truth_zyx = np.array([[[1, 1, 1, 1, 1, 1, 0, 0]]])
    output_zyx = np.array([[[0, 1, 1, 1, 1, 0, 1, 0]]])
    (counts,) = changes(given_zyx, output_zyx, truth_zyx).values()
    assert counts == Changes(fixed=1, harmed=2, extent=6)
    assert counts.harm == pytest.approx(2 / 6)
    assert counts.precision == pytest.approx(1 / 3)


def test_an_invented_class_has_infinite_harm_and_no_change_has_none():
    assert Changes(0, 3, 0).harm == math.inf
    assert Changes(0, 0, 0).harm == 0
    assert math.isnan(Changes(0, 0, 5).precision)


def test_labels_of_different_shapes_are_refused():
    with pytest.raises(InputError, match="one shape"):
        dice(np.zeros((1, 2, 2), int), np.zeros((1, 2, 3), int))


@settings(max_examples=60, deadline=None)
@given(label_pairs(classes=(0, 0, 0, 0, 0, 3, 70_000, 12)))
def test_boxes_of_classes_are_tight(labels):
    label = labels[1].astype(np.int64)
    for value, box in class_boxes(label).items():
        where = np.argwhere(label == value)
        assert box == Box(tuple(where.min(0)), tuple(where.max(0) + 1))
        assert bounding_box(label == value) == box
    assert set(class_boxes(label)) == set(np.unique(label)) - {0}
    assert bounding_box(label < 0) is None


# ---- surfaces (more in test_surface.py) --------------------------------------------------------


def test_empty_classes_have_documented_values():
    a = np.zeros((3, 4, 4), np.uint8)
    b = a.copy()
    b[1, 1, 1] = 2
    (neither,) = score_labels(a, a, SPACING, given_zyx=b)
    assert (neither.dice, neither.hd95_mm, neither.nsd) == (1.0, 0.0, 1.0)
    for one, other in ((a, b), (b, a)):
        (lone,) = score_labels(one, other, SPACING)
        assert (lone.dice, lone.hd95_mm, lone.nsd) == (0.0, None, 0.0)


def test_scores_bring_all_measures_at_once():
    rng = np.random.default_rng(3)
    label, truth = (rng.integers(0, 3, (6, 9, 8)).astype(np.uint8) for _ in range(2))
    for spacing in (SPACING, (2.0, 2.0, 2.0)):
        for score in score_labels(label, truth, spacing):
            masks = [one == score.label_value for one in (label, truth)]
            in_mm, in_voxels = (surface_distances(*masks, s) for s in (spacing, (1.0, 1.0, 1.0)))
            assert score.dice == dice(label, truth)[score.label_value]
            assert score.hd95_mm == in_mm.hausdorff(0.95)
            assert score.nsd == pytest.approx(in_voxels.overlap(1.0))
            assert score.truth_voxels == masks[1].sum()


@settings(max_examples=40, deadline=None)
@given(label_pairs())
def test_a_label_is_perfect_against_itself_and_measures_are_symmetric(labels):
    a, b, _ = labels
    for score in score_labels(a, a, SPACING):
        assert (score.dice, score.hd95_mm, score.nsd) == (1.0, 0.0, 1.0)
    there, back = score_labels(a, b, SPACING), score_labels(b, a, SPACING)
    assert [s.hd95_mm for s in there] == [s.hd95_mm and pytest.approx(s.hd95_mm) for s in back]
    assert [s.nsd for s in there] == pytest.approx([s.nsd for s in back])
