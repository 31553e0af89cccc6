"""Votes of labels, voxel by voxel, against a count by hand; and what becomes of them."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegclean.errors import ConfigError
from raysegclean.evidence.case_scores import Kind
from raysegclean.methods.combine.votes import count_votes, vote_threshold
from raysegclean.policy.apply import TakenBack, apply_edits, take_back
from raysegclean.policy.edits import (
    VOTE_BIT,
    CaseEdits,
    Reason,
    Replace,
    Votes,
    reason_code,
    reason_name,
    reason_names,
)
from raysegclean.voxels.channels import UNKNOWN
from raysegclean.voxels.geometry import Box

CLASSES = 4
SHAPE = (2, 3, 5)
NAMES = ("coseg", "spatial", "adele", "cores", "confident", "transition", "multisa")


@st.composite
def polls(draw, most=7):
    count = draw(st.integers(1, most))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    label, *votes = rng.integers(0, CLASSES, (count + 1, *SHAPE)).astype(np.uint8)
    return label, votes


def by_hand(label, votes):
    """(candidate, votes, who) of every voxel, counted one by one."""
    for voxel in np.ndindex(SHAPE):
        cast = [int(one[voxel]) for one in votes]
        against = [value for value in cast if value != label[voxel] and value < CLASSES]
        if not against:
            yield voxel, None
            continue
        counts = Counter(cast)
        best = max(counts[value] for value in against)
        winner = next(value for value in against if counts[value] == best)
        yield voxel, (winner, best, {i for i, value in enumerate(cast) if value == winner})


@settings(max_examples=60)
@given(polls())
def test_the_value_with_most_votes_is_the_candidate_and_who_wanted_it_is_known(poll):
    label, votes = poll
    ballot = count_votes(label, votes, CLASSES)
    proposal = ballot.proposal()
    for voxel, expected in by_hand(label, votes):
        if expected is None:
            assert proposal.candidate_zyx[voxel] == proposal.confidence_zyx[voxel] == 0
            assert ballot.predicted_zyx[voxel] == label[voxel]
            continue
        winner, best, who = expected
        assert proposal.candidate_zyx[voxel] == winner + 1
        assert {i for i in range(7) if proposal.score_zyx[voxel] >> i & 1} == who
        assert proposal.confidence_zyx[voxel] == min(255, 256 * best // len(votes))


@settings(max_examples=60)
@given(polls(), st.data())
def test_a_voxel_changes_when_enough_labels_agree_and_its_reason_says_which(poll, data):
    label, votes = poll
    agree = data.draw(st.integers(1, len(votes)))
    above = dict.fromkeys(Kind, vote_threshold(agree, len(votes)))
    edits = CaseEdits(dict.fromkeys(range(1, CLASSES), Replace(above)), Votes())
    proposal = count_votes(label, votes, CLASSES).proposal()
    applied = apply_edits(
        label, Box.whole(SHAPE), proposal, edits, classes=CLASSES, spacing_mm=(1.0, 1.0, 1.0)
    )
    for voxel, expected in by_hand(label, votes):
        if expected is not None and expected[1] >= agree:
            winner, _, who = expected
            assert applied.label_zyx[voxel] == winner
            assert applied.reason_zyx[voxel] == VOTE_BIT | sum(1 << i for i in who)
        else:
            assert applied.label_zyx[voxel] == label[voxel]
            assert applied.reason_zyx[voxel] == Reason.UNCHANGED


@settings(max_examples=30)
@given(polls())
def test_shares_of_labels_stand_in_for_probabilities(poll):
    label, votes = poll
    evidence = count_votes(label, votes, CLASSES).evidence()
    stacked = np.stack(votes)
    share = (stacked == evidence.predicted_zyx).mean(axis=0)
    np.testing.assert_allclose(evidence.prob_zyx, share, atol=1e-6)
    np.testing.assert_allclose(evidence.given_prob_zyx, (stacked == label).mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(evidence.background_prob_zyx, (stacked == 0).mean(0), atol=1e-6)
    np.testing.assert_array_equal(evidence.agree_zyx, (stacked == evidence.predicted_zyx).all(0))


def test_a_value_that_the_run_does_not_know_is_an_abstention():
    label = np.zeros(SHAPE, np.uint8)
    ballot = count_votes(label, [np.full(SHAPE, 156, np.uint8), label + 1], CLASSES)
    assert (ballot.votes_zyx == 1).all()
    assert (ballot.predicted_zyx == 1).all()


def test_without_labels_nothing_is_proposed():
    label = np.ones(SHAPE, np.uint8)
    ballot = count_votes(label, [], CLASSES)
    assert not ballot.proposal().candidate_zyx.any()
    assert (ballot.evidence().given_prob_zyx == 1).all()


def test_more_labels_than_fit_a_byte_are_refused():
    with pytest.raises(ConfigError, match="at most 7"):
        count_votes(np.zeros(SHAPE, np.uint8), [np.zeros(SHAPE, np.uint8)] * 8, CLASSES)


@pytest.mark.parametrize("labels", range(1, 8))
def test_a_threshold_lies_between_two_counts_whatever_the_rounding(labels):
    from raysegclean.evidence.voxel_evidence import quantise, threshold_level

    levels = quantise(np.arange(labels + 1, dtype=np.float32) / labels)
    for agree in range(1, labels + 1):
        reached = levels >= threshold_level(vote_threshold(agree, labels))
        assert reached.tolist() == [count >= agree for count in range(labels + 1)]


def test_reasons_have_names_that_are_read_back():
    assert reason_name(Reason.SHIFT) == "shift"
    assert reason_name(VOTE_BIT | 0b101, NAMES) == "vote:coseg+adele"
    assert reason_name(VOTE_BIT | 0b110) == "vote:2+3"
    names = reason_names(NAMES)
    assert len(names) == len(set(names.values())) == len(Reason) + 127
    for code, name in names.items():
        assert reason_code(name, NAMES) == (code or None)
    assert reason_code("vote:coseg+spatial", NAMES) == VOTE_BIT | 0b11
    assert reason_code("nobody", NAMES) is None


def test_undo_takes_back_one_vote_or_all_of_them():
    label = np.zeros((1, 1, 4), np.uint8)
    votes = [np.array([[[1, 1, 0, 0]]], np.uint8), np.array([[[1, 0, 2, 0]]], np.uint8)]
    above = dict.fromkeys(Kind, vote_threshold(1, 2))
    edits = CaseEdits(dict.fromkeys((1, 2, 3), Replace(above)), Votes())
    proposal = count_votes(label, votes, CLASSES).proposal()
    applied = apply_edits(
        label, Box.whole(label.shape), proposal, edits, classes=4, spacing_mm=(1.0, 1.0, 1.0)
    )
    assert applied.reason_zyx.tolist() == [[[131, 129, 130, 0]]]
    one = take_back(applied, label, [TakenBack(reason=VOTE_BIT | 0b11)], "a")
    assert one.label_zyx.tolist() == [[[0, 1, 2, 0]]]
    both = take_back(applied, label, [TakenBack(reason=int(Reason.VOTE))], "a")
    assert not both.label_zyx.any() and not both.reason_zyx.any()


@settings(max_examples=30, deadline=None)
@given(polls(), st.integers(0, 99))
def test_nobody_votes_on_ignored_voxels_and_who_ignores_one_abstains(poll, seed):
    label, votes = poll
    rng = np.random.default_rng(seed)
    ignored = rng.random(SHAPE) < 0.5
    before = count_votes(label, votes, CLASSES).proposal()
    after = count_votes(np.where(ignored, UNKNOWN, label).astype(np.uint8), votes, CLASSES)
    found = after.proposal()
    for name in ("candidate_zyx", "confidence_zyx", "score_zyx"):
        expected = np.where(ignored, 0, getattr(before, name))
        np.testing.assert_array_equal(getattr(found, name), expected)
    silent = [np.full_like(label, UNKNOWN) for _ in votes]
    assert not count_votes(label, silent, CLASSES).proposal().candidate_zyx.any()
