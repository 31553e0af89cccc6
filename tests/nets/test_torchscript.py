"""TorchScript files as voters: the network's own answer, and refusals that say what is wrong."""

import io
import warnings

import pytest
import torch
from torch import nn

from raysegclean.errors import ConfigError, InputError
from raysegclean.nets.networks import build_network
from raysegclean.nets.torchscript import Script, ScriptVoter, inspect_script
from raysegclean.nets.unet import NetworkSpec
from raysegclean.nets.voters import NetworkVoter

torch.set_num_threads(1)

SPEC = NetworkSpec(classes=3, widths=(3, 4), strides=((2, 2, 2),), dropout=0.0)


def script_of(net: nn.Module, window: tuple[int, ...] = (1, 1, 8, 8, 8)) -> Script:
    """Trace `net`; what torch says about the future of TorchScript does not matter here."""
    data = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(net.eval(), torch.zeros(window)), data)
    return Script.of(data.getvalue())


def test_a_script_votes_like_the_network_that_it_was_saved_from() -> None:
    script = script_of(build_network(SPEC, 5))
    window = torch.randn(1, 12, 8, 16)
    voter = ScriptVoter(script, SPEC)
    for _ in range(4):  # TorchScript's optimiser would step in after some calls
        (ours,) = voter.passes(window)
        (theirs,) = NetworkVoter(build_network(SPEC, 5), SPEC).passes(window)
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    assert voter.n_passes == 1


def test_the_stride_and_the_reach_of_a_script_are_found_by_trying() -> None:
    script = script_of(build_network(SPEC, 5))
    found, _ = inspect_script(script, 1, 3, None)
    named, _ = inspect_script(script, 1, 3, (2, 2, 2))
    assert found == named
    assert found.stride_zyx == (2, 2, 2)
    exact = NetworkVoter(build_network(SPEC), SPEC).halo_vox
    assert all(e <= r <= e + 1 for e, r in zip(exact, found.radius_vox, strict=True))


def test_a_script_that_looks_at_its_window_is_found_out() -> None:
    net = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.InstanceNorm3d(4), nn.Conv3d(4, 2, 1))
    geometry, bytes_per_voxel = inspect_script(script_of(net), 1, 2, None)
    assert geometry.radius_vox is None
    assert bytes_per_voxel > 4


class Probabilities(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Conv3d(1, 3, 1)

    def forward(self, image):
        return torch.softmax(self.net(image), 1)


@pytest.mark.parametrize(
    ("net", "told"),
    [
        (nn.Conv3d(1, 5, 1), r"gave \(1, 5,.*expected logits \(1, 3,.*one channel for each of 3"),
        (nn.Conv3d(2, 3, 1), "failed"),
        (Probabilities(), "probabilities.*without its last softmax"),
    ],
    ids=["other classes", "other channels", "probabilities"],
)
def test_a_script_that_does_not_fit_is_refused_with_what_was_expected(net, told) -> None:
    channels = next(net.parameters()).shape[1]
    script = script_of(net, (1, channels, 4, 4, 4))
    for stride in (None, (1, 1, 1)):
        with pytest.raises(ConfigError, match=rf"(?s)network\.torchscript.*{told}"):
            inspect_script(script, 1, 3, stride)


class Traced(nn.Module):
    """Its one size is baked in when it is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Conv3d(1, 3, 1)

    def forward(self, image):
        return self.net(image).reshape(tuple(int(n) for n in (1, 3, *image.shape[2:])))


@pytest.mark.parametrize(
    ("net", "stride"),
    [(Traced(), None), (Traced(), (4, 4, 4)), (build_network(SPEC, 5), (1, 1, 1))],
    ids=["one size", "one size, stride named", "another stride"],
)
def test_a_script_that_reads_too_few_windows_is_refused(net, stride) -> None:
    with pytest.raises(ConfigError, match=r"cannot read windows of every multiple of .* stride"):
        inspect_script(script_of(net), 1, 3, stride)


def test_a_state_dict_is_no_script() -> None:
    data = io.BytesIO()
    torch.save(nn.Conv3d(1, 3, 1).state_dict(), data)
    with pytest.raises(InputError, match="a state_dict is not one"):
        Script.of(data.getvalue()).load()
    with pytest.raises(InputError, match="not a TorchScript file"):
        Script.of(b"nonsense").load()


def test_scripts_are_the_same_when_their_bytes_are() -> None:
    first, again, other = Script.of(b"a"), Script.of(b"a"), Script.of(b"b")
    assert first == again
    assert hash(first) == hash(again)
    assert first != other
    assert Script.trusted(b"a", first.digest) == first
    with pytest.raises(InputError, match="Somebody changed it"):
        Script.trusted(b"b", first.digest)
