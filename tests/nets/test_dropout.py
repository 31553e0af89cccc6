"""Channel dropout: the same masks everywhere, and only when asked for."""

import numpy as np
import pytest
import torch

from raysegclean.nets.dropout import ChannelDropout, channel_mask, dropout_masks
from raysegclean.nets.networks import build_network
from raysegclean.nets.unet import NetworkSpec

torch.set_num_threads(1)


def test_masks_are_frozen_numbers() -> None:
    # A change here changes every published Monte Carlo answer: bump the algorithm version.
    bits = (channel_mask((3, 1), "encoder1", (2, 8), 0.25) > 0).astype(int).tolist()
    assert bits == [[1, 0, 1, 0, 1, 1, 0, 0], [1, 1, 1, 0, 1, 1, 1, 0]]


def test_kept_channels_make_up_for_the_dropped_ones() -> None:
    mask = channel_mask((0, 0), "any", (100, 200), 0.2)
    assert set(np.unique(mask)) == {np.float32(0), np.float32(1.25)}
    assert abs(mask.mean() - 1.0) < 0.02


def test_seed_pass_and_layer_each_change_the_mask() -> None:
    masks = [
        channel_mask(key, layer, (1, 64), 0.5).tobytes()
        for key, layer in [((0, 0), "a"), ((1, 0), "a"), ((0, 1), "a"), ((0, 0), "b")]
    ]
    assert len(set(masks)) == 4


@pytest.mark.parametrize("training", [True, False])
def test_without_a_key_nothing_is_dropped(training: bool) -> None:
    layer = ChannelDropout(0.5, "a").train(training)
    features = torch.ones(2, 8, 1, 1, 1)
    assert torch.equal(layer(features), features)


def test_the_mask_is_the_same_in_every_window_and_ends_with_its_context() -> None:
    layer = ChannelDropout(0.5, "a")
    with dropout_masks(layer, (0, 0)):
        small = layer(torch.ones(1, 16, 1, 2, 2))
        large = layer(torch.ones(3, 16, 4, 4, 4))
    assert torch.equal(small[0, :, 0, 0, 0], large[2, :, 3, 3, 3])
    assert (small == 0).any() and (small > 0).any()
    assert torch.equal(layer(torch.ones(1, 16, 1, 2, 2)), torch.ones(1, 16, 1, 2, 2))


def test_in_training_each_sample_has_its_own_mask() -> None:
    layer = ChannelDropout(0.5, "a")
    with dropout_masks(layer, (0, 0), per_sample=True):
        out = layer(torch.ones(2, 32, 1, 1, 1))
    assert not torch.equal(out[0], out[1])


def test_the_finest_encoder_level_is_never_dropped() -> None:
    net = build_network(NetworkSpec(widths=(4, 8), strides=((2, 2, 2),), dropout=0.5)).eval()
    image = torch.randn(1, 1, 4, 4, 4)
    with torch.no_grad():
        plain = net.begin(image)
        with dropout_masks(net, (0, 0)):
            assert torch.equal(net.begin(image), plain)
            assert not torch.equal(net(image), net.deepen(plain) * 0)
            dropped = net(image)
        assert not torch.equal(dropped, net(image))
