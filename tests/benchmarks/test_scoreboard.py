"""The scoreboard from made-up cells: what wins, who chooses, what is missing, where cells lie."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raysegclean.config.settings import METHODS as REGISTERED
from raysegclean.errors import ConfigError
from raysegclean.methods.base import load_method, make_params

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
PATIENTS = [f"p{number:02d}" for number in range(40)]


def row(patient: str, given: float, after: float, *, kept: float = 1.0) -> dict[str, Any]:
    """Return one class of one case as a score has it."""
    change = {
        "dice_given": given,
        "dice_to_given": kept,
        "fixed": 9,
        "harmed": 1,
        "extent": 100,
        "harm": 0.01,
        "precision": 0.9,
    }
    return {
        "case": patient,
        "patient": patient,
        "label_value": 1,
        "dice": after,
        "nsd": 0.9,
        "change": change,
    }


def cell(line: str, after: Any, *, kept: Any = 1.0, **changes: Any) -> dict[str, Any]:
    """Return a cell: even patients are noisy at Dice .8, and `after` says what becomes of them."""
    outcome = after if callable(after) else lambda _: after
    keep = kept if callable(kept) else lambda _: kept
    noisy = PATIENTS[::2]
    rows = [row(p, 0.8, outcome(p)) for p in noisy]
    rows += [row(p, 1.0, keep(p), kept=keep(p)) for p in PATIENTS[1::2]]
    return {
        "data": "phantom",
        "scenario": "boundary",
        "line": line,
        "seed": 1,
        "noisy": noisy,
        "rows": rows,
        "wall_s": 5.0,
        "train_s": 30.0,
        **changes,
    }


def test_both_halves_have_noisy_and_clean_patients() -> None:
    from winners import chooses

    for start in (0, 1):
        share = np.mean([chooses(patient) for patient in PATIENTS[start::2]])
        assert 0.2 < share < 0.8


def test_the_winner_is_chosen_on_one_half_and_judged_on_the_other() -> None:
    from winners import chooses, ranked

    lucky = cell("coseg", lambda p: 0.98 if chooses(p) else 0.82)
    steady = cell("dropout", 0.90)
    unlucky = cell("tta", lambda p: 0.81 if chooses(p) else 1.0)
    best = ranked([steady, unlucky, lucky])
    assert [one.line for one in best] == ["coseg", "dropout", "tta"]
    assert best[0].error.value == pytest.approx(0.1), "not what it was chosen for"
    assert best[0].after == pytest.approx(0.82)
    assert best[1].error.value == pytest.approx(0.5)


def test_what_happens_on_the_judging_half_changes_no_choice() -> None:
    from winners import chooses, ranked

    one = cell("coseg", lambda p: 0.95 if chooses(p) else 0.5)
    other = cell("tta", lambda p: 0.94 if chooses(p) else 1.0)
    assert [s.line for s in ranked([one, other])] == ["coseg", "tta"]


def test_a_line_that_harms_clean_cases_where_it_is_chosen_cannot_win() -> None:
    from winners import chooses, ranked

    harmful = cell("coseg", 1.0, kept=lambda p: 0.94 if chooses(p) else 1.0)
    careful = cell("tta", 0.85)
    harmful_elsewhere = cell("dropout", 0.84, kept=lambda p: 1.0 if chooses(p) else 0.9)
    best = ranked([harmful, careful, harmful_elsewhere])
    assert [s.line for s in best] == ["tta", "dropout"]
    assert best[1].clean.worst == pytest.approx(0.9), "told as it is on the judging half"


def test_of_lines_that_tie_the_first_of_the_grid_is_named() -> None:
    from winners import ranked

    tied = [cell("confident", 0.9), cell("uncertainty", 0.9), cell("adele", 0.9)]
    assert [one.line for one in ranked(tied)] == ["uncertainty", "confident", "adele"]


def test_baselines_and_lines_that_remove_nothing_cannot_win() -> None:
    from winners import ranked

    assert ranked([cell("argmax", 1.0), cell("nothing", 0.8), cell("tta", 0.79)]) == []


def test_seeds_are_judged_together() -> None:
    from winners import ranked

    seeds = [cell("coseg", 0.9, seed=1), cell("coseg", 0.8, seed=2)]
    (best,) = ranked(seeds)
    assert best.error.value == pytest.approx(0.25)


def test_lines_are_compared_on_the_seeds_that_all_of_them_have() -> None:
    from winners import ranked

    easy, hard = (cell("coseg", 0.9, seed=1), cell("coseg", 0.82, seed=2))
    begun = ranked([easy, hard, cell("tta", 0.88), cell("adele-published", 0.89)])
    assert [one.line for one in begun] == ["coseg", "adele-published", "tta"]
    whole = ranked([easy, hard, cell("tta", 0.88), cell("tta", 0.88, seed=2),
                    cell("adele-published", 0.95)])  # fmt: skip
    assert [one.line for one in whole] == ["tta", "coseg"], "what is published has one seed only"


def test_a_line_that_was_told_the_noise_or_lost_a_case_cannot_win() -> None:
    from scoreboard import page
    from winners import ranked

    cells = [cell("coseg-published", 1.0), cell("coseg", 0.99, failed_cases=2), cell("tta", 0.85)]
    assert [one.line for one in ranked(cells)] == ["tta"]
    assert "- phantom, boundary, coseg, seed 1: 2 cases failed and do not count" in page(cells)


def test_the_page_tells_winner_seeds_times_and_what_is_missing() -> None:
    from scoreboard import page

    cells = [
        cell("nothing", 0.8, train_s=None),
        cell("coseg", 0.9),
        cell("coseg", 0.96, seed=2),
        cell("tta", 0.7),
        cell("tta", 0.7, seed=2),
        cell("confident", 0.8) | {"failed": "no memory"},
    ]
    del cells[-1]["rows"]
    text = page(cells)
    assert "**coseg wins**: E 0.65" in text
    assert "| 0.50, 0.80 |" in text
    assert "| phantom | boundary | **coseg** |" in text
    assert "0.70, not met" in text
    assert "phantom, boundary, tta: E -0.50" in text, "worse than doing nothing"
    assert "- phantom, boundary, confident, seed 1: no memory" in text
    assert "- hippocampus: boundary, polygon, bias," in text
    boundary = next(line for line in text.splitlines() if line.startswith("- phantom, boundary: "))
    assert " coseg," not in boundary
    assert " dropout, confident (seed 2), transition, " in boundary


def test_the_page_needs_no_cell() -> None:
    from scoreboard import page

    text = page([])
    assert "No cell has been run." in text
    assert "## Not run" in text


def test_without_noise_no_line_wins_and_harm_is_told() -> None:
    from scoreboard import page

    def quiet(line: str, kept: float) -> dict[str, Any]:
        found = cell(line, 0.9, scenario="none", noisy=[])
        return found | {"rows": [row(p, 1.0, kept, kept=kept) for p in PATIENTS]}

    text = page([quiet("coseg", 1.0), quiet("tta", 0.993)])
    assert "1 of 2 lines keep a mean Dice of 0.995 to the labels; below it: tta (0.9930)." in text
    assert "- phantom, none, tta: mean 0.9930" in text


def test_one_annotator_cleaned_is_compared_to_the_majority() -> None:
    from scoreboard import page

    facts = {"data": "crowd", "scenario": "crowd"}
    cells = [cell("coseg", 0.95, **facts), cell("majority", 0.93, **facts)]
    assert "has Dice 0.930, one annotator 0.800, and one annotator cleaned 0.950." in page(cells)


def test_the_advice_names_the_best_lines_and_nothing_that_was_not_run() -> None:
    from advice import advice

    cells = [cell("nothing", 0.8), cell("coseg", 0.9), cell("tta", 0.85), cell("dropout", 0.84)]
    cells += [cell("nothing", 0.8, scenario="drop"), cell("coseg", 0.7, scenario="swap")]
    text = advice(cells)
    assert "(`boundary`) | coseg 0.50, tta 0.25 |" in text
    assert "(`drop`)" not in text, "a baseline says nothing about methods"
    assert "(`swap`) | none of 1 |" in text
    assert "trusted, and all others" not in text


def test_the_advice_tells_ranks_and_who_edits_right_labels() -> None:
    from advice import advice

    ranks = {patient: -float(place) for place, patient in enumerate(PATIENTS)}
    few = cell("integrity", 0.8, scenario="drop-few", ranks=ranks, noisy=PATIENTS[:2])
    quiet = cell("tta", 0.99, scenario="none", noisy=[])
    quiet["rows"] = [row(patient, 1.0, 0.99, kept=0.99) for patient in PATIENTS]
    text = advice([few, quiet])
    assert "| a structure forgotten in a few cases | phantom | integrity 100% (AUC 1.00) |" in text
    assert "| phantom | 0 | tta 0.990 |" in text


def test_held_out_networks_and_published_settings_have_their_tables() -> None:
    from scoreboard import page

    held_out = [
        cell(line, dice) for line, dice in (("given", 0.8), ("coseg", 0.88), ("truth", 0.9))
    ]
    held_out += [
        cell(line, dice, scenario="coseg-0.3") for line, dice in (("given", 0.7), ("truth", 0.9))
    ]
    text = page([], held_out)
    assert "| cleaned by coseg | 0.940 | +0.040 (+0." in text
    assert "| the given labels | - | - | 0.850 | - | - |" in text
    assert "- networks on held-out patients: lung, boundary" in text
    assert "coseg-0.3 (coseg-published, coseg), coseg-0.4 (given, " in text


def test_ranks_are_scored_by_auc_and_by_the_worst_tenth() -> None:
    from scoreboard import auc, found_in_worst_tenth

    suspicion = {f"c{number}": float(number) for number in range(20)}
    assert auc(suspicion, ["c19", "c18"]) == 1.0
    assert found_in_worst_tenth(suspicion, ["c19", "c18"]) == 1.0
    assert found_in_worst_tenth(suspicion, ["c19", "c3"]) == 0.5
    assert found_in_worst_tenth(suspicion, [f"c{n}" for n in range(10, 20)]) == 1.0
    flat = dict.fromkeys(suspicion, 0.0)
    assert auc(flat, ["c19"]) == 0.5
    assert found_in_worst_tenth(flat, ["c19"]) == pytest.approx(0.1)


def test_suspicion_is_the_most_of_all_classes() -> None:
    from running import suspicions

    rows = [
        {"case": "a", "action": "keep", "posterior": 0.2},
        {"case": "a", "action": "review", "posterior": None},
        {"case": "b", "action": "keep", "posterior": 0.3},
        {"case": "trusted", "action": "shift", "posterior": 0.3},
    ]
    assert suspicions(rows, ["a", "b", "c"]) == {"a": 1.0, "b": 0.3, "c": 0.0}
    own = [{"case": "b", "action": "review", "posterior": 1.0, "suspicion": 0.25}]
    assert suspicions(own, ["b"]) == {"b": 0.25}


def test_every_cell_has_a_file_of_its_own() -> None:
    from grid import DATA, PUBLISHED, SCENARIOS, names
    from running import Key, label_of

    keys = [
        Key(data, scenario, line, seed)
        for data, settings in DATA.items()
        for scenario in (*settings.scenarios, *(s for r in PUBLISHED for s in r.scenarios))
        for seed in (1, 2, 12)
        for line in names(SCENARIOS[scenario], data, seed)
    ]
    assert len({key.path for key in keys}) == len(set(keys))
    assert all(" " not in key.name and "/" not in key.name for key in keys)
    labels = {(k.scenario, k.line): label_of(k) for k in keys}
    assert len(set(labels.values())) == len(labels), "scenarios may share an archive"


def test_a_cell_that_is_there_is_not_measured_again(tmp_path: Path, capsys: Any) -> None:
    from archives import Unavailable
    from methods import _once, _parser
    from running import Key

    key, path = Key("phantom", "boundary", "tta", 1), tmp_path / "cells" / "one.json"
    calls = []

    def work(key: Key, _: Path) -> dict[str, Any]:
        calls.append(key)
        if len(calls) == 1:
            raise Unavailable("no such method yet")
        if len(calls) == 2:
            raise ConfigError("a bad setting")
        return key.told() | {"rows": []}

    options = _parser().parse_args([])
    _once(key, path, work, options)
    assert not path.exists(), "what cannot be run leaves nothing behind"
    for _ in range(2):
        _once(key, path, work, options)
    assert len(calls) == 2, "a failed cell is not tried again by itself"
    assert "a bad setting" in path.read_text()
    for _ in range(2):
        _once(key, path, work, _parser().parse_args(["--retry"]))
    assert len(calls) == 3
    assert '"rows":[]' in path.read_text()
    path.write_text(path.read_text().replace(key.measured_with, "of an older revision"))
    _once(key, path, work, options)
    assert len(calls) == 4, "other settings are another measurement"


def test_the_table_of_methods_says_what_the_methods_say() -> None:
    from grid import METHODS, NO_NETWORK, PLAIN, owner

    from raysegclean.nets.hooks import PLAIN_HOOK

    members = METHODS[owner(PLAIN)].params["members"]
    for line, entry in METHODS.items():
        if entry.method not in METHODS or entry.method not in REGISTERED or entry.votes:
            continue
        method = load_method(entry.method)
        params = make_params(
            method, {**entry.params, **({"alpha": 0.5} if entry.knows_share else {})}
        )
        voters = method.voters(params)
        assert method.wants_trusted(params) == entry.needs_trusted, line
        if entry.family == NO_NETWORK:
            assert voters.members == 0, line
        elif entry.family == PLAIN:
            assert (voters.hook, voters.network) == (PLAIN_HOOK, ""), line
            assert voters.members <= members, line
        else:
            first = METHODS[owner(entry.family)]
            again = load_method(first.method)
            trained = again.voters(make_params(again, dict(first.params)))
            if line != owner(entry.family):
                asked = (voters.hook, voters.network, voters.members)
                assert asked == (trained.hook, trained.network, trained.members), line
