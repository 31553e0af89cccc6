"""Windows of one size: where nnU-Net's predictor lays them, and weighted as it weighs them."""

from itertools import product
from math import ceil

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from raysegclean.nets.inference import Tiling
from raysegclean.voxels.geometry import Box, Index3

from .test_averaged_windows import Reading, answer, instance_voter

torch.set_num_threads(1)
STRIDE = (1, 1, 1)


def tiling_of(window: Index3) -> Tiling:
    halo = tuple(n // 4 for n in window)
    tile = tuple(n - 2 * h for n, h in zip(window, halo, strict=True))
    return Tiling(tile, halo, STRIDE, averaged=True, window_zyx=window)


def by_hand(voter, image: np.ndarray, window: Index3) -> torch.Tensor:
    """Pad with zeros on both sides, go half a window at most, weigh logits by a filtered point."""
    pads = [max(0, w - n) for w, n in zip(window, image.shape[1:], strict=True)]
    padded = np.pad(image, [(0, 0), *((p // 2, p - p // 2) for p in pads)])
    point = np.zeros(window)
    point[tuple(n // 2 for n in window)] = 1
    weight = gaussian_filter(point, [n / 8 for n in window], mode="constant")
    weight = np.maximum(weight / weight.max(), 2.0**-24 / 10)  # ten times that is the least half
    starts = []
    for length, w in zip(padded.shape[1:], window, strict=True):
        steps = ceil((length - w) / (w / 2)) if w > 1 else length - w
        starts.append([round((length - w) / max(steps, 1) * n) for n in range(steps + 1)])
    total, weights = 0.0, np.zeros(padded.shape[1:])
    for corner in product(*starts):
        at = tuple(slice(a, a + w) for a, w in zip(corner, window, strict=True))
        seen = torch.from_numpy(np.ascontiguousarray(padded[(slice(None), *at)]))
        logs = torch.stack(list(voter.passes(seen))).double().log().numpy()
        share = np.zeros((*logs.shape[:2], *padded.shape[1:]))
        share[(..., *at)] = logs * weight
        total = total + share
        weights[at] += weight
    inside = tuple(slice(p // 2, p // 2 + n) for p, n in zip(pads, image.shape[1:], strict=True))
    logits = torch.from_numpy(np.asarray(total / weights)[(..., *inside)])
    return torch.softmax(logits, dim=1).float()


@pytest.mark.parametrize(
    ("shape", "window"),
    [((13, 21, 9), (8, 8, 8)), ((5, 20, 7), (8, 11, 10)), ((4, 13, 9), (1, 8, 8))],
)
def test_windows_lie_and_weigh_as_those_of_nnunet(shape: Index3, window: Index3) -> None:
    image = np.random.default_rng(3).normal(size=(1, *shape)).astype(np.float32)
    for voter in (Reading(), instance_voter(1)):
        whole = answer(voter, image, Box.whole(shape), tiling_of(window))
        torch.testing.assert_close(whole, by_hand(voter, image, window), atol=1e-5, rtol=0)


def test_any_box_of_such_a_case_has_the_bits_of_the_whole() -> None:
    shape, window = (13, 21, 9), (8, 9, 12)
    image = np.random.default_rng(4).normal(size=(1, *shape)).astype(np.float32)
    whole = answer(Reading(), image, Box.whole(shape), tiling_of(window))
    for box in (Box((0, 0, 0), (6, 12, 9)), Box((6, 12, 3), (13, 21, 9)), Box((5,) * 3, (6,) * 3)):
        part = answer(Reading(), image, box, tiling_of(window))
        assert torch.equal(part, whole[(..., *box.slices)])
