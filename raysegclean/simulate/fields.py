"""Smooth random fields and scanner noise, for cases that are made rather than scanned."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["Field", "scanner_noise", "spline"]

Field = NDArray[np.float32]


def spline(nodes_zyx: Field, axes: Sequence[Field]) -> Field:
    """Evaluate a uniform cubic B-spline with these nodes at the product of the axes (-1..1)."""
    value = nodes_zyx
    for axis, positions in enumerate(axes):
        weights = _spline_weights(positions, nodes_zyx.shape[axis])
        value = np.moveaxis(np.tensordot(weights, value, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(value)


def _spline_weights(positions: Field, nodes: int) -> Field:
    """Return the weight of each node at each position (positions, nodes); rows sum to 1."""
    at = (positions + 1) / 2 * (nodes - 3)
    first = np.clip(np.floor(at).astype(int), 0, nodes - 4)
    t = at - first
    basis = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    weights = np.zeros((positions.size, nodes), np.float32)
    for step, values in enumerate(basis):
        weights[np.arange(positions.size), first + step] = values / 6
    return weights


def scanner_noise(rng: np.random.Generator, shape_yx: tuple[int, int]) -> Field:
    """Return noise of unit spread with the short correlation that a CT kernel leaves."""
    white = rng.standard_normal(shape_yx, np.float32)
    grainy = ndimage.gaussian_filter(white, 0.5, mode="wrap")
    return np.asarray(grainy / grainy.std())
