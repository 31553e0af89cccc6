"""The default network: its shape, its seeds, and that its answer moves with the image."""

import numpy as np
import pytest
import torch

from raysegclean.errors import ConfigError
from raysegclean.nets.networks import build_network, prepare_network
from raysegclean.nets.receptive import receptive_radius, total_stride
from raysegclean.nets.unet import NetworkSpec, fold_batchnorm, plan_strides

torch.set_num_threads(1)

SPECS = {
    "3d": NetworkSpec(classes=3, widths=(4, 6, 8)),
    "anisotropic": NetworkSpec(widths=(4, 6), strides=((1, 2, 2),)),
    "2d": NetworkSpec(dims=2, in_channels=2, widths=(4, 6), strides=((1, 2, 2),)),
    "one level": NetworkSpec(widths=(4,), strides=()),
}
every_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


def lively(spec: NetworkSpec, seed: int = 0):
    """Return a network in eval mode whose batch norms are far from the identity."""
    net = build_network(spec, seed)
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            for value, low in ((module.running_mean, -0.5), (module.running_var, 0.5)):
                value.copy_(torch.rand(value.shape, generator=generator) + low)
            module.weight.data.add_(torch.rand(module.weight.shape, generator=generator))
            module.bias.data.add_(torch.rand(module.bias.shape, generator=generator) - 0.5)
    return net.eval()


@every_spec
def test_logits_have_the_shape_of_the_image(spec: NetworkSpec) -> None:
    z, y, x = (3 * s for s in total_stride(spec))
    logits = build_network(spec)(torch.randn(2, spec.in_channels, z, y, x))
    assert logits.shape == (2, spec.classes, z, y, x)


@every_spec
def test_folding_batch_norm_changes_nothing_but_rounding(spec: NetworkSpec) -> None:
    net = lively(spec).double()
    shape = (3 * s for s in total_stride(spec))
    image = torch.randn(1, spec.in_channels, *shape, dtype=torch.float64)
    with torch.no_grad():
        before = net(image)
        folded = fold_batchnorm(net)
        after = folded(image)
    assert not any(isinstance(m, torch.nn.BatchNorm3d) for m in folded.modules())
    torch.testing.assert_close(after, before, atol=1e-10, rtol=1e-10)
    with torch.no_grad():
        assert torch.equal(fold_batchnorm(folded)(image), after), "folding twice is folding once"


@every_spec
def test_the_answer_moves_with_the_image_by_multiples_of_the_stride(spec: NetworkSpec) -> None:
    net = lively(spec).double()
    stride, radius = total_stride(spec), receptive_radius(spec)
    shape = [2 * (r + s) // s * s + 3 * s for r, s in zip(radius, stride, strict=True)]
    image = torch.randn(1, spec.in_channels, *shape, dtype=torch.float64)
    with torch.no_grad():
        here = net(image)
        moved = net(torch.roll(image, stride, dims=(2, 3, 4)))
    inner = (..., *(slice(r + s, -r or None) for r, s in zip(radius, stride, strict=True)))
    torch.testing.assert_close(
        moved[inner], torch.roll(here, stride, dims=(2, 3, 4))[inner], atol=1e-12, rtol=1e-12
    )


def test_a_network_of_two_dims_reads_every_slice_by_itself() -> None:
    net = lively(SPECS["2d"]).double()
    image = torch.randn(1, 2, 5, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        together = net(image)
        apart = torch.cat([net(image[:, :, z : z + 1]) for z in range(5)], dim=2)
    torch.testing.assert_close(together, apart, atol=1e-12, rtol=1e-12)


def test_weights_depend_on_the_seed_alone_and_leave_the_global_state() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = build_network(SPECS["3d"], seed=1)
    assert torch.equal(torch.rand(3), expected)
    second, third = build_network(SPECS["3d"], seed=1), build_network(SPECS["3d"], seed=2)
    pairs = list(zip(first.parameters(), second.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(first.head.weight, third.head.weight)


def test_the_fast_layout_computes_the_same() -> None:
    image = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        plain = lively(SPECS["3d"])(image)
        fast = prepare_network(lively(SPECS["3d"]))(image)
    torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"dims": 4}, "dims must be 2 or 3"),
        ({"dims": 2}, "must keep z"),
        ({"classes": 1}, "count background"),
        ({"widths": (8, 16)}, "2 widths need 1 strides, got 2"),
        ({"widths": (), "strides": ()}, "widths must be positive"),
        ({"dropout": 1.0}, r"\[0, 1\)"),
        ({"in_channels": 0}, "in_channels"),
        ({"strides": ((2, 2, 2), (0, 1, 1))}, "strides must be positive"),
    ],
)
def test_an_impossible_spec_is_refused_with_the_reason(values: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        NetworkSpec(**values)


def test_strides_spare_thick_and_short_axes() -> None:
    assert plan_strides((1.0, 1.0, 1.0), (40, 50, 36), 3) == ((2, 2, 2), (2, 2, 2))
    assert plan_strides((5.0, 0.8, 0.8), (80, 512, 512), 4) == ((1, 2, 2), (1, 2, 2), (2, 2, 2))
    assert plan_strides((1.0, 0.7, 0.7), (6, 44, 44), 3) == ((1, 2, 2), (1, 2, 2))
    assert plan_strides((1.0, 1.0, 1.0), (40, 50, 36), 3, dims=2) == ((1, 2, 2), (1, 2, 2))
    assert plan_strides((1.0, 1.0, 1.0), (1, 4, 4), 2) == ((1, 1, 1),)
    assert plan_strides((1.0, 1.0, 1.0), (64, 64, 64), 1) == ()


def test_planned_strides_never_starve_the_deepest_level() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        shape = tuple(int(n) for n in rng.integers(1, 200, 3))
        spacing = tuple(float(s) for s in rng.uniform(0.3, 6.0, 3))
        strides = plan_strides(spacing, shape, 5)
        for axis in range(3):
            total = int(np.prod([stride[axis] for stride in strides]))
            assert total == 1 or -(-shape[axis] // total) >= 4
