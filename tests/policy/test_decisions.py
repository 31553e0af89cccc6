"""Decisions: what is held, what is left without a second pass, and what is done by an edit."""

import dataclasses
import typing

import pytest
from pydantic import TypeAdapter

from raysegclean.evidence.case_scores import Kind
from raysegclean.policy.decisions import CaseDecision, Decision, edits_of
from raysegclean.policy.edits import (
    Blend,
    CaseEdits,
    Cut,
    Displace,
    Edit,
    Exchange,
    Fill,
    FlipAbove,
    Keep,
    Mirror,
    NotJudged,
    Reason,
    Region,
    Replace,
    ReplaceBelow,
    Review,
    Revise,
    Shift,
    Votes,
)
from raysegclean.voxels.geometry import Box

ABOVE = {Kind.ADDED: 0.5}
EVERY_EDIT = {
    "keep": Keep(),
    "not judged": NotJudged(),
    "review": Review(0.5),
    "shift": Shift(1.0, 0.7, -0.1),
    "replace": Replace(ABOVE),
    "fill": Fill(ABOVE),
    "blend": Blend(ABOVE),
    "correct": Revise(Reason.BIAS),
    "exchange": Exchange(0.7, becomes=2),
    "mirror": Mirror(0.7, axis=2),
    "displace": Displace(0.7, by_zyx=(1, -2, 0)),
    "cut": Cut(0.7, axis=1, plane_vox=9, upwards=False),
    "region": Region(0.7, box=Box((0, 1, 2), (3, 4, 5)), voxels="AA=="),
}


def decision(rule: FlipAbove | ReplaceBelow | None = None, **edits: Edit) -> CaseDecision:
    classes = {int(name[1:]): Decision(edit, "why", 0.3, 0.9) for name, edit in edits.items()}
    return CaseDecision(classes, rule)


def test_an_edit_is_named_as_the_tables_print_it() -> None:
    assert {name: edit.action for name, edit in EVERY_EDIT.items()} == {n: n for n in EVERY_EDIT}
    assert {type(edit) for edit in EVERY_EDIT.values()} == set(typing.get_args(Edit))


@pytest.mark.parametrize("rule", [None, FlipAbove(0.4), ReplaceBelow(0.2), Votes()])
def test_edits_are_read_back_from_a_run_folder_as_they_were(rule: typing.Any) -> None:
    edits = CaseEdits(dict(enumerate(EVERY_EDIT.values(), 1)), rule)
    kept = TypeAdapter(CaseEdits)
    assert kept.validate_json(kept.dump_json(edits)) == edits
    plain = dataclasses.asdict(edits)["classes"]
    assert len({one["action"] for one in plain.values()}) == len(EVERY_EDIT), "keys differ by edit"


def test_only_what_can_change_a_voxel_is_an_edit_of_a_case() -> None:
    quiet = {"a": decision(c1=Keep(), c2=Review(), c3=NotJudged(), c4=Replace())}
    assert not edits_of(quiet)
    assert not edits_of({"a": CaseDecision(rule=Votes())})
    for edit in (Shift(1.0), Replace(ABOVE), Fill(ABOVE), Blend(), Revise()):
        assert edits_of({"a": decision(c1=edit)})
    for rule in (FlipAbove(0.4), ReplaceBelow(0.2)):
        assert edits_of({"a": decision(rule, c1=Replace())})


def test_what_is_kept_or_not_judged_is_not_flagged_and_what_goes_to_a_person_is() -> None:
    assert not decision(c1=Keep(), c2=NotJudged()).flagged
    assert decision(c1=Keep(), c2=Review()).flagged


def test_a_held_class_goes_to_a_person_who_is_told_the_shift() -> None:
    held = decision(ReplaceBelow(0.2), c1=Shift(1.2), c2=Replace(ABOVE)).held({1: "harm", 3: "new"})
    assert held.classes[1] == Decision(Review(1.2), "harm", 0.3, 0.9)
    assert held.classes[1].shift_vox == 1.2
    assert held.classes[2].edit == Replace(ABOVE)
    assert held.classes[3].edit == Review(), "not decided, and it would change"
    assert held.rule == ReplaceBelow(0.2)


def test_no_voxel_is_flipped_in_a_case_of_which_a_class_is_held() -> None:
    flipped = decision(FlipAbove(0.4), c1=Replace())
    assert flipped.held({}) == flipped
    assert not edits_of({"a": flipped.held({1: "harm"})})


def test_where_no_second_pass_wrote_a_label_candidates_alone_are_taken() -> None:
    left = decision(c1=Blend(ABOVE), c2=Revise(), c3=Shift(1.0)).unrevised()
    assert left.edits.classes == {1: Replace(ABOVE), 2: Keep(), 3: Shift(1.0)}
