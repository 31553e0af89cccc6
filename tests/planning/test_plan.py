"""The plan: every `auto` decided from config and index alone, and refusals before any compute."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegclean.cluster.propose import boundary_offsets
from raysegclean.config.settings import make_config
from raysegclean.errors import ConfigError, InputError
from raysegclean.evidence.cases import CaseInfo, Intensity, LabelSummary
from raysegclean.evidence.proposals import Proposal
from raysegclean.methods.base import Voters
from raysegclean.nets.receptive import receptive_radius, total_stride
from raysegclean.planning.named_cases import select_cases, wanted_ids
from raysegclean.planning.plan import (
    CasePlan,
    RunPlan,
    make_plan,
    split_usable,
    with_current_cases,
)
from raysegclean.voxels.geometry import Box, Index3

VOTERS = Voters(members=2)
edge = st.integers(6, 300)


def _info(case: str, shape: Index3 = (40, 50, 36), patient: str | None = "p", **more) -> CaseInfo:
    voxels = shape[0] * shape[1] * shape[2]
    summary = LabelSummary("organs", "uint8", {0: voxels - 9, 1: 5, 3: 4}, {}, f"v-{case}")
    intensity = Intensity(-1000, -900, 400, 900, 0.0, 300.0)
    info = CaseInfo(
        case=case,
        patient=patient,
        site=None,
        annotator=None,
        shape_zyx=shape,
        channels=1,
        image_dtype="int16",
        spacing_mm=(2.0, 1.0, 1.0),
        intensity=intensity,
        labels=(summary,),
        image_version="i",
    )
    return replace(info, **more)


def _config(**changes):
    return make_config({"archive": "a", "label": "organs", "run": "r", **changes})


def _plan(infos, **changes) -> RunPlan:
    return make_plan(_config(**changes), infos, VOTERS, gpu=False)


@settings(max_examples=30, deadline=None)
@given(st.tuples(edge, edge, edge), st.integers(1, 4))
def test_patches_and_tiles_keep_to_the_stride_and_the_budget(shape: Index3, levels: int) -> None:
    network = {"widths": [4] * levels}
    plan = _plan([_info("a", shape, "1"), _info("b", shape, "2")], network=network)
    stride = total_stride(plan.network)
    for edges in (plan.patch_zyx, plan.tile_zyx):
        assert all(n % s == 0 and n > 0 for n, s in zip(edges, stride, strict=True))
    assert plan.halo_vox == receptive_radius(plan.network)
    assert RunPlan.from_json(plan.to_json()) == plan


def test_the_view_flips_becomes_the_axes_that_patches_are_flipped_along_in_training() -> None:
    infos, flipped = [_info("a", patient="1"), _info("b", patient="2")], {"flips": ["x"]}
    voters = Voters(members=1, views=("flips", "darker"))
    plan = make_plan(_config(train=flipped), infos, voters, gpu=False)
    assert plan.voters.views == ("flip_x", "darker")
    assert make_plan(_config(), infos, voters, gpu=False).voters.views == ("darker",)
    uneven = _config(network={"widths": [4, 4], "strides": [[1, 3, 2]]})
    with pytest.raises(ConfigError, match="rot90"):
        make_plan(uneven, infos, Voters(members=1, views=("rot90",)), gpu=False)


@given(st.lists(st.integers(0, 12), min_size=8, max_size=40), st.integers(2, 4))
@settings(max_examples=40, deadline=None)
def test_no_network_trains_on_a_patient_it_judges(patients: list[int], folds: int) -> None:
    infos = [_info(f"c{n}", patient=str(p)) for n, p in enumerate(patients)]
    train = {"crossfit": folds}
    if len(set(patients)) < folds:
        with pytest.raises(ConfigError, match="patients"):
            _plan(infos, train=train)
        return
    plan = _plan(infos, train=train)
    patient_of = {info.case: info.patient for info in infos}
    for fold in range(folds):
        trained = {patient_of[case] for case in plan.training_cases(fold)}
        judged = {patient_of[case.case] for case in plan.cases if case.fold == fold}
        assert judged
        assert not trained & judged


def test_the_plan_does_not_depend_on_the_order_of_the_index() -> None:
    infos = [_info(f"c{n}", patient=str(n)) for n in range(9)]
    assert _plan(sorted(infos, key=lambda i: i.case)).train_key() == _plan(infos).train_key()


def test_an_open_end_is_bounded_by_the_device_and_bounds_are_no_part_of_what_a_network_is() -> None:
    infos = [_info(f"c{n}", patient=str(n)) for n in range(9)]
    plan = _plan(infos)
    assert (plan.train.steps, plan.train.epoch_steps, plan.train.max_steps) == (400, 40, 3_000)
    on_gpu = make_plan(_config(), infos, VOTERS, gpu=True)
    assert (on_gpu.train.steps, on_gpu.train.max_steps) == (400, 50_000)
    longer = _plan(infos, train={"max_steps": 5_000, "budget_minutes": 90})
    assert longer.train_key() == plan.train_key()
    assert _plan(infos, train={"steps": 400}).train_key() != plan.train_key()
    assert _plan(infos, train={"max_steps": 300}).train.steps == 300
    goes_on = with_current_cases(plan, longer)
    assert (goes_on.train.max_steps, goes_on.train.budget_minutes) == (5_000, 90)
    fixed = _plan(infos, train={"steps": 9})
    assert with_current_cases(fixed, longer).train == fixed.train


def test_classes_are_all_values_of_all_cases_and_background_comes_first() -> None:
    assert _plan([_info("a", patient="1"), _info("b", patient="2")]).classes == (0, 1, 3)


def test_crossfit_without_patients_is_refused_unless_the_user_says_so() -> None:
    infos = [_info("a", patient=None), _info("b", patient=None)]
    with pytest.raises(ConfigError, match="group: case"):
        _plan(infos)
    assert _plan(infos, group="case").folds == 2


def test_an_empty_selection_is_an_error_that_names_the_archive() -> None:
    with pytest.raises(InputError, match="no usable case"):
        _plan([])


def test_cases_are_chosen_by_glob_list_file_and_query(tmp_path) -> None:
    infos = [
        _info(name, patient=name, site=site)
        for name, site in (("a1", "A"), ("a2", "B"), ("b1", "A"))
    ]
    names = tmp_path / "names.txt"
    names.write_text("a2 b1")

    def chosen(wanted):
        return [info.case for info in select_cases(wanted, infos)]

    assert chosen("*") == ["a1", "a2", "b1"]
    assert chosen("a*") == ["a1", "a2"]
    assert chosen(("b1", "a1")) == ["a1", "b1"]
    assert chosen(str(names)) == ["a2", "b1"]
    assert chosen('site == "A" and spacing_z > 1') == ["a1", "b1"]
    with pytest.raises(ConfigError, match="condition"):
        chosen("nonsense == 3")


def test_a_changed_case_gets_its_new_version_and_a_new_one_a_fold() -> None:
    infos = [_info(f"c{n}", patient=str(n)) for n in range(4)]
    frozen = _plan(infos)
    changed = replace(infos[0], image_version="other")
    now = _plan([changed, *infos[1:], _info("new", patient="9")])
    merged = with_current_cases(frozen, now)
    assert [c.fold for c in merged.cases[:4]] == [c.fold for c in frozen.cases]
    assert merged.case("c0").version != frozen.case("c0").version
    assert merged.case("c1").version == frozen.case("c1").version
    assert merged.case("new").fold in (0, 1)


def test_a_case_that_joins_is_judged_by_lent_networks_that_did_not_learn_from_it() -> None:
    infos = [_info(f"c{n}", patient=str(n)) for n in range(4)]
    lender = _plan(infos)
    later = next(case for case in lender.cases if case.fold == 1)

    def borrowing(kept) -> RunPlan:
        return make_plan(_config(models="lender"), kept, VOTERS, gpu=False, lender=lender)

    first = borrowing([info for info in infos if info.case != later.case])
    merged = with_current_cases(first, borrowing(infos), lent=True)
    assert [case.fold for case in merged.cases] == [case.fold for case in lender.cases]


def test_the_tile_counts_where_the_halo_is_shorter_than_the_network_sees() -> None:
    infos = [_info(f"c{n}", patient=str(n)) for n in range(4)]
    assert not _plan(infos).tile_counts
    assert _plan(infos, relabel={"halo": 1}).tile_counts
    assert not _plan(infos, relabel={"halo": 64}).tile_counts


def test_listed_ids_are_looked_up_and_globs_matched(tmp_path: Path) -> None:
    ids = [f"c{n}" for n in range(4)]
    (tmp_path / "ids.txt").write_text("# of site A\nc3 c1  # twice looked at\nc9\n")
    assert wanted_ids(["c2", "typo"], ids) == ["c2"]
    assert wanted_ids(str(tmp_path / "ids.txt"), ids) == ["c1", "c3"]
    with pytest.raises(InputError, match=r"cases: idz\.txt: no such file in .*Correct the path"):
        wanted_ids("idz.txt", ids)
    assert wanted_ids("c[01]", ids) == ["c0", "c1"]
    assert wanted_ids("spacing_z > 2", ids) == ids


def test_a_run_that_goes_on_takes_todays_tile_where_answers_do_not_depend_on_it() -> None:
    infos = [_info(f"c{n}", patient=str(n)) for n in range(4)]
    frozen, now = _plan(infos), _plan(infos, relabel={"tile_zyx": [8, 16, 16]})
    assert with_current_cases(frozen, now).tile_zyx == (8, 16, 16)
    counting = replace(frozen, tile_counts=True)
    assert with_current_cases(counting, now).tile_zyx == frozen.tile_zyx


def test_the_thickness_of_a_single_slice_sets_no_unit() -> None:
    intensity = Intensity(0.0, 0.0, 1.0, 1.0, 0.5, 0.2)
    slice_ = CasePlan(
        case="a",
        group="a",
        fold=0,
        shape_zyx=(1, 40, 40),
        spacing_mm=(1.0, 2.0, 2.0),
        intensity=intensity,
        dtype="uint8",
        version="v",
        trusted=False,
    )
    assert slice_.metric_mm == (2.0, 2.0, 2.0)
    assert replace(slice_, shape_zyx=(5, 40, 40)).metric_mm == (1.0, 2.0, 2.0)
    assert replace(slice_, shape_zyx=(1, 1, 1)).metric_mm == (1.0, 1.0, 1.0)
    predicted = np.zeros((1, 40, 40), np.uint8)
    predicted[0, 10:30, 10:30] = 1
    wider = np.zeros_like(predicted)
    wider[0, 9:31, 9:31] = 1
    differs = predicted != wider
    proposal = Proposal(
        np.where(differs, predicted + 1, 0).astype(np.uint8), differs.astype(np.uint8), None
    )
    offsets = boundary_offsets(slice_, (wider, None), proposal, 2, Box.whole(wider.shape))
    assert offsets.given.mean_vox(1) == pytest.approx(1.0, abs=0.1)


def test_an_ignored_value_is_no_class_and_counts_as_part_of_what_a_network_is() -> None:
    infos = [_info("a", patient="1"), _info("b", patient="2")]
    plan = _plan(infos, label_ignore=3)
    assert plan.classes == (0, 1)
    assert RunPlan.from_json(plan.to_json()).label_ignore == 3
    none, absent = _plan(infos), _plan(infos, label_ignore=255)
    assert absent.classes == none.classes == (0, 1, 3)
    assert len({one.train_key() for one in (plan, none, absent)}) == 3
    config = _config(models="lender", label_ignore=3)
    make_plan(config, infos, VOTERS, gpu=False, lender=plan)
    with pytest.raises(ConfigError, match="label_ignore: 3 is a class of the lent networks"):
        make_plan(config, infos, VOTERS, gpu=False, lender=none)
    usable, unusable = split_usable(_config(label_ignore=3), infos, plan)
    assert (len(usable), unusable) == (2, {})
    assert not split_usable(_config(), infos, plan)[0]
