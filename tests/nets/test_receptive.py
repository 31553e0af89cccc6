"""The measured radius against brute force: nudge a voxel, look which logits move."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegclean.nets.networks import build_network
from raysegclean.nets.receptive import receptive_radius, total_stride
from raysegclean.nets.unet import NetworkSpec

torch.set_num_threads(1)


def furthest_influence(spec: NetworkSpec, axis: int) -> int:
    """Return the largest distance along `axis` at which a nudge changes a logit of a real net."""
    net = build_network(spec, seed=3).double().eval()
    stride = total_stride(spec)
    margin = receptive_radius(spec)[axis] + 2 * stride[axis]
    shape = list(stride)
    shape[axis] = 2 * (-(-margin // stride[axis]) * stride[axis]) + stride[axis]
    image = torch.randn(1, spec.in_channels, *shape, dtype=torch.float64)
    furthest = 0
    with torch.no_grad():
        before = net(image)
        for phase in range(stride[axis]):
            at = shape[axis] // 2 // stride[axis] * stride[axis] + phase
            nudged = image.clone()
            nudged.select(2 + axis, at).add_(1e4)
            change = (net(nudged) - before).abs()
            moved = change.sum(dim=[a for a in range(5) if a != 2 + axis]).nonzero().flatten()
            furthest = max(furthest, *(abs(int(m) - at) for m in moved))
    return furthest


@pytest.mark.parametrize(
    "spec",
    [
        NetworkSpec(widths=(6,), strides=()),
        NetworkSpec(widths=(4, 6), strides=((2, 2, 2),)),
        NetworkSpec(widths=(4, 6), strides=((1, 2, 3),)),
        NetworkSpec(widths=(4, 5, 6), strides=((1, 2, 2), (2, 2, 2))),
        NetworkSpec(dims=2, widths=(4, 6), strides=((1, 2, 2),)),
    ],
    ids=str,
)
def test_the_radius_is_exactly_how_far_a_nudge_carries(spec: NetworkSpec) -> None:
    assert receptive_radius(spec) == tuple(furthest_influence(spec, axis) for axis in range(3))


factors = st.integers(1, 3)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(factors, factors, factors), max_size=3))
def test_no_nudge_carries_further_than_the_radius(strides: list[tuple[int, int, int]]) -> None:
    spec = NetworkSpec(widths=tuple(range(2, 3 + len(strides))), strides=tuple(strides))
    radius = receptive_radius(spec)
    assert all(furthest_influence(spec, axis) <= radius[axis] for axis in range(3))


def test_known_cases_by_hand() -> None:
    # Two convolutions of 3 see 2 voxels; slices are not mixed by a network of two dims.
    assert receptive_radius(NetworkSpec(widths=(4,), strides=())) == (2, 2, 2)
    assert receptive_radius(NetworkSpec(dims=2, widths=(4,), strides=())) == (0, 2, 2)
    assert total_stride(NetworkSpec(strides=((1, 2, 2), (2, 2, 2)))) == (2, 4, 4)


def test_deep_networks_are_measured_too() -> None:
    deep = NetworkSpec(widths=(4,) * 5, strides=((2, 2, 2),) * 4)
    assert receptive_radius(deep)[0] > 64
