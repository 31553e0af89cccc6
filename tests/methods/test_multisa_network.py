"""The network of presence: its answer moves with the image, and attention is what it says."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegclean.methods.multisa.network import LocalAttention
from raysegclean.nets.inference import Tiling
from raysegclean.nets.networks import build_network, check_network
from raysegclean.nets.receptive import geometry_of
from raysegclean.nets.unet import NetworkSpec
from raysegclean.nets.voters import NetworkVoter
from raysegclean.voxels.geometry import Box
from tests.nets.test_averaged_windows import answer

torch.set_num_threads(1)

NAME = "multisa"
SPECS = [
    NetworkSpec(classes=3, widths=(3, 4), strides=((2, 2, 2),), dropout=0.0, name=NAME),
    NetworkSpec(classes=4, widths=(2, 3, 4), strides=((1, 2, 2), (1, 2, 2)), name=NAME),
    NetworkSpec(classes=2, dims=2, widths=(3, 4), strides=((1, 2, 3),), name=NAME),
    NetworkSpec(classes=2, widths=(3,), strides=(), name=NAME),
]
edge = st.integers(1, 21)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(SPECS), st.tuples(edge, edge, edge), st.tuples(*[st.integers(1, 9)] * 3))
def test_tiles_with_the_measured_halo_equal_the_whole_volume(spec, shape, tile) -> None:
    check_network(spec)
    geometry = geometry_of(spec)
    assert geometry.radius_vox is not None
    net = build_network(spec, 3)
    with torch.no_grad():  # attention that prefers some neighbours by far
        for parameter in net.attention.parameters():
            parameter.mul_(4)
    voter = NetworkVoter(net, spec)
    image = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    halo, stride = geometry.radius_vox, geometry.stride_zyx
    ours, whole = (
        answer(voter, image, Box.whole(shape), Tiling(t, halo, stride)) for t in (tile, (64,) * 3)
    )
    torch.testing.assert_close(ours, whole, atol=1e-5, rtol=0)


def test_attention_is_a_softmax_over_the_cells_nearby() -> None:
    attention = LocalAttention(3, (0, 1, 1))
    features, values = torch.randn(1, 3, 2, 4, 5), torch.randn(1, 2, 2, 4, 5)
    found = attention(features, values)[0].detach()
    query, key = attention.query(features)[0].detach(), attention.key(features)[0].detach()
    for z, y, x in np.ndindex(2, 4, 5):
        near = [(b, a) for b in range(y - 1, y + 2) for a in range(x - 1, x + 2) if 0 <= b < 4]
        near = [(b, a) for b, a in near if 0 <= a < 5]
        scores = np.array(
            [float(query[:, z, y, x] @ key[:, z, b, a]) / np.sqrt(len(query)) for b, a in near]
        )
        weights = np.exp(scores) / np.exp(scores).sum()
        expected = sum(w * values[0, :, z, b, a] for w, (b, a) in zip(weights, near, strict=True))
        torch.testing.assert_close(found[:, z, y, x], expected, atol=1e-5, rtol=1e-4)


def test_background_is_one_number_that_can_be_learnt() -> None:
    net = build_network(SPECS[0])
    logits = net(torch.randn(2, 1, 4, 4, 4))
    assert logits[:, 0].unique().numel() == 1
    logits[:, 0].sum().backward()
    assert net.background.grad.abs() > 0
