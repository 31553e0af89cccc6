"""Spatial Correction: take a known bias of the predicted boundary out of the class logits.

A network trained on labels that are too large predicts outlines that are too large, by the same
amount everywhere. Where a few trusted cases tell that amount, delta, the logits of the class are
lowered (or raised) near its predicted boundary, and the label is the argmax of what comes out.

Source: Yao et al., "Learning to segment from noisy annotations: a spatial correction approach",
ICLR 2023. Changed here, because the published code has one structure, one voxel size and no seams:

- distances follow the voxel spacing and are counted from the boundary (half-voxel convention), not
  from the first voxel beyond it;
- the height b of the correction is the 95th percentile of the margins in the shell, not their
  maximum, which one odd logit decides; `max` is there for repeating the paper;
- all classes are corrected in their log-probabilities and one argmax follows, so that neighbours
  compete instead of overlapping;
- a class whose shell is empty is not corrected, where the published code stops with an error.

Guaranteed: a block with the halo that `ShellLook` and `BiasReviser` declare gives in its core,
for the same probabilities, bit for bit what the whole case gives; answers merge in any order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from raysegclean.evidence.case_scores import FOREGROUND, CaseScore, ClassScore
from raysegclean.evidence.second_pass import Answer, PredictedBlock
from raysegclean.policy.contour_offsets import centre_of, offsets_of, spread_of, usual_limit
from raysegclean.policy.params import LEAST_SHIFT_VOX, PolicyParams
from raysegclean.voxels.geometry import Index3
from raysegclean.voxels.signed_distance import (
    Spacing,
    distance_halo_vox,
    fine_voxel_mm,
    signed_distance,
)

__all__ = [
    "BiasReviser",
    "Height",
    "ShellLook",
    "label_bias_mm",
    "like_trusted",
    "margin",
    "off_centre",
    "prediction_bias_mm",
    "shell_heights",
]

Height = Literal["p95", "max"]

_BINS_PER_NAT = 16
_BINS = 20 * _BINS_PER_NAT
_PERCENTILE = 0.95
_MIN_PROB = 1e-8
_REACH = 3.0
"""In units of delta; the correction has fallen to 1.1 % there."""


@dataclass(frozen=True)
class ShellLook:
    """First pass: how high the margins of each class are between 0 and delta of its boundary.

    The answer holds `counts` (C, bins) and `highest` (C,): a histogram of |margin| in bins of
    1/16 nat, and its maximum.
    """

    delta_mm: tuple[float, ...]
    """Per channel; negative: the prediction is too large."""
    needs_features = False

    def halo_vox(self, spacing_mm: Spacing) -> Index3:
        """Return the halo that shows every shell whole."""
        return distance_halo_vox(_furthest(self.delta_mm, spacing_mm) + 1.0, spacing_mm)

    def look(self, block: PredictedBlock, values: Mapping[str, Any]) -> Answer:  # noqa: ARG002
        """Return the margins in the shells of the block's core."""
        log_czyx = _log(block.prob_czyx)
        predicted = log_czyx.argmax(axis=0)
        core = block.core.slices
        counts = np.zeros((len(self.delta_mm), _BINS), np.int64)
        highest = np.zeros(len(self.delta_mm), np.float32)
        for channel, delta_vox in _corrected(self.delta_mm, block.spacing_mm):
            far = abs(delta_vox)
            psi = signed_distance(predicted == channel, block.spacing_mm, limit_vox=far + 1.0)[core]
            shell = (psi > 0) & (psi <= far) if delta_vox < 0 else (psi < 0) & (psi >= -far)
            heights = np.abs(margin(log_czyx[(slice(None), *core)][:, shell], channel))
            if heights.size:
                level = np.minimum(heights * _BINS_PER_NAT, _BINS - 1).astype(np.int64)
                counts[channel] = np.bincount(level, minlength=_BINS)
                highest[channel] = heights.max()
        return {"counts": counts, "highest": highest}

    def merge(self, first: Answer, second: Answer) -> Answer:
        """Return the margins of both."""
        return {
            "counts": first["counts"] + second["counts"],
            "highest": np.maximum(first["highest"], second["highest"]),
        }


@dataclass(frozen=True)
class BiasReviser:
    """Second pass: the argmax of the corrected logits; `height` of a case is b per channel.

    `delta_mm` of a case, where it has one, comes before that of all; it must not be larger.
    """

    delta_mm: tuple[float, ...]

    def halo_vox(self, spacing_mm: Spacing) -> Index3:
        """Return the halo that the correction reaches over."""
        furthest = _furthest(self.delta_mm, spacing_mm)
        return distance_halo_vox(_REACH * furthest + 1.0, spacing_mm)

    def revise(self, block: PredictedBlock, values: Mapping[str, Any]) -> NDArray[np.uint8]:
        """Return argmax of log p_c + sign(delta) b exp(-d^2 / (2 delta^2)) in the core.

        d is the distance to the predicted boundary of class c; ties go to the lower channel.
        """
        heights: Sequence[float] = values["height"]
        delta_mm: Sequence[float] = values.get("delta_mm", self.delta_mm)
        log_czyx = _log(block.prob_czyx)
        predicted = log_czyx.argmax(axis=0)
        core = block.core.slices
        logits_czyx = log_czyx[(slice(None), *core)]
        for channel, delta_vox in _corrected(delta_mm, block.spacing_mm):
            if heights[channel] <= 0:
                continue
            limit_vox = _REACH * abs(delta_vox) + 1.0
            psi = signed_distance(predicted == channel, block.spacing_mm, limit_vox=limit_vox)
            near = np.abs(psi[core]) < limit_vox
            shape = np.exp(-np.square(psi[core][near] / np.float32(delta_vox)) / 2)
            logits_czyx[channel][near] += np.float32(np.sign(delta_vox) * heights[channel]) * shape
        return np.asarray(logits_czyx.argmax(axis=0), np.uint8)


def prediction_bias_mm(
    trusted: Sequence[CaseScore],
    spacing_mm: Mapping[str, tuple[float, float, float]],
    policy: PolicyParams,
) -> dict[int, float]:
    """Return by how many mm trusted labels reach beyond the prediction, per class; mean of cases.

    Negative: the prediction is too large. Give the cases of one site to measure that site.
    """
    per_class: dict[int, list[float]] = {}
    for score in trusted:
        unit = fine_voxel_mm(spacing_mm[score.case])
        for channel, one in score.classes.items():
            if _has_offset(one, policy):
                per_class.setdefault(channel, []).append(one.offset_vox * unit)
    return {channel: float(np.mean(values)) for channel, values in per_class.items()}


def _has_offset(score: ClassScore, policy: PolicyParams) -> bool:
    """Tell whether an outline lies near enough to the predicted one to say how far it is off."""
    return score.boundary_vox >= policy.min_boundary_vox and isfinite(score.offset_vox)


def label_bias_mm(
    given: Sequence[CaseScore],
    trusted: Sequence[CaseScore],
    spacing_mm: Mapping[str, tuple[float, float, float]],
    policy: PolicyParams,
) -> dict[int, float]:
    """Return by how many mm given labels reach beyond trusted ones, per class on which all agree.

    Both are measured against the same predicted boundary, which cancels. A class is missing when
    the trusted cases differ in sign, or spread by more than their mean.
    """
    scores = {score.case: score for score in given}
    per_class: dict[int, list[float]] = {}
    for right in (score for score in trusted if score.case in scores):
        unit = fine_voxel_mm(spacing_mm[right.case])
        for channel, one in right.classes.items():
            mine = scores[right.case].classes[channel]
            off = (mine.offset_vox - one.offset_vox) * unit
            if _has_offset(one, policy) and _has_offset(mine, policy):
                per_class.setdefault(channel, []).append(off)
    means = {channel: float(np.mean(values)) for channel, values in per_class.items()}
    return {
        channel: mean
        for channel, mean in means.items()
        if min(np.sign(per_class[channel]) * np.sign(mean)) > 0
        and abs(mean) > np.std(per_class[channel])
    }


def like_trusted(
    given: Sequence[CaseScore], trusted: Sequence[CaseScore], channel: int, policy: PolicyParams
) -> frozenset[str]:
    """Return the cases whose given outline lies off the prediction as in the trusted cases.

    That is, off their mean by no more than outlines of the archive lie off its centre by chance.
    """
    known = {score.case for score in trusted}
    offsets, _ = offsets_of(given, channel, policy)
    theirs = offsets[[score.case in known for score in given] & np.isfinite(offsets)]
    if not theirs.size:
        return frozenset()
    limit = usual_limit(offsets, centre_of(offsets, policy), policy)
    like = np.abs(offsets - theirs.mean()) <= limit
    return frozenset(score.case for score, one in zip(given, like, strict=True) if one)


def off_centre(
    given: Sequence[CaseScore], trusted: Sequence[CaseScore], policy: PolicyParams
) -> bool:
    """Tell whether trusted outlines lie surely off where most given ones lie."""
    values, right = offsets_of(given, FOREGROUND, policy, trusted=trusted)
    right = right[np.isfinite(right)]
    centre = centre_of(values, policy)
    error = policy.offset_sds * spread_of(values, centre, policy) / np.sqrt(max(right.size, 1))
    return bool(right.size and abs(np.median(right) - centre) > error)


def margin(log_czyx: NDArray[np.float32], channel: int) -> NDArray[np.float32]:
    """Return log p of a class less the largest of the others: with two classes, its logit.

    Positive exactly where the class is the only most probable one; shape of `log_czyx[channel]`.
    """
    others = np.delete(log_czyx, channel, axis=0)
    return np.asarray(log_czyx[channel] - others.max(axis=0), np.float32)


def shell_heights(answer: Answer, height: Height) -> list[float]:
    """Return b per channel from a merged answer; 0 where the shell was empty.

    `p95` is the upper edge of the bin in which the 95th percentile lies, so it exceeds the exact
    one by at most 1/16 nat.
    """
    if height == "max":
        return [float(value) for value in answer["highest"]]
    found = []
    for counts, highest in zip(answer["counts"], answer["highest"], strict=True):
        total = int(counts.sum())
        place = int(np.searchsorted(counts.cumsum(), _PERCENTILE * total))
        found.append(min((place + 1) / _BINS_PER_NAT, float(highest)) if total else 0.0)
    return found


def _log(prob_czyx: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(np.log(np.clip(prob_czyx, _MIN_PROB, 1.0)), np.float32)


def _corrected(delta_mm: Sequence[float], spacing_mm: Spacing) -> list[tuple[int, float]]:
    """Return the channels to correct and by how much, in voxels of the finest axis."""
    unit = fine_voxel_mm(spacing_mm)
    found = ((channel, delta / unit) for channel, delta in enumerate(delta_mm) if channel)
    return [(channel, delta) for channel, delta in found if abs(delta) >= LEAST_SHIFT_VOX]


def _furthest(delta_mm: Sequence[float], spacing_mm: Spacing) -> float:
    return max((abs(delta) for _, delta in _corrected(delta_mm, spacing_mm)), default=0.0)
