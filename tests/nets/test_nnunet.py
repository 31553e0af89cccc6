"""Networks of nnU-Net: the package's answer, in the archive's axes and classes; no code is run."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from raysegclean.errors import ConfigError, InputError
from raysegclean.nets.networks import build_network
from raysegclean.nets.nnunet import (
    Architecture,
    check_weights,
    read_checkpoint,
    window_bytes_per_voxel,
)
from raysegclean.nets.voters import NetworkVoter
from raysegclean.nets.weights import load_network, save_network

from .nnunet_models import plain_network, settings_of, write_folder

torch.set_num_threads(1)
AXES = (0, 1, 2)


def architecture(name: str = "PlainConvUNet", dims: int = 3, **changes: Any) -> Architecture:
    plain = Architecture(
        name=f"somewhere.{name}",
        settings=settings_of(name, dims),
        outputs=4,
        classes=((0,), (1,), (2,), (3,)),
        axes=AXES,
        digests=("a",),
    )
    return replace(plain, **changes)


@pytest.mark.parametrize("name", ["PlainConvUNet", "ResidualEncoderUNet"])
@pytest.mark.parametrize("axes", [AXES, (2, 0, 1)])
def test_a_voter_answers_like_the_package_s_own_network(name: str, axes: tuple[int, ...]) -> None:
    theirs = plain_network(3, 4, name)
    spec = architecture(name, axes=axes).spec()
    net = build_network(spec)
    check_weights(net, theirs.state_dict(), "fold_0")
    net, spec, _ = load_network(save_network(net, spec), "unet")
    window = torch.randn(1, 8, 12, 16)
    (prob,) = NetworkVoter(net, spec).passes(window)
    with torch.no_grad():
        logits = theirs(window.permute(0, *(1 + axis for axis in axes))[None])[0]
    back = [1 + axes.index(axis) for axis in range(3)]
    expected = torch.softmax(logits, 0).permute(0, *back)
    torch.testing.assert_close(prob, expected, atol=1e-5, rtol=0)


def test_a_2d_network_reads_slices_one_by_one() -> None:
    theirs = plain_network(3, 4, dims=2)
    net = build_network(architecture(dims=2).spec())
    check_weights(net, theirs.state_dict(), "fold_0")
    image = torch.randn(2, 1, 3, 8, 8)
    with torch.no_grad():
        ours = net(image)
        for number in range(3):
            expected = theirs(image[:, :, number])
            torch.testing.assert_close(ours[:, :, number], expected, atol=1e-5, rtol=0)


def test_a_class_has_the_summed_probability_of_all_outputs_that_belong_to_it() -> None:
    theirs = plain_network(3, 4)
    spec = architecture(classes=((0, 3), (2, 1))).spec()
    net = build_network(spec)
    check_weights(net, theirs.state_dict(), "fold_0")
    window = torch.randn(1, 8, 8, 8)
    (prob,) = NetworkVoter(net, spec).passes(window)
    with torch.no_grad():
        outputs = torch.softmax(theirs(window[None]), 1)[0]
    expected = torch.stack([outputs[0] + outputs[3], outputs[1] + outputs[2]])
    torch.testing.assert_close(prob, expected, atol=1e-5, rtol=0)


def test_the_spec_says_all_and_the_memory_is_counted_without_computing() -> None:
    wanted = architecture(axes=(2, 0, 1))
    spec = wanted.spec()
    assert Architecture.of(spec) == wanted
    assert spec.finished
    assert (spec.in_channels, spec.classes) == (1, 4)
    assert wanted.stride_zyx == (2, 2, 2)
    assert 4 * 4 < window_bytes_per_voxel(spec) < 4 * 200
    flat = architecture(dims=2, axes=(1, 0, 2))
    assert flat.stride_zyx == (2, 1, 2)


def test_layers_and_networks_that_are_not_known_are_refused_and_not_imported() -> None:
    for changes, told in (
        ({"name": "os.system"}, r"names the network 'somewhere\.os\.system', expected Plain"),
        ({"settings": settings_of() | {"nonlin": "os.system"}}, r"sets nonlin to 'os\.system'"),
        ({"settings": settings_of() | {"novel": 1}}, "cannot be built as plans.json says"),
    ):
        with pytest.raises(ConfigError, match=told):
            build_network(architecture(**changes).spec())


def test_a_missing_package_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        __import__("sys").modules, "dynamic_network_architectures.architectures", None
    )
    with pytest.raises(ConfigError, match=r"pip install 'raysegclean\[nnunet\]'"):
        build_network(architecture().spec())


def test_weights_of_another_network_are_refused() -> None:
    net = build_network(architecture("ResidualEncoderUNet").spec())
    with pytest.raises(ConfigError, match=r"fold_0: its weights do not fit.*Missing key"):
        check_weights(net, plain_network(0, 4).state_dict(), "fold_0")


def test_a_checkpoint_is_read_with_what_nnunet_logs_beside_the_weights(tmp_path: Path) -> None:
    write_folder(tmp_path / "m", trainer="nnUNetTrainer_4000epochs_NoMirroring")
    data = (tmp_path / "m" / "fold_0" / "checkpoint_final.pth").read_bytes()
    found = read_checkpoint(data, "x")
    assert found.configuration == "3d_fullres"
    assert set(found.weights) == set(plain_network(0, 4).state_dict())


class Evil:
    def __reduce__(self) -> Any:
        return print, ("run",)


def _saved(**state: Any) -> bytes:
    data = io.BytesIO()
    torch.save(state, data)
    return data.getvalue()


def test_checkpoints_that_hold_code_or_are_none_are_refused(capsys: Any) -> None:
    whole = {"network_weights": {}, "init_args": {"configuration": "2d"}}
    for data, told in (
        (_saved(**whole, trainer_name=Evil()), "no file of tensors and plain values"),
        (b"nothing", "no file of tensors and plain values"),
        (_saved(state_dict={}), "no checkpoint of nnU-Net v2.*network_weights"),
    ):
        with pytest.raises(InputError, match=f"fold_1: this is {told}"):
            read_checkpoint(data, "fold_1")
    assert not capsys.readouterr().out
    for trainer in ("nnUNetTrainerBN", "MyTrainer", "nnUNetTrainerUMamba"):
        with pytest.raises(ConfigError, match=f"trained by {trainer}, which may build another"):
            read_checkpoint(_saved(**whole, trainer_name=trainer), "fold_1")
