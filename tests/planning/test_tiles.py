"""Tiles: what they compute per voxel that is kept, for every preset, class count and device."""

from dataclasses import replace
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegclean.evidence.cases import CaseImage, Intensity
from raysegclean.nets.inference import Tiling, tiles
from raysegclean.nets.memory import _Alive, computed_per_kept, predicting_bytes
from raysegclean.nets.networks import build_network
from raysegclean.nets.receptive import receptive_radius
from raysegclean.nets.unet import NetworkSpec
from raysegclean.nets.voters import NetworkVoter
from raysegclean.planning.capacity import patch_vox, plan_capacity
from raysegclean.planning.network_plan import WINDOW_BYTES_CPU, WINDOW_BYTES_GPU
from raysegclean.planning.spacing import plan_spacing
from raysegclean.planning.tiles import Windows
from raysegclean.voxels.geometry import Box, Grid
from raysegclean.voxels.resampling import WorkingGrid

torch.set_num_threads(1)

CASE, SHARD, SPACING_MM = (400, 512, 512), (256, 256, 256), (1.5, 1.5, 1.5)
"""A native CT, of which a window never holds the whole."""


def windows_of(preset, classes: int, *, gpu: bool, case=CASE, spacing=SPACING_MM) -> Windows:
    found = plan_capacity(preset, spacing, case, gpu=gpu)
    spec = NetworkSpec(3, 1, classes, found.widths, found.strides, residual=found.residual)
    return Windows(spec, spec.stride_zyx, receptive_radius(replace(spec, classes=2)), case, 0.0)


# By preset and GiB for a window: 4 on CPU, 10 on GPU, 60 as a GPU of 80 GB could lend. Where
# nothing is resampled, halos of 51 voxels leave more than the aim, 2 on GPU and 2.5 on CPU.
AT_MOST = {
    ("small", 4): (1.5, 1.8, 2.0),
    ("small", 10): (1.4, 1.6, 1.7),
    ("small", 60): (1.4, 1.4, 1.4),
    ("base", 4): (3.2, 3.8, 4.3),
    ("base", 10): (2.5, 2.9, 3.4),
    ("base", 60): (1.8, 1.8, 1.8),
    ("large", 4): (8.4, 8.4, 8.4),
    ("large", 10): (3.2, 3.2, 3.8),
    ("large", 60): (1.8, 1.8, 1.8),
}


@pytest.mark.parametrize(("preset", "gib"), AT_MOST)
def test_voxels_computed_per_voxel_kept_are_bounded(preset, gib) -> None:
    for classes, most in zip((4, 61, 105), AT_MOST[preset, gib], strict=True):
        windows = windows_of(preset, classes, gpu=gib > 4)
        tile = windows.tile(SHARD, gib << 30)
        assert windows.taken_bytes(tile) <= gib << 30
        assert windows.cost(tile, SHARD) <= most


@pytest.mark.parametrize("preset", ["small", "base", "large"])
@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("spacing", [(0.8, 0.8, 0.8), (5.0, 0.8, 0.8), (1.5, 1.5, 1.5)])
def test_by_defaults_fewer_voxels_are_computed_than_an_archive_has(preset, gpu, spacing) -> None:
    case = CaseImage(
        case="ct", shape_zyx=CASE, spacing_mm=spacing, intensity=Intensity(0, 0, 1, 1, 0, 1)
    )
    working = plan_spacing([case], patch_vox(gpu=gpu))
    grid, native = WorkingGrid.of(CASE, spacing, working), Grid(CASE, SHARD)
    windows = windows_of(preset, 105, gpu=gpu, case=grid.shape_zyx, spacing=grid.seen_mm)
    shard = grid.needed_working(Box.whole(SHARD)).shape_zyx
    tile = windows.tile(shard, WINDOW_BYTES_GPU if gpu else WINDOW_BYTES_CPU)
    tiling = Tiling(tile, windows.halo_vox, windows.stride_zyx)
    laid = (t for index in native.indices() for t in tiles(native.box(index), grid, tiling))
    assert sum(one.window.voxels for one in laid) <= 0.4 * prod(CASE)


@pytest.mark.parametrize("preset", ["small", "base", "large"])
@pytest.mark.parametrize("classes", [4, 105])
def test_a_body_on_its_working_grid_is_one_window(preset, classes) -> None:
    body = (64, 56, 56)
    windows = windows_of(preset, classes, gpu=False, case=body)
    tile = windows.tile(body, WINDOW_BYTES_CPU)
    assert windows.cost(tile, body) <= 1.15, "rounding up to the stride is all"


@settings(max_examples=30, deadline=None)
@given(st.tuples(*[st.integers(1, 300)] * 3), st.sampled_from([1 << 22, 1 << 30]))
def test_tiles_keep_to_the_stride_and_leave_no_slivers(shape, budget) -> None:
    windows = windows_of("small", 4, gpu=False, case=shape)
    tile = windows.tile(shape, budget)
    for n, t, s in zip(shape, tile, windows.stride_zyx, strict=True):
        assert t % s == 0
        parts = -(-n // t)
        assert n - (parts - 1) * t > t - parts * s, "the last part is about as long as the others"


def test_a_whole_volume_without_halo_computes_each_voxel_once() -> None:
    windows = windows_of("base", 4, gpu=False)
    whole = (64, 64, 64)
    assert computed_per_kept(windows.spec, whole, Box.whole(whole)) == pytest.approx(1)
    inner = Box((16, 16, 16), (48, 48, 48))
    assert 1 < computed_per_kept(windows.spec, whole, inner) < 8


@pytest.mark.parametrize("classes", [3, 60])
@pytest.mark.parametrize("residual", [False, True])
def test_the_predicted_memory_is_above_what_lives_at_once(classes, residual) -> None:
    strides = ((2, 2, 2),) * 2
    spec = NetworkSpec(3, 1, classes, (8, 16, 32), strides, residual=residual)
    voter = NetworkVoter(build_network(spec), spec)
    window, core = (48, 48, 48), Box((16, 16, 12), (32, 36, 40))
    image = torch.zeros(1, *window)
    counter = _Alive()
    with counter:
        list(voter.passes(image, core))
    predicted = predicting_bytes(spec, window, core, 0.0)
    assert counter.peak + image.nbytes <= predicted <= 3 * counter.peak
    assert prod(window) * 4 < predicted
