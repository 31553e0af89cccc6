"""What a results folder of nnU-Net becomes in a plan, and what is refused before anything runs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raysegclean.errors import ConfigError, InputError
from raysegclean.methods.base import Voters
from raysegclean.nets.nnunet import Architecture
from raysegclean.nets.normalise import Normaliser
from raysegclean.planning.plan import RunPlan, make_plan
from tests.nets.nnunet_models import LABELS, write_folder

from .test_plan import VOTERS, _config, _info

NAMES = {1: "spleen", 3: "liver"}
INFOS = [_info(f"c{n}", (40, 96, 80), patient=None) for n in range(2)]


def plan_of(
    network: dict[str, Any], voters: Voters = VOTERS, names: Any = NAMES, infos: Any = INFOS
) -> RunPlan:
    return make_plan(_config(network=network), infos, voters, gpu=False, names=names)


def test_spacing_window_scale_and_classes_are_the_folder_s_own(tmp_path: Path) -> None:
    plan = plan_of(write_folder(tmp_path / "m", folds=("0", "1", "all")))
    assert plan.classes == (0, 1, 3)
    assert plan.spacing_mm == (2.0, 1.0, 1.0)
    assert plan.window_zyx == plan.tiling.window_zyx == plan.patch_zyx == (12, 16, 16)
    assert plan.windows.of(plan.tile_zyx)[0] == (12, 16, 16)
    assert plan.normaliser == Normaliser("ct", -40.0, 260.0, 90.0, 35.0)
    assert (plan.folds, plan.crossfit, plan.voters.members) == (1, False, 3)
    # Background and the kidney, which the archive has not; spleen; liver.
    assert Architecture.of(plan.network).classes == ((0, 2), (3,), (1,))
    assert RunPlan.from_json(plan.to_json()) == plan


def test_a_case_smaller_than_the_window_is_planned_with_a_whole_one(tmp_path: Path) -> None:
    network = write_folder(tmp_path / "m", configuration={"patch_size": [64, 256, 128]})
    plan = plan_of(network)
    assert plan.windows.of(plan.tile_zyx)[0] == (64, 256, 128)


def test_axes_that_plans_exchange_are_brought_back(tmp_path: Path) -> None:
    changes = {"plans": {"transpose_forward": [2, 0, 1]}}
    sizes = {"patch_size": [4, 6, 8], "spacing": [3.0, 1.5, 1.0]}
    plan = plan_of(write_folder(tmp_path / "m", configuration=sizes, **changes))
    assert plan.window_zyx == (6, 8, 4)
    assert plan.spacing_mm == (1.5, 1.0, 3.0)


def test_a_2d_network_sees_single_slices_of_native_thickness(tmp_path: Path) -> None:
    plan = plan_of(write_folder(tmp_path / "m", dims=2))
    assert plan.window_zyx == (1, 16, 16)
    assert plan.spacing_mm == (0.0, 1.0, 1.0)


def test_named_classes_win_over_equal_names(tmp_path: Path) -> None:
    network = write_folder(tmp_path / "m") | {"classes": {"left kidney": 1, "spleen": 1}}
    plan = plan_of(network, names={3: "LIVER"})
    assert Architecture.of(plan.network).classes == ((0,), (2, 3), (1,))


def test_plans_of_older_versions_are_read(tmp_path: Path) -> None:
    old = {
        "architecture": None,
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 4,
        "unet_max_num_features": 6,
        "n_conv_per_stage_encoder": [1, 1],
        "n_conv_per_stage_decoder": [1],
        "pool_op_kernel_sizes": [[1, 1, 1], [2, 2, 2]],
        "conv_kernel_sizes": [[3, 3, 3], [3, 3, 3]],
    }
    assert plan_of(write_folder(tmp_path / "m", configuration=old)).network.finished


def test_a_configuration_has_what_it_inherits(tmp_path: Path) -> None:
    network = write_folder(tmp_path / "m")
    whole = plan_of(network)
    text = (tmp_path / "m" / "plans.json").read_text()
    heir = text.replace('"3d_fullres": {', '"3d_fullres": {"inherits_from": "base"}, "base": {')
    (tmp_path / "m" / "plans.json").write_text(heir)
    assert plan_of(network).network == whole.network


def test_the_networks_are_others_when_a_checkpoint_is_another_and_only_then(tmp_path: Path) -> None:
    first = plan_of(write_folder(tmp_path / "m"))
    (tmp_path / "m").rename(tmp_path / "moved")
    moved = plan_of({"nnunet": str(tmp_path / "moved")})
    assert moved.train_key() == first.train_key()
    assert plan_of(write_folder(tmp_path / "o", folds=("1",))).train_key() != first.train_key()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"labels": LABELS | {"spleen": [1, 3]}}, r"labels made of regions \(spleen\)"),
        ({"labels": {"background": 0, "liver": 5}}, "whole numbers from 0 without a gap"),
        ({"dataset": {"channel_names": {"0": "T1", "1": "T2"}}}, r"2 channels \(T1, T2\).*one"),
        ({"configuration": {"previous_stage": "3d_lowres"}}, "3d_fullres is a cascade.*3d_lowres"),
        ({"configuration": {"normalization_schemes": ["RGBTo01"]}}, "after RGBTo01, expected CT"),
        ({"configuration": {"patch_size": None}}, "not as nnU-Net v2 writes it"),
        ({"name": "Primus", "weights_of": "ResidualEncoderUNet"}, r"Primus.*torch\.jit"),
        ({"weights_of": "ResidualEncoderUNet"}, "fold_0.*weights do not fit"),
        ({"trainer": "MyTrainer"}, "fold_0/checkpoint_final.pth: it was trained by MyTrainer"),
        ({"plans": {"configurations": {"2d": {}}}}, "of the configuration '3d_fullres'.*has 2d"),
        ({"folds": ()}, r"no fold_\*/checkpoint_final\.pth.*copy checkpoint_best"),
        (
            {"labels": {"background": 0, "lung": 1, "spleen": 2}},
            r"joined to the archive's 3 liver\. The network has lung, spleen\..*NAME: 3",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_folder_that_cannot_vote_is_refused_with_a_remedy(
    changes: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises((ConfigError, InputError), match=rf"(?s)network\.nnunet.*{told}"):
        plan_of(write_folder(tmp_path / "m", **changes))


def test_other_refusals_name_both_sides(tmp_path: Path) -> None:
    network = write_folder(tmp_path / "m")
    with pytest.raises(ConfigError, match=r"no label stomach; it has Liver, left kidney, spleen"):
        plan_of(network | {"classes": {"stomach": 1}})
    with pytest.raises(ConfigError, match="brings its own network, multisa"):
        plan_of(network, replace(VOTERS, network="multisa"))
    with pytest.raises(ConfigError, match=r"dropout voters.*every fold of the folder is one"):
        plan_of(network, replace(VOTERS, passes=3))
    with pytest.raises(ConfigError, match="reads one channel, the archive's images have 2"):
        plan_of(network, infos=[replace(info, channels=2) for info in INFOS])
    with pytest.raises(InputError, match=r"has no plans\.json\. Give the folder"):
        plan_of({"nnunet": str(tmp_path)})
    lender = plan_of(network)
    with pytest.raises(ConfigError, match=r"lends networks of nnU-Net.*network\.nnunet"):
        make_plan(_config(models="somewhere"), INFOS, VOTERS, gpu=False, lender=lender)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"network": {"torchscript": "x.pt"}}, "Keep one of torchscript and nnunet"),
        ({"network": {"name": "own.module:build"}}, "Keep one of name and nnunet"),
        ({"network": {"spacing_mm": None}}, "spacing_mm: an nnU-Net folder says this itself"),
        ({"network": {"nnunet": None, "classes": {"a": 1}}}, "Set network.nnunet"),
        ({"models": "somewhere"}, "Keep one of models and nnunet"),
        ({"relabel": {"halo": 3}}, "halo: an nnU-Net folder says this itself"),
    ],
)
def test_settings_that_the_folder_holds_itself_are_refused(
    other: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        _config(**other | {"network": {"nnunet": "m"} | other.get("network", {})})
