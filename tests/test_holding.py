"""What is held back for a person, and when an output replaces an earlier one."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from raysegclean.core.casescore import Action, CaseDecision, ClassDecision, Kind
from raysegclean.core.geometry import Box
from raysegclean.core.proposals import Proposal
from raysegclean.core.rules import Actions, settle
from raysegclean.dist.settle import Loaded, change_counts
from raysegclean.methods.base import Verdict
from raysegclean.stages import settling
from raysegclean.stages.correcting import _corrected
from raysegclean.stages.settling import _generation, _misfits, _objections
from raysegclean.store.run import RunFolder


def counts(**of_class_1: int) -> dict[str, list[int]]:
    usual = {"given_vox": 100, "kept_vox": 80, "after_vox": 100, "deep_vox": 0}
    return {name: [0, value] for name, value in {**usual, **of_class_1}.items()}


@pytest.mark.parametrize(
    ("of_class_1", "told"),
    [
        ({}, None),
        ({"deep_vox": 30}, None),
        ({"deep_vox": 31}, "31 voxels away .* 31% of the class; max_change is 30%"),
        ({"kept_vox": 0}, "no given voxel of the class would remain"),
        ({"after_vox": 10, "kept_vox": 10}, None),
        ({"after_vox": 9, "kept_vox": 9}, "shrink from 100 to 9 voxels"),
        ({"given_vox": 0, "kept_vox": 0, "after_vox": 0}, None),
        (
            {"given_vox": 0, "kept_vox": 0, "after_vox": 40, "deep_vox": 40},
            "40 voxels of a class that the given label lacks would appear",
        ),
    ],
)
def test_a_class_that_would_vanish_or_change_too_much_is_held(of_class_1, told) -> None:
    found = _objections(counts(**of_class_1), 0.3, fills=())
    assert set(found) == ({1} if told else set())
    assert told is None or re.search(told, found[1])


def test_what_holding_a_class_does_to_its_neighbour_is_rehearsed_too(monkeypatch) -> None:
    # Class 2 loses 97 of 100 voxels and gets 20 of the 21 of class 1, which is held for that.
    given = np.zeros((1, 2, 121), np.uint8)
    given[0, 0, :21], given[0, 0, 21:] = 1, 2
    predicted = given.copy()
    predicted[0, 0, :20], predicted[0, 0, 24:] = 2, 0
    whole = Box.whole(given.shape)
    proposal = Proposal(
        np.where(predicted != given, predicted + 1, 0).astype(np.uint8),
        np.full(given.shape, 255, np.uint8),
        score_zyx=None,
    )
    sure = dict.fromkeys(Kind, 0.5)

    def rehearsal(session, proposals, actions, cases):
        return {case: rehearse(actions[case]) for case in cases}

    def rehearse(actions):
        settled = settle(given, whole, proposal, actions, classes=3, spacing_mm=(1, 1, 1))
        loaded = Loaded(given, whole, proposal, None)
        return change_counts(loaded, settled, SimpleNamespace(metric_mm=(1, 1, 1)), 3)

    monkeypatch.setattr(settling, "_rehearsal", rehearsal)
    session = SimpleNamespace(
        config=SimpleNamespace(relabel=SimpleNamespace(max_change=1.0)),
        plan=SimpleNamespace(classes=(0, 10, 20)),
    )
    both = Actions(replace_above={1: sure, 2: sure})
    allowed, held = settling._held_back(session, None, {"a": both, "b": Actions()})
    assert allowed == {}
    assert set(held) == {"a"}
    assert re.search("from 21 to 1 voxels", held["a"][10])
    assert re.search("from 100 to 3 voxels", held["a"][20])


def test_a_class_that_is_filled_may_appear_and_no_other() -> None:
    appearing = counts(given_vox=0, kept_vox=0, after_vox=40, deep_vox=40)
    assert not _objections(appearing, 0.3, fills={1})
    assert _objections(appearing, 0.3, fills={2})


def test_a_shifted_outline_must_fit_the_networks() -> None:
    seen = counts() | {
        "predicted_vox": [0, 100],
        "agreed_before_vox": [0, 70],
        "agreed_vox": [0, 75],
    }
    assert not _misfits(seen, Actions(shift_vox={1: 1.0}, min_fit={1: 0.7}, fit_gain={1: 0.02}))
    assert _misfits(seen, Actions(shift_vox={1: 1.0}, min_fit={1: 0.7}, fit_gain={1: 0.1}))
    assert _misfits(seen, Actions(shift_vox={1: 1.0}, min_fit={1: 0.8}))


def test_a_case_that_joined_later_is_remembered_and_can_change_alone(tmp_path: Path) -> None:
    session = SimpleNamespace(run=RunFolder(str(tmp_path / "run")))
    assert _generation(session, {"a": "1"}) == (0, False)
    assert _generation(session, {"a": "1", "b": "1"}) == (0, False)
    assert _generation(session, {"a": "1", "b": "2"}) == (1, True)
    assert _generation(session, {"a": "1"}) == (1, True), "a case that is away changes nothing"
    assert _generation(session, {"a": "1", "b": "2"}) == (1, True)
    assert _generation(session, {"a": "2", "b": "2"}) == (2, True)


def test_the_corrector_leaves_a_structure_that_is_filled() -> None:
    decision = CaseDecision(
        "a",
        {
            1: ClassDecision(Action.SHIFT, "off", 1.0),
            2: ClassDecision(Action.FILL, "lacks it", above={Kind.ADDED: 0.5}),
            3: ClassDecision(Action.KEEP, "fine"),
        },
    )
    verdict = _corrected(Verdict.of({"a": decision}), ["a"], ["t1", "t2"])
    assert verdict.actions["a"] == Actions(
        correct=frozenset({1, 3}),
        replace_above={2: {Kind.ADDED: 0.5}},
        fills=frozenset({2}),
    )
    actions = {c: one.action for c, one in verdict.decisions["a"].classes.items()}
    assert actions == {1: Action.CORRECT, 2: Action.FILL, 3: Action.CORRECT}
