"""Other views of a patch: the same place, the same network, nothing left behind."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegclean.nets.scales import (
    at_scales,
    disagreement,
    disturbed,
    resized,
    scaled_shape,
    unmoved_statistics,
)
from raysegclean.nets.trainer import TrainConfig, Trainer
from raysegclean.nets.unet import NetworkSpec
from raysegclean.voxels.channels import IGNORE

torch.set_num_threads(1)

SPEC = NetworkSpec(classes=3, widths=(4, 6), strides=((2, 2, 2),), dropout=0.3)
edges = st.integers(1, 9)


@settings(max_examples=40)
@given(before=st.tuples(edges, edges, edges), after=st.tuples(edges, edges, edges))
def test_resizing_is_trilinear_interpolation_between_voxel_centres(before, after):
    values = torch.randn(2, 3, *before)
    theirs = torch.nn.functional.interpolate(values, size=after, mode="trilinear")
    torch.testing.assert_close(resized(values, after), theirs, atol=1e-5, rtol=1e-5)


def test_a_scale_keeps_to_the_stride_and_to_axes_that_the_network_never_strides():
    assert scaled_shape((24, 32, 7), 0.7, (4, 4, 1)) == (16, 24, 7)
    assert scaled_shape((24, 32, 24), 1.5, (4, 4, 4)) == (36, 48, 36)
    assert scaled_shape((4, 4, 4), 0.25, (4, 4, 4)) == (4, 4, 4)


def network(step: int = 0) -> torch.nn.Module:
    trainer = Trainer(SPEC, TrainConfig(steps=4, batch=2, seed=1))
    return trainer.nets[0].train(step == 0)


@pytest.mark.parametrize("step", [0, 1], ids=["batch statistics", "running statistics"])
def test_the_plain_scale_is_the_network_itself_and_leaves_it_as_it_was(step):
    net = network(step)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    image = torch.randn(2, 1, 8, 8, 8)
    with torch.no_grad():
        (seen,) = at_scales(net, image, (1.0,), (2, 2, 2))
        for name, value in net.state_dict().items():
            assert torch.equal(value, before[name]), name
        torch.testing.assert_close(seen, net(image))


def test_statistics_move_again_afterwards():
    net = network()
    mean = net.encoder[0].units[0].norm.running_mean
    with unmoved_statistics(net):
        pass
    before = mean.clone()
    net(torch.randn(2, 1, 8, 8, 8))
    assert not torch.equal(mean, before)


def test_every_scale_comes_back_at_the_size_of_the_image_with_gradients():
    net = network()
    image = torch.randn(2, 1, 8, 12, 8)
    views = at_scales(net, image, (0.7, 1.5), (2, 2, 2))
    assert [tuple(view.shape) for view in views] == [(2, 3, 8, 12, 8)] * 2
    sum(view.square().mean() for view in views).backward()
    assert net.encoder[0].units[0].conv.weight.grad.abs().sum() > 0


def test_views_that_agree_cost_nothing_and_others_what_the_formula_says():
    rng = np.random.default_rng(0)
    one, other = (torch.from_numpy(rng.normal(0, 3, (2, 3, 2, 2, 2))) for _ in range(2))
    label = torch.zeros(2, 2, 2, 2, dtype=torch.int64)
    label[0, 0] = IGNORE
    assert disagreement([one, one], label, 0.0).abs().max() < 1e-6
    p, q = (torch.softmax(view, dim=1).numpy() for view in (one, other))
    mean = (p + q) / 2
    apart = (p * np.log(p / mean) + q * np.log(q / mean)).sum(axis=1)
    for rho in (0.0, 0.6):
        counted = (label.numpy() != IGNORE) & (mean.max(axis=1) > rho)
        expected = [
            (apart[s] * counted[s]).sum() / (label[s] != IGNORE).sum().item() for s in (0, 1)
        ]
        found = disagreement([one, other], label, rho)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_a_disturbed_image_depends_on_the_step_alone():
    image = torch.randn(2, 1, 8, 8, 8)
    torch.rand(3)
    first = disturbed(image, 7)
    assert torch.equal(disturbed(image, 7), first)
    assert not torch.equal(disturbed(image, 8), first)
    assert 0.05 < float((first - image).std()) < 0.4
