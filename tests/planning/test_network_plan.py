"""Which network a plan takes, and how the windows of networks that look at them are laid."""

import io
import warnings
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
import torch

from raysegclean.errors import ConfigError
from raysegclean.methods.base import Voters
from raysegclean.nets.memory import bytes_per_voxel
from raysegclean.nets.networks import build_network
from raysegclean.nets.unet import NetworkSpec
from raysegclean.planning.plan import RunPlan, make_plan

from .test_plan import VOTERS, _config, _info

INFOS = [_info(f"c{n}", (40, 96, 80), patient=str(n)) for n in range(4)]
NATIVE = {"spacing_mm": None}
WINDOWED = {"name": "tests.nets.own_networks:instance", "widths": [2], "strides": []}


def plan_of(voters: Voters = VOTERS, infos=INFOS, lender: RunPlan | None = None, **changes):
    return make_plan(_config(**changes), infos, voters, gpu=False, lender=lender)


def script_at(path: Path, classes: int = 3) -> dict[str, str]:
    spec = NetworkSpec(classes=classes, widths=(2, 2), strides=((1, 2, 2),), dropout=0.0)
    data = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(
            torch.jit.trace(build_network(spec).eval(), torch.zeros(1, 1, 4, 4, 4)), data
        )
    path.write_bytes(data.getvalue())
    return {"torchscript": str(path)}


def test_a_method_that_brings_a_network_has_it_whatever_the_config_names() -> None:
    voters = replace(VOTERS, network="multisa")
    plan = plan_of(voters, network={"name": "no.such.module:build", "widths": [2, 3]})
    assert plan.network.name == voters.network
    assert plan.network.widths == (2, 3), "its size is the user's affair"
    assert not plan.averaged


def test_a_network_that_cannot_be_loaded_is_refused_by_the_plan() -> None:
    with pytest.raises(ConfigError, match=r"no\.such\.module:build.*cannot be loaded"):
        plan_of(network={"name": "no.such.module:build"})


def test_the_plan_of_the_default_network_says_what_it_always_said() -> None:
    plan = plan_of()
    assert (plan.network.name, plan.averaged) == ("unet", False)
    assert plan.stride_zyx == plan.network.stride_zyx
    assert plan.window_bytes_per_vox == bytes_per_voxel(plan.network)


def test_networks_of_the_preset_small_keep_the_key_under_which_runs_hold_them() -> None:
    plan = plan_of(infos=[_info(f"c{n}", (36, 50, 35), patient=str(n)) for n in range(4)])
    assert plan.network.widths == (8, 16, 32)
    assert plan.train_key() == "26b71a494a50c4f0", "new fields must not rename what is trained"


def test_what_the_config_says_of_a_network_wins_over_the_preset() -> None:
    preset = {"preset": "base"}
    assert plan_of(network=preset).network.widths == (16, 32, 64, 128)
    own = plan_of(network=preset | {"widths": [4, 5]}, train={"batch": 3})
    assert (own.network.widths, own.train.batch) == ((4, 5), 3)
    strided = plan_of(network=preset | {"strides": [[1, 2, 2]]})
    assert (strided.network.widths, strided.network.strides) == ((16, 32), ((1, 2, 2),))


def test_averaged_windows_have_the_size_of_a_training_patch_and_share_half_of_it() -> None:
    plan = plan_of(network=WINDOWED, train={"patch_zyx": [16, 32, 32]})
    assert plan.averaged
    assert plan.patch_zyx == (16, 32, 32)
    assert plan.halo_vox == (4, 8, 8)
    assert plan.tile_zyx == (8, 16, 16)
    wanted = {"tile_zyx": [10, 20, 20], "halo": [1, 2, 3]}
    own = plan_of(network=WINDOWED, relabel=wanted)
    assert (own.tile_zyx, own.halo_vox) == ((10, 20, 20), (1, 2, 3))
    assert RunPlan.from_json(plan.to_json()) == plan


def test_lent_windows_have_the_size_of_the_patches_that_the_lender_trained_on() -> None:
    lender = plan_of(network=WINDOWED, train={"patch_zyx": [16, 32, 32]})
    plan = plan_of(network=WINDOWED, lender=lender, models="somewhere")
    assert (plan.tile_zyx, plan.halo_vox) == (lender.tile_zyx, lender.halo_vox)
    with pytest.raises(ConfigError, match=r"lends networks.*instance.*if you trust that module"):
        plan_of(lender=lender, models="somewhere")


def test_a_torchscript_file_has_no_folds_and_asks_for_no_patients(tmp_path: Path) -> None:
    infos = [_info(f"c{n}", patient=None) for n in range(3)]
    plan = plan_of(infos=infos, network=script_at(tmp_path / "net.pt"))
    assert (plan.folds, plan.crossfit) == (1, False)
    assert plan.stride_zyx == plan.network.stride_zyx == (2, 2, 2)
    named = script_at(tmp_path / "net.pt") | {"strides": [[1, 2, 2]]}
    assert plan_of(infos=infos, network=named).stride_zyx == (1, 2, 2)


def test_the_networks_are_others_when_the_file_is_another_and_only_then(tmp_path: Path) -> None:
    first = plan_of(network=script_at(tmp_path / "net.pt"))
    (tmp_path / "copy.pt").write_bytes((tmp_path / "net.pt").read_bytes())
    copy = plan_of(network={"torchscript": str(tmp_path / "copy.pt")})
    assert copy.train_key() == first.train_key()
    (tmp_path / "copy.pt").write_bytes(b"")
    script_at(tmp_path / "copy.pt")
    again = plan_of(network={"torchscript": str(tmp_path / "copy.pt")})
    assert (again.train_key() == first.train_key()) == (again.network == first.network)


def test_what_a_torchscript_file_cannot_do_is_refused(tmp_path: Path) -> None:
    network = script_at(tmp_path / "net.pt")
    with pytest.raises(ConfigError, match="brings its own network"):
        plan_of(replace(VOTERS, network="multisa"), network=network)
    with pytest.raises(ConfigError, match=r"a TorchScript file.*has none"):
        plan_of(replace(VOTERS, passes=3), network=network)
    with pytest.raises(ConfigError, match="lends a TorchScript file, which is code"):
        plan_of(lender=plan_of(network=network), models="somewhere")


def test_many_classes_get_smaller_windows_and_a_stage_without_gpus_those_of_a_cpu() -> None:
    large = [_info(f"c{n}", (600, 512, 512), patient=str(n)) for n in range(4)]
    organs = replace(large[0].labels[0], voxels=dict.fromkeys(range(105), 9))
    many = [replace(info, labels=(organs,)) for info in large]

    def tile_vox(infos, budget_bytes: int, **changes) -> int:
        plan = make_plan(_config(network=NATIVE, **changes), infos, VOTERS, gpu=True)
        assert plan.windows.taken_bytes(plan.tile_zyx) <= budget_bytes
        return prod(plan.tile_zyx)

    few, more = tile_vox(large, 10 << 30), tile_vox(many, 10 << 30)
    assert more < few
    assert tile_vox(large, 4 << 30, resources={"relabel": {"gpus": 0}}) < few
    trained = make_plan(_config(resources={"train": {"gpus": 0}}), large, VOTERS, gpu=True).train
    assert trained.precision == "fp32"
