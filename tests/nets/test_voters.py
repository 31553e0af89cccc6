"""Voters: what they promise beside probabilities."""

import pytest
import torch

from raysegclean.errors import ConfigError
from raysegclean.nets.dropout import channel_mask
from raysegclean.nets.networks import build_network
from raysegclean.nets.receptive import receptive_radius
from raysegclean.nets.unet import NetworkSpec
from raysegclean.nets.voters import DropoutVoter, EnsembleVoter, NetworkVoter, head_inputs

torch.set_num_threads(1)

SPEC = NetworkSpec(classes=3, widths=(4, 6), strides=((2, 2, 2),), dropout=0.5)


def test_an_ensemble_reaches_as_far_as_its_furthest_member() -> None:
    flat = NetworkSpec(classes=3, widths=(4, 6, 8), strides=((1, 2, 2), (1, 3, 2)))
    ensemble = EnsembleVoter(
        [NetworkVoter(build_network(SPEC), SPEC), NetworkVoter(build_network(flat), flat)]
    )
    reach = zip(receptive_radius(SPEC), receptive_radius(flat), strict=True)
    assert ensemble.halo_vox == tuple(max(pair) for pair in reach)
    assert ensemble.stride_zyx == (2, 6, 4)
    assert ensemble.n_passes == 2


def test_dropout_passes_equal_a_network_whose_channels_were_cut_by_hand() -> None:
    window = torch.randn(1, 8, 8, 8)
    net = build_network(SPEC, 4).eval()
    by_hand = []
    for number in range(2):
        cut = build_network(SPEC, 4).eval()
        hooks = {"encoder1": (cut.encoder[1], 6), "decoder0": (cut.decoder[0], 4)}
        for layer, (module, channels) in hooks.items():
            scale = torch.from_numpy(channel_mask((7, number), layer, (1, channels), 0.5))
            module.register_forward_hook(
                lambda _m, _i, out, scale=scale: out * scale[:, :, None, None, None]
            )
        with torch.no_grad():
            by_hand.append(torch.softmax(cut(window[None])[0], dim=0))
    passes = list(DropoutVoter(net, SPEC, n_passes=2, seed=7).passes(window))
    for ours, theirs in zip(passes, by_hand, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_a_dropout_voter_left_half_way_leaves_the_network_clean() -> None:
    net = build_network(SPEC, 4)
    window = torch.randn(1, 4, 4, 4)
    voter = DropoutVoter(net, SPEC, n_passes=3)
    plain = next(NetworkVoter(net, SPEC).passes(window))
    first = next(voter.passes(window))
    assert torch.equal(next(NetworkVoter(net, SPEC).passes(window)), plain)
    assert torch.equal(next(voter.passes(window)), first)
    assert not torch.equal(first, plain)


def test_bf16_stays_close_and_answers_in_fp32() -> None:
    window = torch.randn(1, 8, 8, 8)
    (full,) = NetworkVoter(build_network(SPEC, 4), SPEC).passes(window)
    (half,) = NetworkVoter(build_network(SPEC, 4), SPEC, precision="bf16").passes(window)
    assert half.dtype == torch.float32
    assert (full - half).abs().max() < 0.05


def test_impossible_voters_are_refused() -> None:
    dry = NetworkSpec(dropout=0.0)
    with pytest.raises(ConfigError, match=r"network\.dropout"):
        DropoutVoter(build_network(dry), dry)
    with pytest.raises(ConfigError, match="at least one member"):
        EnsembleVoter([])


def test_the_features_are_what_the_head_of_the_first_network_reads_in_its_first_pass() -> None:
    window = torch.randn(1, 8, 8, 8)
    nets = [build_network(SPEC, seed) for seed in (4, 5)]
    ensemble = EnsembleVoter([NetworkVoter(net, SPEC) for net in nets])
    with head_inputs(ensemble) as found:
        passes = list(ensemble.passes(window))
        (features,) = found
    with torch.no_grad():
        rebuilt = torch.softmax(nets[0].head(features[None])[0], dim=0)
    torch.testing.assert_close(rebuilt, passes[0], atol=1e-6, rtol=0)
    list(ensemble.passes(window))
    assert len(found) == 1, "nothing is kept after the look"


def test_the_features_under_dropout_are_those_of_the_first_masks() -> None:
    window = torch.randn(1, 8, 8, 8)
    net = build_network(SPEC, 4)
    voter = DropoutVoter(net, SPEC, n_passes=3)
    with head_inputs(voter) as found:
        first, *_ = voter.passes(window)
    with torch.no_grad():
        rebuilt = torch.softmax(net.head(found[0][None])[0], dim=0)
    torch.testing.assert_close(rebuilt, first, atol=1e-6, rtol=0)


def test_a_voter_without_a_head_has_no_features() -> None:
    class Headless:
        name = "mine"

    with pytest.raises(ConfigError, match=r"'mine' has no layer `head`"), head_inputs(Headless()):  # type: ignore[arg-type]
        pass
