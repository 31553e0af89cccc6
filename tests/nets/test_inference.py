"""Tiles with halos against the whole volume, on the geometries where tilers go wrong."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegclean.errors import ConfigError
from raysegclean.nets.inference import Tiling, iter_tile_probs, padded_shape, read_window, tiles
from raysegclean.nets.networks import build_network
from raysegclean.nets.receptive import receptive_radius, total_stride
from raysegclean.nets.unet import NetworkSpec, UNet
from raysegclean.nets.voters import DropoutVoter, EnsembleVoter, NetworkVoter
from raysegclean.voxels.geometry import Box, Index3
from raysegclean.voxels.resampling import WorkingGrid

torch.set_num_threads(1)

SPECS = [
    NetworkSpec(classes=3, widths=(3, 4), strides=((2, 2, 2),)),
    NetworkSpec(classes=3, widths=(3, 4), strides=((1, 2, 2),)),
    NetworkSpec(classes=2, widths=(2, 3, 4), strides=((1, 2, 2), (2, 2, 2))),
    NetworkSpec(classes=2, widths=(2, 3), strides=((1, 3, 2),)),
    NetworkSpec(classes=3, dims=2, widths=(3, 4), strides=((1, 2, 2),)),
    NetworkSpec(classes=2, widths=(3,), strides=()),
]
edge = st.integers(1, 21)
shapes = st.tuples(edge, edge, edge)
tile_shapes = st.tuples(*[st.integers(1, 17)] * 3)


def noisy_net(spec: NetworkSpec, seed: int = 0) -> UNet:
    """Return a random network in eval mode whose batch norms do something."""
    net = build_network(spec, seed).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 1.5)
            module.bias.data.uniform_(-0.3, 0.3)
    return net


def whole_logits(net: UNet, image: np.ndarray, spec: NetworkSpec) -> torch.Tensor:
    """The definition: pad the far ends with edge values, one forward pass, crop."""
    pads = [(0, 0)] + [
        (0, -n % s) for n, s in zip(image.shape[1:], total_stride(spec), strict=True)
    ]
    with torch.no_grad():
        logits = net(torch.from_numpy(np.pad(image, pads, mode="edge"))[None])[0]
    return logits[:, : image.shape[1], : image.shape[2], : image.shape[3]]


def native(shape: Index3) -> WorkingGrid:
    return WorkingGrid.of(shape, (1.0, 1.0, 1.0), None)


def tiled_logits(
    net: UNet, image: np.ndarray, spec: NetworkSpec, tiling: Tiling, box: Box
) -> torch.Tensor:
    shape = image.shape[1:]
    out = torch.full((spec.classes, *shape), torch.nan, dtype=torch.float64)
    for tile in tiles(box, native(shape), tiling):
        window = torch.from_numpy(image_in(image, tile.window))
        with torch.no_grad():
            logits = net(window[None])[0]
        crop = tile.core.relative_to(tile.window).slices
        assert out[(slice(None), *tile.core.slices)].isnan().all(), "a voxel was predicted twice"
        out[(slice(None), *tile.core.slices)] = logits[(slice(None), *crop)].double()
    return out


def image_in(image: np.ndarray, window: Box) -> np.ndarray:
    """Cut a window, repeating the last voxel of each axis beyond the far end."""
    for axis, (start, stop) in enumerate(zip(window.start_zyx, window.stop_zyx, strict=True)):
        index = np.minimum(np.arange(start, stop), image.shape[1 + axis] - 1)
        image = np.take(image, index, axis=1 + axis)
    return image


def exact_tiling(spec: NetworkSpec, tile: tuple[int, int, int]) -> Tiling:
    return Tiling(tile, receptive_radius(spec), total_stride(spec))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(SPECS), shapes, tile_shapes, st.data())
def test_tiles_of_any_box_equal_the_whole_volume(spec, shape, tile, data) -> None:
    # In double precision a seam error of 1e-9 is visible; in single it would hide in rounding.
    net = noisy_net(spec).double()
    image = np.random.default_rng(0).normal(size=(1, *shape))
    start = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    stop = tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(start, shape, strict=True))
    box = Box(start, stop)
    tiled = tiled_logits(net, image, spec, exact_tiling(spec, tile), box)
    whole = whole_logits(net, image, spec)
    inside = (slice(None), *box.slices)
    torch.testing.assert_close(tiled[inside], whole[inside], atol=1e-11, rtol=1e-11)
    assert int((~tiled.isnan()).sum()) == spec.classes * box.voxels


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(SPECS), shapes, tile_shapes)
def test_in_single_precision_logits_agree_to_1e5_and_labels_exactly(spec, shape, tile) -> None:
    net = noisy_net(spec)
    image = np.random.default_rng(1).normal(size=(1, *shape)).astype(np.float32)
    whole = whole_logits(net, image, spec).double()
    tiled = tiled_logits(net, image, spec, exact_tiling(spec, tile), Box.whole(shape))
    torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=0)
    assert torch.equal(tiled.argmax(0), whole.argmax(0))


def test_a_halo_that_is_too_small_is_seen_by_this_test() -> None:
    spec, shape = SPECS[0], (18, 18, 18)
    net = noisy_net(spec).double()
    image = np.random.default_rng(2).normal(size=(1, *shape))
    z, y, x = receptive_radius(spec)
    small = Tiling((6, 6, 6), (z - 4, y - 4, x - 4), total_stride(spec))
    tiled = tiled_logits(net, image, spec, small, Box.whole(shape))
    assert (tiled - whole_logits(net, image, spec)).abs().max() > 1e-9


@pytest.mark.parametrize("spec", SPECS[:2] + SPECS[4:5], ids=["3d", "anisotropic", "2d"])
@pytest.mark.parametrize("kind", ["network", "ensemble", "dropout"])
def test_every_voter_gives_the_same_probabilities_for_every_tiling(spec, kind) -> None:
    shape = (7, 19, 14)
    voter = {
        "network": lambda: NetworkVoter(noisy_net(spec), spec),
        "ensemble": lambda: EnsembleVoter([NetworkVoter(noisy_net(spec, s), spec) for s in (1, 2)]),
        "dropout": lambda: DropoutVoter(noisy_net(spec), spec, n_passes=3, seed=9),
    }[kind]()
    image = np.random.default_rng(3).normal(size=(1, *shape)).astype(np.float32)
    answers = []
    for tile in [(64, 64, 64), (3, 8, 5)]:
        tiling = Tiling(tile, voter.halo_vox, voter.stride_zyx)
        prob = torch.zeros(voter.n_passes, spec.classes, *shape)
        read = lambda box: image[(slice(None), *box.slices)]  # noqa: E731
        for one_tile, passes in iter_tile_probs(
            voter, read, Box.whole(shape), native(shape), tiling
        ):
            for number, one in enumerate(passes):
                prob[(number, slice(None), *one_tile.core.slices)] = one
        answers.append(prob)
    torch.testing.assert_close(answers[0].sum(1), torch.ones_like(answers[0][:, 0]))
    torch.testing.assert_close(answers[0], answers[1], atol=1e-5, rtol=0)
    assert torch.equal(answers[0].argmax(1), answers[1].argmax(1))
    if kind != "network":
        assert not torch.allclose(answers[0][0], answers[0][1], atol=1e-3), "passes must differ"


@settings(max_examples=60, deadline=None)
@given(shapes, tile_shapes, tile_shapes, st.tuples(*[st.sampled_from([1, 2, 4])] * 3))
def test_windows_keep_to_the_lattice_and_the_padded_volume(shape, tile, halo, stride) -> None:
    tiling = Tiling(tile, halo, stride)
    padded = Box.whole(padded_shape(shape, stride))
    for one in tiles(Box.whole(shape), native(shape), tiling):
        assert one.window == one.window.clipped(padded)
        for a, b, s in zip(one.window.start_zyx, one.window.stop_zyx, stride, strict=True):
            assert a % s == 0 and b % s == 0 and b > a
        grown = one.core.grown(halo).clipped(padded)
        assert grown == grown.clipped(one.window)


def test_a_case_that_fits_is_one_window_padded_up_to_the_stride_only() -> None:
    tiling = Tiling((64, 64, 64), (20, 20, 20), (2, 4, 4))
    (one,) = tiles(Box.whole((7, 9, 1)), native((7, 9, 1)), tiling)
    assert one.core == Box.whole((7, 9, 1))
    assert one.window == Box.whole((8, 12, 4))


def test_a_window_reads_inside_the_case_and_repeats_its_last_voxels() -> None:
    image = np.arange(2 * 3, dtype=np.float32).reshape(1, 1, 2, 3)
    seen = []

    def read(box: Box) -> np.ndarray:
        seen.append(box)
        return image[(slice(None), *box.slices)]

    window = read_window(read, Box((0, 0, 2), (1, 4, 4)), (1, 2, 3))
    assert seen == [Box((0, 0, 2), (1, 2, 3))]
    np.testing.assert_array_equal(window[0, 0], [[2, 2], [5, 5], [5, 5], [5, 5]])


def test_nothing_is_read_or_predicted_before_it_is_asked_for() -> None:
    log = []

    class Slow:
        name, halo_vox, stride_zyx, n_passes = "slow", (0, 0, 0), (1, 1, 1), 2

        def passes(self, window_czyx: torch.Tensor, core=None) -> Iterator[torch.Tensor]:
            for number in range(2):
                log.append(f"pass {number}")
                yield window_czyx

    def read(box: Box) -> np.ndarray:
        log.append("read")
        return np.zeros((1, *box.shape_zyx), np.float32)

    walk = iter_tile_probs(
        Slow(), read, Box.whole((1, 1, 2)), native((1, 1, 2)), Tiling((1, 1, 1), (0,) * 3)
    )
    assert log == []
    _, passes = next(walk)
    assert log == ["read"]
    next(passes)
    assert log == ["read", "pass 0"]
    next(walk)
    assert log == ["read", "pass 0", "read"]


def test_a_tiling_off_the_lattice_of_the_voter_is_refused() -> None:
    voter = NetworkVoter(noisy_net(SPECS[0]), SPECS[0])
    walk = iter_tile_probs(
        voter, lambda box: np.zeros((1, *box.shape_zyx)), Box.whole((4, 4, 4)),
        native((4, 4, 4)),
        Tiling((4, 4, 4), (4, 4, 4), (1, 2, 2)),
    )  # fmt: skip
    with pytest.raises(ConfigError, match="no multiple of the stride"):
        next(walk)


MEASURE = """
import sys, torch
from raysegclean.nets.memory import bytes_per_voxel
from raysegclean.nets.networks import build_network
from raysegclean.nets.unet import NetworkSpec
from raysegclean.nets.voters import NetworkVoter

def taken(field):  # not ru_maxrss, which begins with the size of the process that started this one
    status = open("/proc/self/status").read()
    return int(status.split(field)[1].split()[0]) * 1024

torch.set_num_threads(1)
classes, width = int(sys.argv[1]), int(sys.argv[2])
spec = NetworkSpec(classes=classes, widths=(width, 8), strides=((2, 2, 2),), name=sys.argv[3])
voter = NetworkVoter(build_network(spec), spec)
list(voter.passes(torch.zeros(1, 8, 8, 8)))
before = taken("VmRSS:")
list(voter.passes(torch.zeros(1, 80, 80, 80)))
print((taken("VmHWM:") - before) / (bytes_per_voxel(spec) * 80**3))
"""


@pytest.mark.numeric
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.skipif(
    os.environ.get("ONEDNN_MAX_CPU_ISA") == "SSE41",
    reason="without AVX2, which every processor since 2015 has, oneDNN unfolds images first",
)
@pytest.mark.parametrize(
    ("classes", "width", "name"),
    [(3, 8, "unet"), (12, 8, "unet"), (3, 8, "raysegclean.nets.unet:build")],
    ids=["formula", "many classes", "measured"],
)
def test_memory_stays_within_its_estimate_and_not_far_below(classes, width, name) -> None:
    command = [sys.executable, "-c", MEASURE, str(classes), str(width), name]
    used = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert 0.5 < used <= 1.0
