"""Test-time views: tiles against the turned whole volume, orientation, and what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegclean.errors import ConfigError
from raysegclean.nets.inference import Tiling, iter_tile_probs
from raysegclean.nets.networks import build_network
from raysegclean.nets.receptive import total_stride
from raysegclean.nets.unet import NetworkSpec
from raysegclean.nets.views import (
    VIEWS,
    ViewsVoter,
    halo_of_views,
    parse_views,
    resolve_views,
)
from raysegclean.nets.voters import DropoutVoter, NetworkVoter, head_inputs
from raysegclean.voxels.geometry import Box
from raysegclean.voxels.resampling import WorkingGrid

torch.set_num_threads(1)

EVEN = [
    NetworkSpec(classes=3, widths=(3, 4), strides=((2, 2, 2),)),
    NetworkSpec(classes=2, widths=(2, 3, 4), strides=((1, 2, 2), (2, 2, 2))),
    NetworkSpec(classes=3, dims=2, widths=(3, 4), strides=((1, 2, 2),)),
]
UNEVEN = NetworkSpec(classes=2, widths=(2, 3), strides=((1, 3, 2),))
STRAIGHT = tuple(view for view in VIEWS if view not in ("rot90", "rot270"))

TURNS = {
    "flip_z": (lambda a: a[:, ::-1], lambda a: a[:, ::-1]),
    "flip_y": (lambda a: a[:, :, ::-1], lambda a: a[:, :, ::-1]),
    "flip_x": (lambda a: a[:, :, :, ::-1], lambda a: a[:, :, :, ::-1]),
    "rot90": (lambda a: np.rot90(a, 1, (2, 3)), lambda a: np.rot90(a, 3, (2, 3))),
    "rot180": (lambda a: a[:, :, ::-1, ::-1], lambda a: a[:, :, ::-1, ::-1]),
    "rot270": (lambda a: np.rot90(a, 3, (2, 3)), lambda a: np.rot90(a, 1, (2, 3))),
    "brighter": (lambda a: a + 0.1, lambda a: a),
    "darker": (lambda a: a - 0.1, lambda a: a),
    "contrast": (lambda a: a * 1.1, lambda a: a),
}
edge = st.integers(1, 15)
shapes = st.tuples(edge, edge, edge)
tile_shapes = st.tuples(*[st.integers(6, 17)] * 3)


def noisy_net(spec: NetworkSpec) -> torch.nn.Module:
    """Return the same network at every call, in eval mode, whose batch norms do something."""
    net = build_network(spec, 0).eval()
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 1.5)
            module.bias.data.uniform_(-0.3, 0.3)
    return net


def whole_volume(
    net: torch.nn.Module, image: np.ndarray, spec: NetworkSpec, view: str
) -> torch.Tensor:
    """The definition: pad the far ends, turn, one forward pass, turn back, crop."""
    there, back = TURNS[view] if view else (lambda a: a, lambda a: a)
    pads = [(0, -n % s) for n, s in zip(image.shape[1:], total_stride(spec), strict=True)]
    turned = there(np.pad(image, [(0, 0), *pads], mode="edge")).astype(np.float32, order="C").copy()
    with torch.no_grad():
        prob = torch.softmax(net(torch.from_numpy(turned)[None])[0], dim=0).numpy()
    z, y, x = image.shape[1:]
    return torch.from_numpy(back(prob)[:, :z, :y, :x].copy())


def tiled(voter: ViewsVoter, image: np.ndarray, classes: int, tile, halo=None) -> torch.Tensor:
    shape = image.shape[1:]
    prob = torch.full((voter.n_passes, classes, *shape), torch.nan)
    tiling = Tiling(tile, halo or voter.halo_vox, voter.stride_zyx)
    read = lambda box: image[(slice(None), *box.slices)]  # noqa: E731
    grid = WorkingGrid.of(shape, (1.0, 1.0, 1.0), None)
    for one_tile, passes in iter_tile_probs(voter, read, Box.whole(shape), grid, tiling):
        count = 0
        for number, one in enumerate(passes):
            prob[(number, slice(None), *one_tile.core.slices)] = one
            count += 1
        assert count == voter.n_passes
    return prob


@settings(max_examples=15)
@given(st.sampled_from([*EVEN, UNEVEN]), shapes, tile_shapes)
def test_tiles_equal_the_turned_whole_volume_in_every_view(spec, shape, tile) -> None:
    views = STRAIGHT if spec == UNEVEN else VIEWS
    image = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    voter = ViewsVoter(NetworkVoter(noisy_net(spec), spec), views)
    answers = tiled(voter, image, spec.classes, tile)
    net = noisy_net(spec)
    for answer, view in zip(answers, ("", *views), strict=True):
        torch.testing.assert_close(
            answer, whole_volume(net, image, spec, view), atol=1e-5, rtol=0, msg=view
        )


def test_a_halo_that_is_too_small_is_seen_by_this_test() -> None:
    spec = EVEN[0]
    image = np.random.default_rng(2).normal(size=(1, 18, 18, 18)).astype(np.float32)
    voter = ViewsVoter(NetworkVoter(noisy_net(spec), spec), VIEWS)
    z, y, x = voter.halo_vox
    answers = tiled(voter, image, spec.classes, (6, 6, 6), (z - 6, y - 6, x - 6))
    net = noisy_net(spec)
    for answer, view in zip(answers, ("", *VIEWS), strict=True):
        assert (answer - whole_volume(net, image, spec, view)).abs().max() > 1e-4, view


def test_passes_come_back_in_the_original_orientation() -> None:
    class Bright:
        """Says foreground where the voxel is bright, so its answer turns with the image."""

        name, halo_vox, stride_zyx, n_passes = "bright", (0, 0, 0), (1, 1, 1), 1

        def passes(self, window_czyx, core=None):
            foreground = (window_czyx[0] > 0.5).float()
            yield torch.stack([1 - foreground, foreground])

    window = torch.from_numpy(np.random.default_rng(1).permutation(60.0 * np.eye(60)[0]))
    window = window.float().reshape(1, 3, 4, 5)
    passes = list(ViewsVoter(Bright(), VIEWS).passes(window))
    assert len(passes) == 1 + len(VIEWS)
    for prob in passes:
        assert torch.equal(prob[1], (window[0] > 0.5).float())


def test_views_of_a_dropout_voter_see_all_its_passes() -> None:
    spec = NetworkSpec(classes=3, widths=(4, 6), strides=((2, 2, 2),), dropout=0.5)
    voter = ViewsVoter(DropoutVoter(build_network(spec), spec, n_passes=3), ("flip_x", "darker"))
    window = torch.randn(1, 4, 4, 4)
    assert voter.n_passes == 9 == len(list(voter.passes(window)))


def test_features_are_those_of_the_plain_window() -> None:
    spec, window = EVEN[0], torch.randn(1, 4, 4, 4)
    plain, seen = (NetworkVoter(noisy_net(spec), spec) for _ in range(2))
    with head_inputs(plain) as expected, head_inputs(ViewsVoter(seen, ("flip_x",))) as found:
        list(plain.passes(window))
        list(ViewsVoter(seen, ("flip_x",)).passes(window))
    torch.testing.assert_close(found[0], expected[0])


def test_quarter_turns_need_equal_steps_along_y_and_x() -> None:
    voter = NetworkVoter(build_network(UNEVEN), UNEVEN)
    with pytest.raises(ConfigError, match=r"rot90 turns y into x.*\(1, 3, 2\).*network\.strides"):
        ViewsVoter(voter, ("rot180", "rot90"))
    assert ViewsVoter(voter, ("rot180",)).halo_vox == voter.halo_vox
    # Equal in total is not enough: the levels between look different distances along y and x.
    with pytest.raises(ConfigError, match="rot270"):
        resolve_views(("rot270",), (), ((1, 2, 1), (1, 1, 2)))


def test_views_that_swap_axes_look_as_far_along_y_as_along_x() -> None:
    assert halo_of_views((1, 2, 3), ("flip_x", "rot180")) == (1, 2, 3)
    assert halo_of_views((1, 2, 3), ("flip_x", "rot90")) == (1, 3, 3)


def test_flips_stands_for_the_axes_that_the_network_was_trained_to_be_flipped_along() -> None:
    assert resolve_views(("flips", "darker"), (2, 0), ()) == ("flip_z", "flip_x", "darker")
    assert resolve_views(("flips", "darker"), (), ()) == ("darker",)
    assert resolve_views(("flip_x", "flips"), (2,), ()) == ("flip_x",)
    with pytest.raises(ConfigError, match=r"`flips` alone.*train\.flips, which names none"):
        resolve_views(("flips",), (), ())


def test_a_network_may_ask_for_contiguous_windows() -> None:
    class Viewing:
        name, halo_vox, stride_zyx, n_passes = "viewing", (0, 0, 0), (1, 1, 1), 1

        def passes(self, window_czyx, core=None):
            yield window_czyx.view(-1).view(window_czyx.shape)

    window = torch.arange(24.0).reshape(1, 2, 3, 4)
    for found in ViewsVoter(Viewing(), ("rot90", "flip_x", "rot270")).passes(window):
        assert torch.equal(found, window)


@pytest.mark.parametrize(
    ("text", "told"), [("flip_w", "'flip_w' is no view"), ("darker darker", "named twice")]
)
def test_unknown_and_repeated_views_are_refused_with_the_known_ones(text, told) -> None:
    with pytest.raises(ConfigError, match=f"{told}.*flip_z.*contrast"):
        parse_views(text)
