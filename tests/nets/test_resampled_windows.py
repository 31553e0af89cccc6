"""Windows on the working grid answer for native voxels, whoever cuts the case."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegclean.nets import inference
from raysegclean.nets.inference import Tiling, iter_tile_probs, needed_window
from raysegclean.nets.networks import build_network
from raysegclean.nets.unet import NetworkSpec
from raysegclean.nets.voters import NetworkVoter
from raysegclean.voxels.geometry import Box, Index3, triple
from raysegclean.voxels.resampling import WorkingGrid

SPEC = NetworkSpec(3, 1, 3, (4, 6), ((1, 2, 2),), 0.0)
SHAPE: Index3 = (13, 30, 26)
SPACING = (2.0, 1.0, 0.9)
GRIDS = [
    WorkingGrid(SHAPE, SPACING, working)
    for working in [(2.0, 1.7, 1.7), (4.0, 1.7, 0.9), (1.1, 1.1, 1.1), (0.0, 2.3, 0.7)]
]


class Pointwise:
    """Two passes that depend on a voxel alone, so that any cut gives the same bits."""

    name, halo_vox, stride_zyx, n_passes = "pointwise", (0, 0, 0), (1, 1, 1), 2

    def passes(self, window_czyx: torch.Tensor, core: Box | None = None):
        if core is not None:
            window_czyx = window_czyx[(slice(None), *core.slices)]
        seen = window_czyx[:1].clamp(0, 1)  # no function that rounds otherwise at a window's end
        yield torch.cat([1 - seen, seen])
        yield torch.cat([1 - seen * seen, seen * seen])


def _image(grid: WorkingGrid) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(1, *grid.native_zyx)).astype(np.float32)


def _answer(voter, grid: WorkingGrid, tiling: Tiling, boxes: list[Box]) -> torch.Tensor:
    """Answer box by box; each reads what it says it needs, and resamples that alone."""
    image, out = _image(grid), None
    for box in boxes:
        seen = needed_window(box, grid, tiling)
        native = grid.needed_native(seen)
        working = grid.to_working(image[(slice(None), *native.slices)], native, seen)

        def read(wanted: Box, working=working, seen=seen) -> np.ndarray:
            assert wanted == wanted.clipped(seen), "reads more than it said"
            return working[(slice(None), *wanted.relative_to(seen).slices)]

        for tile, passes in iter_tile_probs(voter, read, box, grid, tiling):
            assert tile.core == tile.core.clipped(box)
            for number, prob in enumerate(passes):
                if out is None:
                    out = torch.full((voter.n_passes, len(prob), *grid.native_zyx), torch.nan)
                here = out[(number, slice(None), *tile.core.slices)]
                assert here.isnan().all(), "a voxel was answered twice"
                here.copy_(prob)
    assert not out.isnan().any(), "a voxel was left out"
    return out


def _boxes(shape: Index3, edges: Index3) -> list[Box]:
    starts = product(*(range(0, n, e) for n, e in zip(shape, edges, strict=True)))
    whole = Box.whole(shape)
    return [Box.whole(edges).moved(triple(start)).clipped(whole) for start in starts]


def _voter() -> NetworkVoter:
    torch.manual_seed(0)
    net = build_network(SPEC, seed=1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return NetworkVoter(net.eval(), SPEC)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: str(grid.working_mm))
def test_shards_and_tiles_answer_what_one_pass_over_the_resampled_case_does(
    grid: WorkingGrid,
) -> None:
    voter = _voter()
    native, working = Box.whole(grid.native_zyx), Box.whole(grid.shape_zyx)
    image = grid.to_working(_image(grid), native, working)
    pads = [(0, 0), *((0, -n % s) for n, s in zip(grid.shape_zyx, (1, 2, 2), strict=True))]
    (prob,) = voter.passes(torch.from_numpy(np.pad(image, pads, mode="edge")))
    expected = grid.to_native(prob[(slice(None), *working.slices)].numpy(), working, native)
    for tile, edges in [((64, 64, 64), SHAPE), ((5, 8, 6), SHAPE), ((4, 12, 12), (8, 16, 16))]:
        tiling = Tiling(tile, voter.halo_vox, voter.stride_zyx)
        found = _answer(voter, grid, tiling, _boxes(SHAPE, edges))[0]
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
        assert np.array_equal(found.argmax(0).numpy(), expected.argmax(0))
        torch.testing.assert_close(found.sum(0), torch.ones(SHAPE))


@settings(max_examples=8)
@given(st.sampled_from(GRIDS), st.tuples(*[st.integers(6, 40)] * 3))
def test_no_cut_into_shards_tiles_or_parts_moves_a_bit(grid: WorkingGrid, tile: Index3) -> None:
    whole = _answer(Pointwise(), grid, Tiling((99, 99, 99), (0, 0, 0)), [Box.whole(SHAPE)])
    boxes = _boxes(SHAPE, (8, 16, 16))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "PART_VOX", 700)
        assert torch.equal(_answer(Pointwise(), grid, Tiling(tile, (0, 0, 0)), boxes), whole)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: str(grid.working_mm))
def test_averaged_windows_lie_on_the_working_grid_and_shards_give_the_bits_of_the_case(
    grid: WorkingGrid,
) -> None:
    tiling = Tiling((4, 6, 6), (1, 2, 2), (1, 2, 2), averaged=True)
    whole = _answer(Pointwise(), grid, tiling, [Box.whole(SHAPE)])
    assert torch.equal(_answer(Pointwise(), grid, tiling, _boxes(SHAPE, (8, 16, 16))), whole)
    plain = _answer(Pointwise(), grid, Tiling((99, 99, 99), (0, 0, 0)), [Box.whole(SHAPE)])
    torch.testing.assert_close(whole, plain, atol=1e-5, rtol=0)


def test_a_tensor_is_brought_back_with_the_bits_of_an_array() -> None:
    for grid in GRIDS:
        native, working = Box.whole(grid.native_zyx), Box.whole(grid.shape_zyx)
        prob = np.random.default_rng(1).random((3, *grid.shape_zyx)).astype(np.float32)
        tile = inference.Tile(native, working, working, working, grid)
        found = tile.to_core(torch.from_numpy(prob)).numpy()
        assert np.array_equal(found, grid.to_native(prob, working, native))
