"""A sample of voxels with the features that a network gives them, by depth within the given label.

Within each band of depth the voxels with the lowest position hashes are kept: a uniform sample that
is the same for any cut of a case into blocks and any order of merging, and that has a fixed size.
The sample does not look at the label of a voxel, because rates of wrong labels are estimated from
it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import edt
import numpy as np
from numpy.typing import NDArray

from raysegclean.evidence.second_pass import Answer, PredictedBlock
from raysegclean.voxels.geometry import Index3
from raysegclean.voxels.hashing import position_hash
from raysegclean.voxels.signed_distance import (
    Spacing,
    axis_ratios,
    distance_halo_vox,
    fine_voxel_mm,
)

__all__ = ["BAND_EDGES_MM", "FeatureLook", "band_halo_vox", "depth_bands"]

BAND_EDGES_MM = (1.0, 3.0, 8.0)
"""Depths at which bands end; the last band has no end."""

_PARTS = ("hashes", "features", "given", "band")


def depth_bands(
    label_zyx: NDArray[np.uint8],
    spacing_mm: Spacing,
    edges_mm: Sequence[float] = BAND_EDGES_MM,
) -> NDArray[np.uint8]:
    """Return the band of every voxel by its depth: how far it is from another label's voxels.

    Depth runs from the boundary (half a voxel less than between centres); background has one too.
    Exact inside a block's core with a halo of `band_halo_vox`.
    """
    unit, ratios = fine_voxel_mm(spacing_mm), axis_ratios(spacing_mm)
    # Zero would be left out as background.
    labels = np.ascontiguousarray(label_zyx.astype(np.uint16) + 1)
    depth_vox = edt.edt(labels, anisotropy=ratios, parallel=1) - np.float32(0.5)
    edges_vox = np.array([edge / unit for edge in edges_mm], np.float32)
    return np.asarray(np.digitize(depth_vox, edges_vox), np.uint8)


def band_halo_vox(spacing_mm: Spacing, edges_mm: Sequence[float] = BAND_EDGES_MM) -> Index3:
    """Return the halo with which `depth_bands` of a block equals that of the case."""
    return distance_halo_vox(max(edges_mm) / fine_voxel_mm(spacing_mm), spacing_mm)


def _half(features: NDArray[np.float32]) -> NDArray[np.float16]:
    """Return the features as float16, beyond whose range they end: infinity has no direction."""
    most = np.finfo(np.float16).max
    return np.clip(np.nan_to_num(features), -most, most).astype(np.float16)


@dataclass(frozen=True)
class FeatureLook:
    """Second look: at most `limit` voxels per band of a case, with features and given label.

    The answer holds hashes (n,) uint64, features (n, F) float16, given (n,) and band (n,) uint8,
    by band and hash.
    """

    limit: int
    edges_mm: tuple[float, ...] = BAND_EDGES_MM
    needs_features = True

    def halo_vox(self, spacing_mm: Spacing) -> Index3:
        """Return the halo of the bands."""
        return band_halo_vox(spacing_mm, self.edges_mm)

    def look(self, block: PredictedBlock, values: Mapping[str, Any]) -> Answer:  # noqa: ARG002
        """Return the sample of the block's core."""
        assert block.features_fzyx is not None
        core = block.core.slices
        band_zyx = depth_bands(block.given_zyx, block.spacing_mm, self.edges_mm)[core]
        hashes, where = self._chosen(block, band_zyx)
        z, y, x = where.T
        features = block.features_fzyx[(slice(None), *core)][:, z, y, x]
        found = {
            "hashes": hashes,
            "features": _half(features.T),
            "given": block.given_zyx[core][z, y, x],
            "band": band_zyx[z, y, x],
        }
        return self._kept(found)

    def merge(self, first: Answer, second: Answer) -> Answer:
        """Return the sample of both."""
        return self._kept({name: np.concatenate([first[name], second[name]]) for name in _PARTS})

    def _chosen(
        self, block: PredictedBlock, band_zyx: NDArray[np.uint8]
    ) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Return hashes and places of a superset of the sample, plane by plane to save memory."""
        depth, height, width = band_zyx.shape
        known = block.known_core_zyx
        z0, y0, x0 = np.add(block.window.start_zyx, block.core.start_zyx)
        rows, columns = np.arange(y0, y0 + height)[:, None], np.arange(x0, x0 + width)[None]
        bounds = np.full(len(self.edges_mm) + 1, np.iinfo(np.uint64).max, np.uint64)
        hashes, places = np.empty(0, np.uint64), np.empty((0, 3), np.int64)
        for plane in range(depth):
            mine = position_hash(block.case, np.array(z0 + plane), rows, columns)
            y, x = np.nonzero(known[plane] & (mine <= bounds[band_zyx[plane]]))
            hashes = np.concatenate([hashes, mine[y, x]])
            places = np.concatenate([places, np.stack([np.full(len(y), plane), y, x], axis=1)])
            bands = band_zyx[tuple(places.T)]
            order = self._lowest(bands, hashes)
            hashes, places, bands = hashes[order], places[order], bands[order]
            for band in np.flatnonzero(np.bincount(bands, minlength=len(bounds)) == self.limit):
                bounds[band] = hashes[bands == band].max()
        return hashes, places

    def _kept(self, found: Answer) -> Answer:
        order = self._lowest(found["band"], found["hashes"])
        return {name: found[name][order] for name in _PARTS}

    def _lowest(self, bands: NDArray[np.uint8], hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the rows to keep, by band and hash."""
        order = np.lexsort((hashes, bands))
        starts = np.searchsorted(bands[order], np.arange(256, dtype=np.uint8))
        rank = np.arange(len(order)) - starts[bands[order]]
        return np.asarray(order[rank < self.limit], np.int64)
