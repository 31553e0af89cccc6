"""The voxel corrector: learned on a few trusted cases how given labels go wrong near boundaries.

Gradient-boosted trees see, for each voxel of the boundary band, what the networks say, how deep the
voxel lies in the given and in the predicted classes, and what the given label looks like around it.
They are fitted on cases that have a trusted label and applied in flagged cases only.

Guaranteed: a block with a halo of `corrector_halo_vox` gives, inside its core, what the whole case
gives; the training rows are the same set for any cut of the cases into blocks, because a row is
kept by the hash of its position. What travels are the rows, as text without pickles: each worker
refits the trees from them, which takes seconds and gives the same trees with the same version of
scikit-learn. `RowsLook` and `CorrectorReviser` are what the engine runs on its workers.

Not guaranteed: that a class survives. Whoever settles the case guards its last component.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.ensemble import HistGradientBoostingClassifier

from raysegclean.evidence.second_pass import Answer, PredictedBlock
from raysegclean.evidence.stats import MIN_PROB
from raysegclean.voxels.geometry import Index3, triple
from raysegclean.voxels.hashing import position_hash
from raysegclean.voxels.packing import arrays_to_text, text_to_arrays
from raysegclean.voxels.signed_distance import (
    Spacing,
    axis_ratios,
    distance_halo_vox,
    signed_distance,
)

__all__ = [
    "MAX_ROWS",
    "Corrector",
    "CorrectorReviser",
    "CorrectorRows",
    "RowsLook",
    "band_features",
    "corrector_halo_vox",
    "fit_corrector",
    "sample_rows",
]

MAX_ROWS = 150_000
"""Training voxels that suffice."""

_CLIP_VOX = 5.0
_GIVEN_BAND_VOX, _PREDICTED_BAND_VOX = 4.0, 3.0
_SMOOTH_VOX, _SMOOTH_REACH_VOX = 1.0, 3
_MEAN_EDGE_VOX = 5
_OFFSET_STEP_VOX = 0.5
_MAX_PAIRED_CLASSES = 4
_MIN_CONFIDENCE = 0.5

Features = NDArray[np.float32]


def corrector_halo_vox(spacing_mm: Spacing) -> Index3:
    """Return the halo with which a block equals the case: clipped distances, then smoothing."""
    return triple(n + _SMOOTH_REACH_VOX for n in distance_halo_vox(_CLIP_VOX, spacing_mm))


def band_features(block: PredictedBlock, offset_vox: float) -> tuple[Features, NDArray[np.bool_]]:
    """Return the features of the band inside the core, and the band.

    `offset_vox` is that of the case from the archive's centre; NaN (not measured) counts as 0.

    Returns:
        features: float32 (n, f), one row per voxel of the band in C order.
        band_zyx: bool over the core: |phi| < 4 or |psi| < 3 or label != prediction, with phi and
            psi the signed distances (voxels of the finest axis) to the given and predicted
            foreground.
    """
    given, core = block.given_zyx, block.core.slices
    classes = range(1, block.prob_czyx.shape[0])
    predicted = block.prob_czyx.argmax(axis=0)
    band = (given[core] != predicted[core]) | _near(given > 0, block, _GIVEN_BAND_VOX)
    band |= _near(predicted > 0, block, _PREDICTED_BAND_VOX)
    columns: list[Features] = []
    log_prob = np.log(np.clip(block.prob_czyx, MIN_PROB, 1.0)).astype(np.float32)
    odds = [log_prob[b] - log_prob[a] for a, b in _pairs(block.prob_czyx.shape[0])]
    columns += [o[core][band] for o in odds]
    columns += [_smoothed(o, block)[core][band] for o in odds[: len(classes)]]
    for value in classes:
        phi = signed_distance(given == value, block.spacing_mm, limit_vox=_CLIP_VOX)
        psi = signed_distance(predicted == value, block.spacing_mm, limit_vox=_CLIP_VOX)
        local = ndimage.uniform_filter(
            (given == value).astype(np.float32), size=_MEAN_EDGE_VOX, mode="nearest"
        )
        # A running mean leaves rounding that depends on where the block begins.
        local = np.rint(local * _MEAN_EDGE_VOX**3) / np.float32(_MEAN_EDGE_VOX**3)
        columns += [a[core][band] for a in (phi, psi, _smoothed(phi, block), local)]
    offset = offset_vox if np.isfinite(offset_vox) else 0.0
    # Exact offsets would tell the few trusted cases apart, and trees learn cases by heart.
    offset = round(offset / _OFFSET_STEP_VOX) * _OFFSET_STEP_VOX
    columns.append(np.full(int(band.sum()), offset, np.float32))
    return np.stack(columns, axis=1).astype(np.float32), band


def _near(
    mask_zyx: NDArray[np.bool_], block: PredictedBlock, limit_vox: float
) -> NDArray[np.bool_]:
    distance = signed_distance(mask_zyx, block.spacing_mm, limit_vox=_CLIP_VOX)
    return np.asarray(np.abs(distance[block.core.slices]) < limit_vox)


def _pairs(channels: int) -> list[tuple[int, int]]:
    """Return each class against background first, then, of few classes, against each other."""
    against_background = [(0, c) for c in range(1, channels)]
    if channels > _MAX_PAIRED_CLASSES:
        return against_background
    return against_background + list(combinations(range(1, channels), 2))


def _smoothed(values_zyx: Features, block: PredictedBlock) -> Features:
    sigma = [_SMOOTH_VOX / ratio for ratio in axis_ratios(block.spacing_mm)]
    out = ndimage.gaussian_filter(values_zyx, sigma, mode="nearest", radius=_SMOOTH_REACH_VOX)
    return np.asarray(out, np.float32)


@dataclass(frozen=True)
class CorrectorRows:
    """Training rows: a mergeable sample of at most `limit` voxels, those of the lowest hashes."""

    hashes: NDArray[np.uint64]
    features: Features
    targets: NDArray[np.uint8]
    limit: int = MAX_ROWS

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self.hashes.size)

    def merge(self, other: "CorrectorRows") -> "CorrectorRows":
        """Return the rows of lowest hash of both; the order of merging does not matter."""
        parts = [rows for rows in (self, other) if len(rows)] or [self]
        hashes = np.concatenate([rows.hashes for rows in parts])
        limit = min(self.limit, other.limit)
        kept = np.argsort(hashes, kind="stable")[:limit]
        return CorrectorRows(
            hashes[kept],
            np.concatenate([rows.features for rows in parts])[kept],
            np.concatenate([rows.targets for rows in parts])[kept],
            limit,
        )

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the rows as named arrays."""
        return {
            "hashes": self.hashes,
            "features": self.features,
            "targets": self.targets,
            "limit": np.array(self.limit, np.int64),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "CorrectorRows":
        """Read what `to_arrays` wrote."""
        return cls(arrays["hashes"], arrays["features"], arrays["targets"], int(arrays["limit"]))


def sample_rows(block: PredictedBlock, offset_vox: float, limit: int = MAX_ROWS) -> CorrectorRows:
    """Return at most `limit` training rows of one block of a case that has a trusted label."""
    assert block.trusted_zyx is not None
    features, band = band_features(block, offset_vox)
    known = block.known_core_zyx
    features, band = features[known[band]], band & known
    origin = np.add(block.window.start_zyx, block.core.start_zyx, dtype=np.int64)
    where = np.argwhere(band).astype(np.int64) + origin
    hashes = position_hash(block.case, *where.T)
    kept = np.argsort(hashes, kind="stable")[:limit]
    targets = block.trusted_zyx[block.core.slices][band].astype(np.uint8)
    return CorrectorRows(hashes[kept], features[kept], targets[kept], limit)


@dataclass(frozen=True)
class Corrector:
    """Fitted trees; `fit_corrector` makes it."""

    trees: HistGradientBoostingClassifier

    def apply(self, block: PredictedBlock, offset_vox: float) -> NDArray[np.integer]:
        """Return the corrected label of the block's core.

        A voxel of the band takes the likeliest class where that is more likely than all others
        together; all others keep the given label.
        """
        features, band = band_features(block, offset_vox)
        out = np.array(block.given_zyx[block.core.slices])
        if len(features):
            prob = self.trees.predict_proba(features)
            best = self.trees.classes_[prob.argmax(axis=1)].astype(out.dtype)
            out[band] = np.where(prob.max(axis=1) >= _MIN_CONFIDENCE, best, out[band])
        return out


def fit_corrector(rows: CorrectorRows) -> Corrector:
    """Fit the trees on rows of trusted cases, which must hold two classes at least.

    100 iterations, rate .08, 15 leaves, at least 200 samples a leaf (fewer when there are few
    rows), L2 5.
    """
    trees = HistGradientBoostingClassifier(
        max_iter=100,
        learning_rate=0.08,
        max_leaf_nodes=15,
        min_samples_leaf=max(5, min(200, len(rows) // 50)),
        l2_regularization=5.0,
        early_stopping=False,
        random_state=0,
    )
    order = np.argsort(rows.hashes, kind="stable")
    return Corrector(trees.fit(rows.features[order], rows.targets[order]))


@dataclass(frozen=True)
class RowsLook:
    """Second look at trusted cases: training rows, and how far given and trusted label agree.

    The value of a case is `offset_vox`. The answer has the arrays of `CorrectorRows`, and the
    counts `both_vox` and `sum_vox` of which the Dice of the foreground follows.
    """

    limit: int = 20_000
    """Rows per case."""
    needs_features = False

    def halo_vox(self, spacing_mm: Spacing) -> Index3:
        """Return the halo of the features."""
        return corrector_halo_vox(spacing_mm)

    def look(self, block: PredictedBlock, values: Mapping[str, Any]) -> Answer:
        """Return the rows of one block; its case must have a trusted label."""
        assert block.trusted_zyx is not None
        rows = sample_rows(block, values["offset_vox"], self.limit)
        given, trusted = (
            (label[block.core.slices] > 0) & block.known_core_zyx
            for label in (block.given_zyx, block.trusted_zyx)
        )
        counts = {"both_vox": (given & trusted).sum(), "sum_vox": given.sum() + trusted.sum()}
        return rows.to_arrays() | {name: np.asarray(n, np.int64) for name, n in counts.items()}

    def merge(self, first: Answer, second: Answer) -> Answer:
        """Return the rows of lowest hash of both, and the sums of the counts."""
        rows = CorrectorRows.from_arrays(first).merge(CorrectorRows.from_arrays(second))
        counts = {name: np.asarray(first[name] + second[name]) for name in ("both_vox", "sum_vox")}
        return rows.to_arrays() | counts


@dataclass(frozen=True)
class CorrectorReviser:
    """Revision of flagged cases by the trees; the value of a case is `offset_vox`."""

    rows: str
    """Training rows as text."""

    @classmethod
    def of(cls, rows: CorrectorRows) -> "CorrectorReviser":
        """Return the reviser that was fitted on these rows."""
        return cls(arrays_to_text(rows.to_arrays()))

    def halo_vox(self, spacing_mm: Spacing) -> Index3:
        """Return the halo of the features."""
        return corrector_halo_vox(spacing_mm)

    def revise(self, block: PredictedBlock, values: Mapping[str, Any]) -> NDArray[np.uint8]:
        """Return what the trees prefer in the block's core."""
        return _fitted(self.rows).apply(block, values["offset_vox"]).astype(np.uint8)


@lru_cache(maxsize=1)
def _fitted(rows: str) -> Corrector:
    return fit_corrector(CorrectorRows.from_arrays(text_to_arrays(rows)))
