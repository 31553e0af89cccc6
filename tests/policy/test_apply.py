"""Rules: what changes, what never does, and that every change has a reason."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegclean.evidence.case_scores import Kind
from raysegclean.evidence.proposals import Proposal
from raysegclean.policy.apply import Applied, TakenBack, apply_edits, take_back
from raysegclean.policy.decisions import CaseDecision, Decision
from raysegclean.policy.edits import (
    NO_EDITS,
    Blend,
    CaseEdits,
    Cut,
    Displace,
    Exchange,
    Fill,
    FlipAbove,
    Keep,
    Mirror,
    Reason,
    Region,
    Replace,
    ReplaceBelow,
    Review,
    Revise,
    Shift,
    Votes,
    reason_code,
)
from raysegclean.policy.gross_apply import restated
from raysegclean.voxels.channels import UNKNOWN
from raysegclean.voxels.geometry import Box, Index3
from raysegclean.voxels.packing import mask_to_text

SHAPE: Index3 = (8, 12, 12)
WHOLE = Box.whole(SHAPE)
ISOTROPIC = (1.0, 1.0, 1.0)
OPEN = dict.fromkeys(Kind, 0.3)


def _two_touching_cubes() -> np.ndarray:
    label = np.zeros(SHAPE, np.uint8)
    label[2:6, 3:6, 3:9] = 1
    label[2:6, 6:9, 3:9] = 2
    return label


def _random_proposal(seed: int, label: np.ndarray) -> Proposal:
    rng = np.random.default_rng(seed)
    predicted = np.where(rng.random(SHAPE) < 0.3, rng.integers(0, 3, SHAPE), label)
    differs = predicted != label
    return Proposal(
        candidate_zyx=np.where(differs, predicted + 1, 0).astype(np.uint8),
        confidence_zyx=np.where(differs, rng.integers(0, 256, SHAPE), 0).astype(np.uint8),
        score_zyx=rng.integers(0, 128, SHAPE).astype(np.uint8),
    )


def _settle(
    label: np.ndarray, proposal: Proposal | None, edits: CaseEdits, classes: int = 3
) -> Applied:
    restated_zyx = restated(lambda box: label[box.slices], WHOLE, SHAPE, edits)
    return apply_edits(
        label,
        WHOLE,
        proposal,
        edits,
        classes=classes,
        spacing_mm=ISOTROPIC,
        restated_zyx=restated_zyx,
    )


above = st.dictionaries(st.sampled_from(list(Kind)), st.floats(0.1, 0.99))
case_edits = st.builds(
    CaseEdits,
    st.dictionaries(
        st.integers(1, 2),
        st.one_of(
            st.builds(Shift, st.floats(-2, 2).filter(bool)),
            *(st.builds(kind, above) for kind in (Replace, Fill, Blend)),
            st.sampled_from([Keep(), Review(), Revise()]),
        ),
    ),
    st.one_of(st.none(), st.just(Votes()), st.builds(ReplaceBelow, st.floats(0.01, 0.8))),
)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 99), case_edits)
def test_a_voxel_has_a_reason_exactly_when_it_changed(seed: int, edits: CaseEdits) -> None:
    label = _two_touching_cubes()
    applied = _settle(label, _random_proposal(seed, label), edits)
    assert np.array_equal(applied.reason_zyx > 0, applied.label_zyx != label)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), case_edits, st.integers(1, 7))
def test_blocks_with_the_halo_of_their_edits_settle_like_the_whole(
    seed: int, edits: CaseEdits, cut: int
) -> None:
    label = _two_touching_cubes()
    proposal = _random_proposal(seed, label)
    whole = _settle(label, proposal, edits)
    for core in (Box((0, 0, 0), (cut, 12, 12)), Box((cut, 0, 0), SHAPE)):
        window = core.grown(edits.halo_vox(ISOTROPIC)).clipped(WHOLE)
        parts = (proposal.candidate_zyx, proposal.confidence_zyx, proposal.score_zyx)
        block = apply_edits(
            label[window.slices],
            core.relative_to(window),
            Proposal(*(part[core.slices] for part in parts)),
            edits,
            classes=3,
            spacing_mm=ISOTROPIC,
        )
        assert np.array_equal(block.label_zyx, whole.label_zyx[core.slices])
        assert np.array_equal(block.reason_zyx, whole.reason_zyx[core.slices])


def test_without_edits_nothing_changes_and_no_proposal_is_needed() -> None:
    label = _two_touching_cubes()
    applied = _settle(label, None, NO_EDITS)
    assert NO_EDITS.quiet
    assert np.array_equal(applied.label_zyx, label)
    assert not applied.reason_zyx.any()


@pytest.mark.parametrize(
    ("kind", "channel", "where", "candidate"),
    [
        (Kind.ADDED, 2, (0, 0, 0), 2),
        (Kind.REMOVED, 1, (3, 4, 5), 0),
        (Kind.SWAPPED, 2, (3, 5, 5), 2),
    ],
)
def test_a_candidate_is_taken_only_where_its_kind_of_change_is_open(
    kind: Kind, channel: int, where: tuple[int, int, int], candidate: int
) -> None:
    label = _two_touching_cubes()
    proposed = np.zeros(SHAPE, np.uint8)
    proposed[where] = candidate + 1
    proposal = Proposal(proposed, np.where(proposed, 200, 0).astype(np.uint8), None)
    for open_kind in Kind:
        applied = _settle(label, proposal, CaseEdits({channel: Replace({open_kind: 0.5})}))
        assert (applied.label_zyx[where] == candidate) == (open_kind is kind)
    shut = _settle(label, proposal, CaseEdits({channel: Replace({kind: 0.9})}))
    assert np.array_equal(shut.label_zyx, label)


def test_a_confidence_of_zero_is_never_accepted() -> None:
    label = _two_touching_cubes()
    proposal = Proposal(
        np.ones(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    )
    edits = CaseEdits(dict.fromkeys((1, 2), Replace(OPEN)), ReplaceBelow(0.8))
    assert np.array_equal(_settle(label, proposal, edits).label_zyx, label)


def test_the_published_rule_flips_uncertain_voxels_even_where_the_network_agrees() -> None:
    label = (_two_touching_cubes() > 0).astype(np.uint8)
    uncertainty = np.zeros(SHAPE, np.uint8)
    uncertainty[3] = 120
    proposal = Proposal(np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8), uncertainty)
    applied = _settle(label, proposal, CaseEdits(rule=FlipAbove(0.4)), classes=2)
    assert np.array_equal(applied.label_zyx[3], 1 - label[3])
    assert (applied.reason_zyx[3] == Reason.FLIP).all()
    assert np.array_equal(np.delete(applied.label_zyx, 3, 0), np.delete(label, 3, 0))


def test_a_ball_that_shrinks_by_two_has_two_voxels_less_radius() -> None:
    z, y, x = np.ogrid[-12:13, -12:13, -12:13]
    distance = np.sqrt(z**2 + y**2 + x**2)
    ball = (distance <= 9).astype(np.uint8)
    applied = apply_edits(
        ball,
        Box.whole(ball.shape),
        None,
        CaseEdits({1: Shift(2.0)}),
        classes=2,
        spacing_mm=ISOTROPIC,
    )
    radius = (3 * applied.label_zyx.sum() / (4 * np.pi)) ** (1 / 3)
    assert radius == pytest.approx((3 * ball.sum() / (4 * np.pi)) ** (1 / 3) - 2, abs=0.5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 99), st.sampled_from([None, 1, 2]), st.sampled_from([None, 1, 2]))
def test_what_is_taken_back_is_as_given_and_nothing_else_moves(
    seed: int, channel: int | None, reason: int | None
) -> None:
    label = _two_touching_cubes()
    edits = CaseEdits({1: Shift(1.0), 2: Replace(OPEN)})
    applied = _settle(label, _random_proposal(seed, label), edits)
    back = take_back(applied, label, [TakenBack("a", channel, reason)], "a")
    mine = applied.reason_zyx > 0
    if reason is not None:
        mine &= applied.reason_zyx == reason
    if channel is not None:
        mine &= (label == channel) | (applied.label_zyx == channel)
    assert np.array_equal(back.label_zyx, np.where(mine, label, applied.label_zyx))
    assert np.array_equal(back.reason_zyx > 0, back.label_zyx != label)
    other = take_back(applied, label, [TakenBack("another case")], "a")
    assert np.array_equal(other.label_zyx, applied.label_zyx)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 99), case_edits, st.sampled_from([1, 2]))
def test_no_voxel_of_a_held_class_is_taken_and_none_is_given_to_it(
    seed: int, edits: CaseEdits, held: int
) -> None:
    label = _two_touching_cubes()
    classes = {channel: Decision(edit, "") for channel, edit in edits.classes.items()}
    left = CaseDecision(classes, edits.rule).held({held: "harm"}).edits
    applied = _settle(label, _random_proposal(seed, label), left)
    assert np.array_equal(applied.label_zyx == held, label == held)


def test_a_class_that_is_held_is_not_swapped_into_its_neighbour() -> None:
    # All of class 1 is sure to be class 2; what is taken goes by class 2.
    label = _two_touching_cubes()
    proposed = np.where(label == 1, 3, 0).astype(np.uint8)
    proposal = Proposal(proposed, np.where(proposed, 255, 0).astype(np.uint8), None)
    open_to_all = CaseDecision(dict.fromkeys((1, 2), Decision(Replace(OPEN), "noisy")))
    assert not (_settle(label, proposal, open_to_all.edits).label_zyx == 1).any()
    held = open_to_all.held({1: "harm"}).edits
    assert np.array_equal(_settle(label, proposal, held).label_zyx, label)


def test_a_structure_that_is_filled_in_has_a_reason_of_its_own_and_alone_is_taken_back() -> None:
    label = _two_touching_cubes()
    label[label == 2] = 0  # forgotten
    label[2:6, 3, 3:9] = 0  # and the other one cut off
    whole = _two_touching_cubes()
    seen = Proposal(
        np.where(whole != label, whole + 1, 0).astype(np.uint8),
        np.where(whole != label, 200, 0).astype(np.uint8),
        None,
    )
    applied = _settle(label, seen, CaseEdits({1: Replace(OPEN), 2: Fill(OPEN)}))
    assert np.array_equal(applied.label_zyx, whole)
    assert set(applied.reason_zyx[whole == 2]) == {Reason.FILL}
    assert set(applied.reason_zyx[(whole == 1) & (label == 0)]) == {Reason.REPLACE}
    without_fill = take_back(applied, label, [TakenBack(reason=reason_code("fill"))], "a")
    assert not (without_fill.label_zyx == 2).any()
    assert np.array_equal(without_fill.label_zyx == 1, whole == 1)
    without_replace = take_back(applied, label, [TakenBack(reason=reason_code("replace"))], "a")
    assert np.array_equal(without_replace.label_zyx == 2, whole == 2)
    assert np.array_equal(without_replace.label_zyx == 1, label == 1)


EVERY_REASON = {
    Reason.SHIFT: CaseEdits({1: Shift(1.0)}),
    Reason.REPLACE: CaseEdits({1: Replace(OPEN)}),
    Reason.FILL: CaseEdits({1: Fill(OPEN)}),
    Reason.CORRECT: CaseEdits({1: Revise(Reason.CORRECT)}),
    Reason.BIAS: CaseEdits({1: Revise(Reason.BIAS)}),
    Reason.POSTERIOR: CaseEdits({1: Revise(Reason.POSTERIOR)}),
    Reason.BLEND: CaseEdits({1: Blend()}),
    Reason.FLIP: CaseEdits({1: Replace()}, FlipAbove(0.5)),
    Reason.VOTE: CaseEdits({1: Replace(OPEN)}, Votes()),
    Reason.EXCHANGE: CaseEdits({1: Exchange(becomes=2), 2: Exchange(becomes=1)}),
    Reason.MIRROR: CaseEdits({1: Mirror(axis=1)}),
    Reason.DISPLACE: CaseEdits({1: Displace(by_zyx=(0, 3, 0))}),
    Reason.CUT: CaseEdits({1: Cut(axis=1, plane_vox=6)}),
    Reason.REGION: CaseEdits({1: Region(box=WHOLE, voxels=mask_to_text(np.ones(SHAPE, np.bool_)))}),
}


@pytest.mark.parametrize("reason", [one for one in Reason if one])
def test_every_reason_comes_of_an_edit_and_is_taken_back_alone(reason: Reason) -> None:
    label = (_two_touching_cubes() == 1).astype(np.uint8)
    whole = (_two_touching_cubes() > 0).astype(np.uint8)
    differs = whole != label
    seen = Proposal(
        np.where(differs, whole + 1, 0).astype(np.uint8),
        np.where(differs, 200, 0).astype(np.uint8),
        np.where(differs, 129, 0).astype(np.uint8),
        np.where(differs, whole + 1, 0).astype(np.uint8),
    )
    applied = _settle(label, seen, EVERY_REASON[reason])
    found = set(np.unique(applied.reason_zyx)) - {0}
    assert found == {129 if reason is Reason.VOTE else reason}
    for other in Reason:
        back = take_back(applied, label, [TakenBack(reason=int(other))], "a")
        expected = label if other is reason else applied.label_zyx
        assert np.array_equal(back.label_zyx, expected), other.name


def test_where_a_case_has_both_what_a_second_pass_writes_goes_by_the_given_class() -> None:
    label = _two_touching_cubes()
    revised = np.where(label == 1, 3, np.where(label == 2, 1, 0)).astype(np.uint8)
    nothing = np.zeros(SHAPE, np.uint8)
    edits = CaseEdits({1: Blend(), 2: Revise(Reason.POSTERIOR)})
    applied = _settle(label, Proposal(nothing, nothing, None, revised), edits)
    assert set(applied.reason_zyx[label == 1]) == {Reason.BLEND}
    assert set(applied.reason_zyx[label == 2]) == {Reason.POSTERIOR}
    closed = _settle(label, Proposal(nothing, nothing, None, revised), CaseEdits({1: Blend()}))
    assert set(np.unique(closed.reason_zyx)) == {0}, "class 2 is not open to it"


gross_edits = st.sampled_from(
    [
        {1: Exchange(becomes=2), 2: Exchange(becomes=1)},
        {1: Mirror(axis=2), 2: Mirror(axis=2)},
        {1: Displace(by_zyx=(1, -2, 3)), 2: Displace(by_zyx=(1, -2, 3))},
        {1: Cut(axis=2, plane_vox=6, upwards=True), 2: Keep()},
        {1: Region(box=WHOLE, voxels=mask_to_text(np.ones(SHAPE, np.bool_))), 2: Keep()},
    ]
).map(CaseEdits)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 99),
    st.one_of(case_edits, gross_edits, st.just(CaseEdits(rule=FlipAbove(0.1)))),
    st.floats(0, 1),
)
def test_no_edit_changes_an_ignored_voxel_or_takes_anything_from_it(
    seed: int, edits: CaseEdits, share: float
) -> None:
    rng = np.random.default_rng(seed)
    ignored = rng.random(SHAPE) < share
    label = _two_touching_cubes()
    if isinstance(edits.rule, FlipAbove):  # which is for labels of one class
        label = np.minimum(label, 1)
    label = np.where(ignored, UNKNOWN, label).astype(np.uint8)
    # Not even where a proposal, against its own rule, says something of them.
    revised = np.where(rng.random(SHAPE) < 0.3, rng.integers(1, 4, SHAPE), 0).astype(np.uint8)
    proposal = replace(_random_proposal(seed, _two_touching_cubes()), correction_zyx=revised)
    applied = _settle(label, proposal, edits)
    assert np.array_equal(applied.label_zyx == UNKNOWN, ignored)
    assert not applied.reason_zyx[ignored].any()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 99), case_edits.filter(lambda edits: not edits.of(Shift)))
def test_what_is_decided_voxel_by_voxel_is_the_same_beside_ignored_ones(
    seed: int, edits: CaseEdits
) -> None:
    ignored = np.random.default_rng(seed).random(SHAPE) < 0.3
    label = _two_touching_cubes()
    proposal = _random_proposal(seed, label)
    without = _settle(label, proposal, edits)
    beside = _settle(np.where(ignored, UNKNOWN, label).astype(np.uint8), proposal, edits)
    assert np.array_equal(beside.label_zyx[~ignored], without.label_zyx[~ignored])
    assert np.array_equal(beside.reason_zyx[~ignored], without.reason_zyx[~ignored])
