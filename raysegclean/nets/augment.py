"""Augmentation of a batch on its device: a pure function of (seed, step, sample).

Rotation and scale in millimetres, noise, blur, brightness, contrast, low resolution and gamma, each
with the probability that nnU-Net gives it (Isensee et al. 2021), rotation and scale within
narrower ranges: labels of anatomy are tied to its pose. Labels follow by the nearest voxel, and are
`IGNORE` where the patch has none. Flips are drawn with the patches (sampling.py).

A sample is named by its number in the step's whole batch, so data-parallel ranks and processes do
the same to it. Equal bits on CPU for the same key.

Off unless `train.augment` says otherwise: what it gains in long trainings is not measured. Tried
once for 240 steps on 100 hippocampi, it cost .03 of Dice.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from raysegclean.nets.batch import Batch
from raysegclean.voxels.channels import IGNORE

__all__ = ["augment"]

_UNIT = 2.0**-53
_TURN = math.radians(15.0)
_ZOOM = (0.8, 1.25)
_THICK = 3.0
"""Planes whose spacing is so many times that within them are turned in plane only."""

Draw = Iterator[float]
"""Uniform numbers in [0, 1)."""


def augment(
    batch: Batch,
    seed: int,
    spacing_mm: Sequence[tuple[float, float, float]],
    *,
    first: int = 0,
    every: int = 1,
) -> Batch:
    """Return the batch with each sample changed by the draws of (seed, step, number).

    spacing_mm: of each sample's voxels, z y x. first, every: sample n of `batch` is number
    `first + n * every` of the step.
    """
    pairs = [
        _augmented(image, label, spacing, _Draws(seed, batch.step, first + n * every))
        for n, (image, label, spacing) in enumerate(
            zip(batch.image, batch.label, spacing_mm, strict=True)
        )
    ]
    images, labels = zip(*pairs, strict=True)
    return replace(batch, image=torch.stack(images), label=torch.stack(labels))


class _Draws:
    """The numbers of one sample; every kind of change has its own, so none moves another."""

    def __init__(self, seed: int, step: int, number: int) -> None:
        self._key = f"{seed}/{step}/{number}"

    def of(self, kind: str, chance: float) -> Draw | None:
        """Return draws for a change of this kind, None where it is not due."""
        rng = self._philox(kind)
        uniform = ((int(raw) >> 11) * _UNIT for raw in iter(rng.random_raw, None))
        return uniform if next(uniform) < chance else None

    def noise(self, shape: torch.Size) -> Tensor:
        """Return standard normal numbers (Box and Muller 1958), on the CPU."""
        count = math.prod(shape)
        raw = self._philox("values").random_raw(count + count % 2)
        radius, angle = np.split((raw >> np.uint64(11)).astype(np.float64) * _UNIT, 2)
        radius = np.sqrt(-2.0 * np.log1p(-radius))
        both = (radius * np.cos(2 * np.pi * angle), radius * np.sin(2 * np.pi * angle))
        return torch.from_numpy(np.concatenate(both)[:count].astype(np.float32)).reshape(shape)

    def _philox(self, kind: str) -> np.random.Philox:
        digest = blake2b(f"{self._key}/{kind}".encode(), digest_size=16).digest()
        return np.random.Philox(key=int.from_bytes(digest, "little"))


def _augmented(
    image: Tensor, label: Tensor, spacing_mm: tuple[float, float, float], draws: _Draws
) -> tuple[Tensor, Tensor]:
    turn, zoom = draws.of("rotation", 0.2), draws.of("scale", 0.2)
    if turn or zoom:
        angles = _angles(turn, image.shape[1:], spacing_mm) if turn else (0.0, 0.0, 0.0)
        factor = _between(next(zoom), *_ZOOM) if zoom else 1.0
        image, label = _moved(image, label, _theta(angles, factor, image.shape[1:], spacing_mm))
    if drawn := draws.of("noise", 0.1):
        image = image + math.sqrt(0.1 * next(drawn)) * draws.noise(image.shape).to(image.device)
    for kind, chance, change in _LIGHTS:
        if drawn := draws.of(kind, chance):
            image = change(image, drawn)
    return image, label


def _between(uniform: float, low: float, high: float) -> float:
    return low + uniform * (high - low)


def _angles(
    drawn: Draw, shape_zyx: Sequence[int], spacing_mm: tuple[float, float, float]
) -> tuple[float, float, float]:
    """Return the turns about z, y and x; those that mix thick planes are left out."""
    z, y, x = (_between(next(drawn), -_TURN, _TURN) for _ in range(3))
    flat = shape_zyx[0] == 1 or spacing_mm[0] > _THICK * max(spacing_mm[1:])
    return (z, 0.0, 0.0) if flat else (z, y, x)


def _theta(
    angles: tuple[float, float, float],
    factor: float,
    shape_zyx: Sequence[int],
    spacing_mm: tuple[float, float, float],
) -> Tensor:
    """Return the (1, 3, 4) matrix from places in the new patch to places in the old one.

    In torch's units: x y z, from -1 to 1 between the patch's faces.
    """
    turn = np.eye(3)
    for axis, angle in zip((2, 1, 0), angles, strict=True):  # about z, y, x; coordinates x y z
        first, second = (a for a in range(3) if a != axis)
        plane = np.eye(3)
        plane[first, first] = plane[second, second] = math.cos(angle)
        plane[first, second], plane[second, first] = -math.sin(angle), math.sin(angle)
        turn = turn @ plane
    half_mm = np.array([n * s / 2 for n, s in zip(shape_zyx, spacing_mm, strict=True)])[::-1]
    matrix = turn / factor * half_mm[np.newaxis] / half_mm[:, np.newaxis]
    return torch.from_numpy(np.hstack([matrix, np.zeros((3, 1))]).astype(np.float32))[None]


def _moved(image: Tensor, label: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    size = [1, 1, *image.shape[1:]]
    grid = functional.affine_grid(theta.to(image.device), size, align_corners=False)
    moved = functional.grid_sample(image[None], grid, "bilinear", "border", align_corners=False)
    # Beyond the patch a sample is 0: labels count from there.
    raised = (label - IGNORE).to(image.dtype)[None, None]
    near = functional.grid_sample(raised, grid, "nearest", "zeros", align_corners=False)
    return moved[0], near[0, 0].round().to(label.dtype) + IGNORE


def _blurred(image: Tensor, drawn: Draw) -> Tensor:
    sigma = _between(next(drawn), 0.5, 1.0)
    weights = torch.tensor([math.exp(-0.5 * (n / sigma) ** 2) for n in range(-3, 4)])
    weights = (weights / weights.sum()).to(image)
    out = image[:, None]
    for axis, n in enumerate(image.shape[1:]):
        if n > 1:
            shape = [7 if a == axis else 1 for a in range(3)]
            padding = [0, 0, 0, 0, 0, 0]
            padding[2 * (2 - axis) : 2 * (2 - axis) + 2] = (3, 3)
            padded = functional.pad(out, padding, mode="replicate")
            out = functional.conv3d(padded, weights.reshape(1, 1, *shape))
    return out[:, 0]


def _brightened(image: Tensor, drawn: Draw) -> Tensor:
    return image * _between(next(drawn), 0.75, 1.25)


def _contrasted(image: Tensor, drawn: Draw) -> Tensor:
    """Return the image spread about its mean, within its old range."""
    mean = image.mean(dim=(1, 2, 3), keepdim=True)
    low, high = image.aminmax()
    return ((image - mean) * _between(next(drawn), 0.75, 1.25) + mean).clamp(low, high)


def _coarsened(image: Tensor, drawn: Draw) -> Tensor:
    """Return the image as if it had been scanned coarser."""
    factor = _between(next(drawn), 0.5, 1.0)
    shape = [max(1, round(n * factor)) for n in image.shape[1:]]
    coarse = functional.interpolate(image[None], shape, mode="nearest")
    fine = functional.interpolate(
        coarse, list(image.shape[1:]), mode="trilinear", align_corners=False
    )
    return fine[0]


def _bent(image: Tensor, drawn: Draw, *, inverted: bool) -> Tensor:
    """Return the image after a gamma curve, with the mean and deviation that it had."""
    sign = -1.0 if inverted else 1.0
    image = sign * image
    low, high = image.aminmax()
    if high <= low:
        return sign * image
    unit = (image - low) / (high - low)
    bent = unit.pow(_between(next(drawn), 0.7, 1.5))
    scale = image.std() / bent.std().clamp(min=1e-6)
    return sign * ((bent - bent.mean()) * scale + image.mean())


_LIGHTS: Sequence[tuple[str, float, Callable[[Tensor, Draw], Tensor]]] = (
    ("blur", 0.2, _blurred),
    ("brightness", 0.15, _brightened),
    ("contrast", 0.15, _contrasted),
    ("low resolution", 0.25, _coarsened),
    ("inverted gamma", 0.1, lambda image, drawn: _bent(image, drawn, inverted=True)),
    ("gamma", 0.3, lambda image, drawn: _bent(image, drawn, inverted=False)),
)
