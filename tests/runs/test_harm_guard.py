"""What is held back for a person, and when an output replaces an earlier one."""

import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from raysegclean.cluster.apply import Loaded, change_counts
from raysegclean.evidence.case_scores import Kind
from raysegclean.evidence.proposals import Proposal
from raysegclean.evidence.records import ChangeCounts
from raysegclean.methods.base import Verdict
from raysegclean.policy.apply import apply_edits
from raysegclean.policy.decisions import CaseDecision, Decision, edits_of
from raysegclean.policy.edits import Fill, Keep, Mirror, Reason, Replace, Revise, Shift
from raysegclean.policy.params import PolicyParams
from raysegclean.runs import harm_guard as holding
from raysegclean.runs.apply import _generations
from raysegclean.runs.correct import _corrected
from raysegclean.runs.harm_guard import held_back, misfits, objections
from raysegclean.runs.propose import _keys as _propose_keys
from raysegclean.store.run import RunFolder
from raysegclean.voxels.geometry import Box


def counts(**of_class_1: int) -> ChangeCounts:
    usual = {"given_vox": 100, "kept_vox": 80, "after_vox": 100, "deep_vox": 0}
    return ChangeCounts(**{name: (0, value) for name, value in {**usual, **of_class_1}.items()})


@pytest.mark.parametrize(
    ("of_class_1", "told"),
    [
        ({}, None),
        ({"deep_vox": 30}, None),
        ({"deep_vox": 31}, "31 voxels away .* 31% of the class; max_change is 30%"),
        ({"kept_vox": 0}, "nothing of the class as drawn would be left"),
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
    found = objections(counts(**of_class_1), 0.3, fills=(), min_left=0.1)
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
    sure = Decision(Replace(dict.fromkeys(Kind, 0.5)), "noisy")

    def rehearsal(session, proposals, edits, undone):
        return {case: rehearse(one) for case, one in edits.items()}

    def rehearse(edits):
        applied = apply_edits(given, whole, proposal, edits, classes=3, spacing_mm=(1, 1, 1))
        loaded = Loaded(given, whole, proposal, None)
        return change_counts(loaded, applied, SimpleNamespace(metric_mm=(1, 1, 1)), 3)

    monkeypatch.setattr(holding, "_rehearsal", rehearsal)
    session = SimpleNamespace(
        config=SimpleNamespace(relabel=SimpleNamespace(max_change=1.0), policy=PolicyParams()),
        plan=SimpleNamespace(classes=(0, 10, 20)),
    )
    both = CaseDecision({1: sure, 2: sure})
    allowed, held = held_back(session, None, {"a": both, "b": CaseDecision()})
    assert edits_of(allowed) == {}
    assert [one.edit.action for one in allowed["a"].classes.values()] == ["review", "review"]
    assert set(held) == {"a"}
    assert re.search("from 21 to 1 voxels", held["a"][1])
    assert re.search("from 100 to 3 voxels", held["a"][2])


def test_a_class_that_is_filled_may_appear_and_no_other() -> None:
    appearing = counts(given_vox=0, kept_vox=0, after_vox=40, deep_vox=40)
    assert not objections(appearing, 0.3, fills={1}, min_left=0.1)
    assert objections(appearing, 0.3, fills={2}, min_left=0.1)


def test_a_shifted_outline_must_fit_the_networks() -> None:
    seen = counts(predicted_vox=100, agreed_before_vox=70, agreed_vox=75)
    assert not misfits(seen, {1: Shift(1.0, min_fit=0.7, fit_gain=0.02)})
    assert misfits(seen, {1: Shift(1.0, min_fit=0.7, fit_gain=0.1)})
    assert misfits(seen, {1: Shift(1.0, min_fit=0.8)})
    assert not misfits(seen, {1: Shift(1.0, fit_gain=0.1)}), "no fit was asked for"


@pytest.mark.parametrize(
    ("agreed", "held"), [((0, 90, 85), set()), ((0, 90, 60), {1, 2})], ids=["kept", "broken"]
)
def test_a_proved_error_of_the_whole_label_is_undone_in_all_classes_or_in_none(
    monkeypatch, agreed, held
) -> None:
    # Nothing stays where it was, and all of it lies deep: no matter, if the promise is kept.
    seen = ChangeCounts(
        given_vox=(0, 100, 100),
        kept_vox=(0, 0, 0),
        after_vox=(0, 100, 100),
        deep_vox=(0, 200, 200),
        predicted_vox=(0, 100, 100),
        agreed_before_vox=(0, 10, 10),
        agreed_vox=agreed,
    )
    monkeypatch.setattr(holding, "_rehearsal", lambda *rest: dict.fromkeys(rest[2], seen))
    session = SimpleNamespace(
        config=SimpleNamespace(relabel=SimpleNamespace(max_change=0.3), policy=PolicyParams())
    )
    mirrored = Decision(Mirror(min_fit=0.8, axis=2), "mirrored")
    both = {"a": CaseDecision({1: mirrored, 2: mirrored})}
    allowed, why = held_back(session, None, both)
    assert set(why.get("a", {})) == held
    actions = {one.edit.action for one in allowed["a"].classes.values()}
    assert actions == {"review" if held else "mirror"}


def test_proposals_belong_to_the_version_of_the_trusted_label_and_to_what_is_ignored() -> None:
    case = SimpleNamespace(case="a", version="1", fold=0, trusted=True, trusted_version="old")
    plan = SimpleNamespace(
        voters=None,
        tile_zyx=None,
        tile_counts=False,
        halo_vox=None,
        shard_vox=64,
        trusted_label="expert",
        cases=[case],
        ignored=tuple,
    )
    session = SimpleNamespace(plan=plan, failed={}, train_key="k")
    before = _propose_keys(session, "n")
    case.trusted_version = "corrected"
    assert _propose_keys(session, "n") != before
    case.trusted = False
    untrusted = _propose_keys(session, "n")
    case.trusted_version = "again"
    assert _propose_keys(session, "n") == untrusted
    plan.ignored = lambda: (("label_ignore", 255),)
    assert _propose_keys(session, "n") != untrusted


def test_a_case_that_changed_is_made_again_and_no_other(tmp_path: Path) -> None:
    session = SimpleNamespace(run=RunFolder(str(tmp_path / "run")))

    again = partial(_generations, session)
    assert again({"a": "1"}).keys == {"a": "1"}
    assert not again({"a": "1", "b": "1"}).again, "a case that joined is new"
    changed = again({"a": "1", "b": "2"})
    assert changed.again == {"b"}
    assert changed.keys["a"] == "1"
    assert again({"a": "1"}).again == set(), "a case that is away changes nothing"
    assert again({"a": "1", "b": "2"}) == changed
    back = again({"a": "1", "b": "1"})
    assert back.keys["b"] not in ("1", changed.keys["b"]), "what lies there is of key 2"
    assert again({"a": "1", "b": "1"}, lost=["a"]).again == {"a", "b"}


def test_the_corrector_leaves_a_structure_that_is_filled() -> None:
    fill = Decision(Fill({Kind.ADDED: 0.5}), "lacks it")
    decision = CaseDecision({1: Decision(Shift(1.0), "off"), 2: fill, 3: Decision(Keep(), "fine")})
    verdict = _corrected(Verdict({"a": decision}), ["a"], ["t1", "t2"])
    corrected = Revise(Reason.CORRECT)
    assert verdict.decisions["a"].edits.classes == {1: corrected, 2: fill.edit, 3: corrected}
