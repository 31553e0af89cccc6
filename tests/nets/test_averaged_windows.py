"""Windows of a network that looks at them: averaged the same way whoever asks for which box."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegclean.nets.inference import Seams, Tiling, iter_tile_probs, needed_window, padded_shape
from raysegclean.nets.networks import build_network
from raysegclean.nets.unet import NetworkSpec
from raysegclean.nets.voters import EnsembleVoter, NetworkVoter
from raysegclean.voxels.geometry import Box, Index3
from raysegclean.voxels.resampling import WorkingGrid

from .own_networks import PATH

torch.set_num_threads(1)

SPEC = NetworkSpec(classes=3, widths=(3,), strides=(), dropout=0.0, name=f"{PATH}:instance")
edge = st.integers(1, 19)
shapes = st.tuples(edge, edge, edge)
small = st.integers(1, 6)
tilings = st.builds(
    lambda tile, halo, stride: Tiling(
        tuple(-(-t // s) * s for t, s in zip(tile, stride, strict=True)),
        halo,
        stride,
        averaged=True,
    ),
    st.tuples(small, small, small),
    st.tuples(*[st.integers(0, 5)] * 3),
    st.tuples(*[st.sampled_from([1, 2, 4])] * 3),
)


def instance_voter(seed: int = 0) -> NetworkVoter:
    return NetworkVoter(build_network(SPEC, seed), SPEC)


class Reading:
    """Stands for a network: says what it is shown, times how bright the whole window is."""

    name, halo_vox, stride_zyx, n_passes = "reading", (0, 0, 0), (1, 1, 1), 2

    def passes(self, window_czyx: torch.Tensor):
        for power in (1, 2):
            seen = torch.sigmoid(window_czyx[:1] * window_czyx.mean()) ** power
            yield torch.cat([1 - seen, seen])


def answer(voter, image: np.ndarray, box: Box, tiling: Tiling, seams=None) -> torch.Tensor:
    shape: Index3 = image.shape[1:]
    out = None
    grid = WorkingGrid.of(shape, (1.0, 1.0, 1.0), None)
    allowed = needed_window(box, grid, tiling)

    def read(wanted: Box) -> np.ndarray:
        assert wanted == wanted.clipped(allowed), "reads more than it said"
        return image[(slice(None), *wanted.slices)]

    for tile, passes in iter_tile_probs(voter, read, box, grid, tiling, seams):
        for number, prob in enumerate(passes):
            if out is None:
                out = torch.full((voter.n_passes, len(prob), *box.shape_zyx), torch.nan)
            here = out[(number, slice(None), *tile.core.relative_to(box).slices)]
            assert here.isnan().all(), "a voxel was answered twice"
            here.copy_(prob)
    assert not out.isnan().any(), "a voxel was left out"
    return out


@settings(max_examples=40, deadline=None)
@given(shapes, tilings, st.data())
def test_any_box_of_a_case_has_the_bits_of_the_whole_case(shape, tiling, data) -> None:
    image = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    start = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    stop = tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(start, shape, strict=True))
    whole = answer(Reading(), image, Box.whole(shape), tiling)
    part = answer(Reading(), image, Box(start, stop), tiling)
    assert torch.equal(part, whole[(..., *Box(start, stop).slices)])


def test_the_parts_of_a_real_network_make_up_the_whole_to_the_bit() -> None:
    shape = (11, 23, 17)
    image = np.random.default_rng(1).normal(size=(1, *shape)).astype(np.float32)
    voter = EnsembleVoter([instance_voter(1), instance_voter(2)])
    tiling = Tiling((4, 6, 5), (2, 3, 3), averaged=True)
    whole = answer(voter, image, Box.whole(shape), tiling)
    for box in (Box((0, 0, 0), (6, 12, 17)), Box((6, 12, 3), (11, 23, 9)), Box((5,) * 3, (6,) * 3)):
        assert torch.equal(answer(voter, image, box, tiling), whole[(..., *box.slices)])
    torch.testing.assert_close(whole.sum(1), torch.ones_like(whole[:, 0]))


def starts_by_hand(length: int, tile: int, halo: int, stride: int) -> list[tuple[int, int]]:
    """As few windows of one size as lie at most a tile apart, spread evenly."""
    window = min(int(np.ceil((tile + 2 * halo) / stride)) * stride, length)
    count = 1 + int(np.ceil((length - window) / tile))
    even = np.linspace(0, length - window, count)
    return [(int(a + 1e-9) // stride * stride, window) for a in even]


@settings(max_examples=25, deadline=None)
@given(st.tuples(*[st.integers(1, 12)] * 3), tilings)
def test_the_mean_is_weighted_by_the_distance_from_the_faces_of_each_window(shape, tiling) -> None:
    image = np.random.default_rng(2).normal(size=(1, *shape))
    padded = padded_shape(shape, tiling.stride_zyx)
    full = np.pad(
        image, [(0, 0), *((0, p - n) for p, n in zip(padded, shape, strict=True))], "edge"
    )
    axes = [
        starts_by_hand(*numbers)
        for numbers in zip(padded, tiling.tile_zyx, tiling.halo_vox, tiling.stride_zyx, strict=True)
    ]
    total, weights = np.zeros((2, *padded)), np.zeros(padded)
    for z, dz in axes[0]:
        for y, dy in axes[1]:
            for x, dx in axes[2]:
                where = (slice(z, z + dz), slice(y, y + dy), slice(x, x + dx))
                window = full[(slice(None), *where)]
                near = [1 + np.minimum(np.arange(n), np.arange(n)[::-1]) for n in (dz, dy, dx)]
                weight = np.einsum("z,y,x->zyx", *near).astype(float)
                seen = 1 / (1 + np.exp(-window[0] * window.mean()))
                total[0][where] += weight * seen
                total[1][where] += weight * seen**2
                weights[where] += weight
    expected = (total / weights)[(slice(None), *(slice(0, n) for n in shape))]
    found = answer(Reading(), image.astype(np.float32), Box.whole(shape), tiling)
    np.testing.assert_allclose(found[:, 1].numpy(), expected, atol=2e-5)


def test_seams_are_measured_where_windows_overlap_and_nowhere_else() -> None:
    """Two windows of 4 along x that share 2 voxels; each says its own mean everywhere."""

    class Mean:
        name, halo_vox, stride_zyx, n_passes = "mean", (0, 0, 0), (1, 1, 1), 1

        def passes(self, window_czyx: torch.Tensor):
            seen = torch.full_like(window_czyx, float(window_czyx.mean()))
            yield torch.cat([1 - seen, seen])

    image = np.array([0, 0, 0, 0, 1, 1], np.float32).reshape(1, 1, 1, 6)
    seams = Seams()
    tiling = Tiling((1, 1, 2), (0, 0, 1), averaged=True)
    found = answer(Mean(), image, Box.whole((1, 1, 6)), tiling, seams)
    # Windows 0..3 and 2..5 say 0 and 0.5; voxel 2 lies second from a face of the first and first
    # of the second: weights 2 and 1, then 1 and 2.
    np.testing.assert_allclose(found[0, 1, 0, 0], [0, 0, 1 / 6, 1 / 3, 0.5, 0.5], atol=1e-6)
    assert seams.count == 2
    variance = 2 * (2 / 3 * 1 / 3) * 0.5**2  # over both classes, the same at both voxels
    assert abs(seams.square / Seams.SCALE - 2 * variance) < 1e-5


def test_a_network_that_does_not_look_at_its_window_has_no_seam_away_from_borders() -> None:
    seams = Seams()
    spec = NetworkSpec(classes=3, widths=(3,), strides=(), dropout=0.0)
    voter = NetworkVoter(build_network(spec), spec)
    image = np.random.default_rng(3).normal(size=(1, 28, 28, 28)).astype(np.float32)
    tiling = Tiling((4, 4, 4), (8, 8, 8), averaged=True)
    averaged = answer(voter, image, Box.whole((28, 28, 28)), tiling, seams)
    plain = answer(voter, image, Box.whole((28, 28, 28)), Tiling((28,) * 3, (0,) * 3))
    away = (..., slice(10, 18), slice(10, 18), slice(10, 18))
    assert (averaged - plain)[away].abs().max() < 0.02
    assert 0 < seams.square / Seams.SCALE / seams.count < 1e-2
