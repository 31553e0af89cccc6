"""The numbers of the default policy: none changes unnoticed, none hides outside their one place."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from raysegclean.config.settings import make_config
from raysegclean.errors import ConfigError
from raysegclean.policy.params import LEAST_SHIFT_VOX, PolicyParams

POLICY = Path(__file__).resolve().parents[2] / "raysegclean" / "policy"
CONFIG = {"archive": "a", "label": "organs", "run": "r"}

PINNED = {
    "min_cases": (8, "argued: fewer have no usual value"),
    "min_trusted": (8, "measured: 8 trusted cases bring most of what 100 do"),
    "right_dice": (0.95, "argued: a right label"),
    "max_flagged": (0.6, "argued: with more wrong, the centre may be theirs"),
    "min_agreement": (0.72, "seen: the lung cells of docs/results.md"),
    "min_lower_agreement": (0.66, "seen: the lung cells of docs/results.md"),
    "lower_quantile": (0.25, "argued: with min_lower_agreement"),
    "min_learnt_classes": (0.5, "argued: what stands out may be the networks' riddle"),
    "doubt_share": (0.5, "measured: no clean label of benchmarks/evidence is below"),
    "doubt_misfit": (3.0, "measured: clean labels of benchmarks/evidence reach 2.6"),
    "doubt_loss": (0.1, "argued: where networks miss nothing, a small error is no doubt"),
    "odd_misfit": (1.5, "measured: 6 of 100 clean labels of benchmarks/evidence"),
    "min_boundary_vox": (20, "argued: the error of a mean"),
    "telling_share": (0.2, "argued: a fifth of the boundary moves the whole's scores"),
    "min_fold_cases": (20, "argued: a fold's centre is known to .2 sd then"),
    "min_fold_bias_vox": (0.25, "argued: about the error of one offset"),
    "min_fold_bias_log": (0.5, "argued: below, folds differ by chance"),
    "offset_error_vox": (0.2, "seen: offsets of clean cases are known to about that"),
    "offset_sds": (2.5, "measured: 200 hippocampus cases, half of them eroded or dilated"),
    "offset_near_vox": (0.5, "measured: 200 hippocampus cases, half of them eroded or dilated"),
    "min_effect": (0.7, "argued: see below"),
    "class_strictness": (1.5, "argued: one class has less boundary than all"),
    "min_fit": (0.7, "argued: about min_agreement"),
    "min_fit_gain": (0.02, "argued: more than chance"),
    "shift_gain": (0.8, "measured: 200 hippocampus cases, half of them eroded or dilated"),
    "max_shift_vox": (3.0, "argued: offsets beyond are measured badly"),
    "min_shifted": (0.05, "argued: see below"),
    "min_alone_cases": (
        30,
        "measured: phantoms; of 20 cases 4 of 58 classes moved were right, of 30 1 of 80",
    ),
    "min_way_separation": (3.5, "argued: heaps that hardly overlap"),
    "min_way_share": (0.3, "argued: see below"),
    "min_way_misfit": (0.75, "seen: right outlines .3, wrong ones mostly 1.5 and more"),
    "way_misfits": (0.05, "argued: all but a few"),
    "way_posterior": (0.9, "argued: a right outline is lost otherwise"),
    "way_class_part": (0.5, "argued: nearer to the foreground's offset than to none"),
    "posterior": (0.75, "argued: three to one"),
    "odd_sds": (4.0, "argued: not by chance in a thousand cases"),
    "min_bic_gain": (20.0, "source: twice `very strong` of Kass & Raftery 1995"),
    "min_group_cases": (40, "argued: see below"),
    "max_groups": (4, "argued: more are splinters"),
    "max_shadow": (0.5, "argued: most of it"),
    "min_separation": (2.0, "source: Ashman's D of clear separation, Ashman et al. 1994"),
    "min_rough_separation": (4.0, "seen: below, groups hold clean cases too"),
    "rough_posterior": (0.95, "seen: a clean case had .92"),
    "min_roughness": (0.1, "seen: a bias of one voxel makes .05"),
    "min_corruption": (0.3, "argued: a small effect"),
    "harm_weight": (1.0, "a definition: a voxel is a voxel"),
    "fill_confidence": (0.5, "argued: more likely than all others together"),
    "usual_quantile": (0.05, "argued: all but a few"),
    "size_slack": (2.0, "argued: sizes of organs vary by that"),
    "min_confidence": (0.7, "measured: 200 hippocampus cases, half of them eroded or dilated"),
    "least_confidence": (0.0, "the user's choice"),
    "min_left": (0.1, "argued: less is a class that vanishes"),
    "suspect_sds": (1.0, "argued: a look costs little"),
    "min_suspect_gap": (0.04, "argued: less is no gross error"),
    "min_gross_gain": (0.15, "seen: 60 hippocampus cases, right .09, wrong .36"),
    "max_gross_lag": (
        0.1,
        "seen: 5 right edits of 60 hippocampus cases .1 or less, 3 wrong ones .13 to .20",
    ),
    "min_gross_lead": (0.1, "seen: 60 hippocampus cases, least lead .16"),
    "min_part_confidence": (
        0.9,
        "seen: blobs that networks missed .88, blobs that were added .90 to .96",
    ),
    "min_part_share": (0.1, "argued: smaller ones are found by chance"),
}
"""Number -> its value, and what it rests on. Whoever changes one shows first what stored evidence
says (harm to clean cases, errors found), and writes down here what it rests on now."""

PLAIN = {-1, 0, 1, 2, 1e-9}
"""Signs, ends of ranges, pairs and halves, and what keeps a divisor from 0: they decide nothing."""
CARRIED_OUT = {"apply.py", "corrector.py", "edits.py", "gross_apply.py"}
"""Voxels, bytes, trees and codes: how a decision is carried out, not which it is."""


def test_every_number_has_the_value_and_the_evidence_that_are_written_here() -> None:
    fields = PolicyParams.model_fields.items()
    found = {name: (one.default, _about(one)["evidence"]) for name, one in fields}
    assert found == PINNED
    assert LEAST_SHIFT_VOX == 0.5


def test_every_number_says_its_unit_and_how_it_is_known() -> None:
    known = ("measured: ", "source: ", "seen: ", "argued: ", "a definition", "the user's choice")
    for name, one in PolicyParams.model_fields.items():
        assert _about(one)["unit"], name
        assert _about(one)["evidence"].startswith(known), name


def _about(one):
    assert isinstance(one.json_schema_extra, dict)
    return one.json_schema_extra


@pytest.mark.parametrize("path", sorted(POLICY.glob("*.py")), ids=lambda path: path.name)
def test_no_number_that_decides_stands_outside_their_one_place(path: Path) -> None:
    if path.name in CARRIED_OUT | {"params.py"}:
        return
    tree = ast.parse(path.read_text())
    unnamed = [f"line {one.lineno}: {one.value}" for one in _inline(tree)]
    assert not unnamed, f"make it a field of PolicyParams, or name what it is: {unnamed}"
    for place, one in enumerate(tree.body):
        if isinstance(one, ast.Assign) and any(map(_decides, ast.walk(one.value))):
            told = ast.unparse(tree.body[place + 1]) if place + 1 < len(tree.body) else ""
            why = told.strip("\"'").partition(":")[0].lstrip("\"'")
            assert why in WHY, f"line {one.lineno} says not why it is a constant: {told}"


WHY = {"Definition", "Geometry", "Numerics", "Cost", "Measured", "Argued", "As a gain in Dice"}


def _inline(tree: ast.Module) -> Iterator[ast.Constant]:
    """Yield the numbers inside functions and classes."""
    for body in (one for one in tree.body if not isinstance(one, ast.Assign)):
        yield from (one for one in ast.walk(body) if _decides(one))


def _decides(one: ast.AST) -> bool:
    plain = isinstance(one, ast.Constant) and type(one.value) in (int, float)
    return plain and one.value not in PLAIN


def test_numbers_are_set_in_the_config_and_nothing_else_changes() -> None:
    config = make_config({**CONFIG, "policy": {"min_cases": 12, "shift_gain": 1}})
    assert config.policy == PolicyParams(min_cases=12, shift_gain=1.0)
    assert make_config(CONFIG).policy == PolicyParams()
    assert make_config(config.resolved()) == config
    assert config.with_settings({"policy.posterior": 0.9}).policy.posterior == 0.9


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        ({"min_casse": 12}, "policy.min_casse is not a setting. Did you mean policy.min_cases?"),
        ({"min_cases": 3}, "policy.min_cases: expected a number of cases, at least 4; got 3."),
        ({"posterior": 0}, "expected a probability, above 0 and at most 1; got 0."),
        ({"max_shift_vox": 6.0}, "expected voxels of the finest axis, above 0 and at most 5"),
        ({"min_group_cases": 8.5}, "policy.min_group_cases: expected a number of cases"),
    ],
)
def test_a_wrong_number_is_refused_with_what_it_must_be(policy, told) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config({**CONFIG, "policy": policy})
    assert told in str(caught.value)


def test_a_method_s_own_confidence_wins_over_the_policy_s() -> None:
    policy = PolicyParams(least_confidence=0.6)
    assert policy.with_confidence(None) is policy
    assert policy.with_confidence(0.9) == PolicyParams(least_confidence=0.9)
    with pytest.raises(ValidationError):
        policy.posterior = 0.5  # type: ignore[misc]
