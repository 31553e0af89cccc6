"""Blending: a noisy outline is drawn towards the networks' by as much as it strays too far.

Along the outline, the given label lies off the networks' boundary by an offset. In clean cases that
offset is the error of the networks alone; in a noisy group the error of the labels comes on top,
and as both are made independently their variances add up. So the part of a noisy offset that is to
be believed is the ratio of the variances, clean over noisy: Wiener's filter (Wiener 1949), here
with three bands, because errors differ in them: the mean offset of a case, what varies slowly along
the outline, and what changes from voxel to voxel. The mean of the group becomes that of the clean
cases, so a bias of the group goes too.

Guaranteed: all parameters follow from the scores of cases (`solve_blends`); a block with a halo of
`blend_halo_vox` gives, inside its core, what the whole case gives.

Not guaranteed: that a class survives. Whoever settles the case guards its last component.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysegclean.evidence.case_scores import CaseScore, ClassScore, of_key
from raysegclean.evidence.second_pass import PredictedBlock
from raysegclean.evidence.stats import MIN_PROB
from raysegclean.policy.params import PolicyParams
from raysegclean.voxels.contour_offset import OFFSET_LIMIT_VOX, along_band, offset_halo_vox
from raysegclean.voxels.geometry import Box, Index3
from raysegclean.voxels.signed_distance import Spacing, signed_distance

__all__ = ["BlendReviser", "Shrinkage", "blend_halo_vox", "blend_label", "solve_blends"]

_VOX_PER_LOGIT = 0.5
"""Measured: how far from the boundary log odds of 1 are; regression on clean cases gave 0.28 to
0.34, and anything between 0.3 and 0.7 blends alike."""
_BAND_VOX = 2.5
"""Argued: around the predicted boundary, offsets nearer than this are averaged along it."""

Probs = NDArray[np.float32]


@dataclass(frozen=True)
class Shrinkage:
    """How the outline of one class of one case is blended; shares are of the given offset."""

    shift_vox: float
    """Added to the blended offset everywhere."""
    coarse: float
    """Share that is believed of what varies slowly along the outline."""
    fine: float
    """Share that is believed of what changes from voxel to voxel."""


def solve_blends(
    scores: Sequence[CaseScore],
    members: Mapping[int, Collection[str]],
    clean: Mapping[int, Collection[str]],
    params: PolicyParams,
) -> dict[str, dict[int, Shrinkage]]:
    """Return the blend of each member of a noisy group, by case and class.

    Args:
        scores: of all cases.
        members: class -> the cases in which it is noisy.
        clean: class -> the cases that nothing speaks against.
        params: thresholds.

    Classes with fewer than `min_cases` clean or noisy cases that were measured are left out.
    """
    found: dict[str, dict[int, Shrinkage]] = {}
    for value, noisy in members.items():
        mine = of_key(scores, value)
        rows = {s.case: one for s, one in zip(scores, mine, strict=True) if _is_measured(one)}
        reference = [rows[case] for case in sorted(clean[value]) if case in rows]
        wrong = {case: rows[case] for case in sorted(noisy) if case in rows}
        if min(len(reference), len(wrong)) < params.min_cases:
            continue
        for case, blend in _blends(reference, wrong).items():
            found.setdefault(case, {})[value] = blend
    return found


def _is_measured(score: ClassScore) -> bool:
    parts = (score.offset_vox, score.spread_vox, score.roughness_vox)
    return score.boundary_vox > 0 and bool(np.isfinite(parts).all())


def _blends(clean: Sequence[ClassScore], noisy: Mapping[str, ClassScore]) -> dict[str, Shrinkage]:
    """Return the blend of each noisy case; all of them share what follows from the variances."""
    (right, *less), (wrong, *more) = _moments(clean), _moments(list(noisy.values()))
    mean, coarse, fine = (min(1.0, a / max(b, 1e-9)) for a, b in zip(less, more, strict=True))
    return {
        case: Shrinkage(
            shift_vox=right + mean * (one.offset_vox - wrong) - coarse * one.offset_vox,
            coarse=coarse,
            fine=fine,
        )
        for case, one in noisy.items()
    }


def _moments(scores: Sequence[ClassScore]) -> tuple[float, float, float, float]:
    """Return the mean offset, and its variance between cases, slowly along them, and finely."""
    offsets = np.array([s.offset_vox for s in scores])
    fine = np.array([s.roughness_vox for s in scores]) ** 2
    coarse = np.maximum(np.array([s.spread_vox for s in scores]) ** 2 - fine, 0.0)
    # Along an outline, medians: what the networks do not understand strays by far more.
    return (
        float(offsets.mean()),
        float(offsets.var()),
        float(np.median(coarse)),
        float(np.median(fine)),
    )


def blend_halo_vox(spacing_mm: Spacing | None = None) -> Index3:
    """Return the halo with which a block equals the case."""
    return offset_halo_vox(spacing_mm)


def blend_label(
    given_zyx: NDArray[np.uint8],
    prob_czyx: Probs,
    blends: Mapping[int, Shrinkage],
    *,
    core: Box,
    spacing_mm: Spacing | None = None,
) -> NDArray[np.uint8]:
    """Return the blended label of `core`; labels are channels, axes z, y, x.

    The foreground is blended as the class at hand is, and a voxel of it takes the class whose own
    boundary, blended alike, it lies deepest in. Classes without a blend keep their voxels.
    """
    inside = core.slices
    whole = _networks_vox(1.0 - prob_czyx[0])
    phi = _distance(given_zyx > 0, spacing_mm)
    psi = _distance(prob_czyx.argmax(axis=0) > 0, spacing_mm)
    offset = np.clip(phi - whole, -OFFSET_LIMIT_VOX, OFFSET_LIMIT_VOX)
    coarse = along_band(offset, np.abs(psi) < _BAND_VOX, spacing_mm)
    nearest = _deepest_class(given_zyx, prob_czyx, blends, spacing_mm)
    out = given_zyx[inside].copy()
    shares = np.zeros((len(fields(Shrinkage)), *out.shape), np.float32)
    for value, blend in blends.items():
        shares[:, nearest[inside] == value] = np.array([astuple(blend)], np.float32).T
    shift, low, high = shares
    smooth = coarse[inside]
    blended = whole[inside] + shift + low * smooth + high * (offset[inside] - smooth)
    open_to = np.isin(nearest[inside], list(blends)) & np.isin(out, [0, *blends])
    out[open_to] = np.where(blended > 0, nearest[inside], 0)[open_to]
    return out


def _deepest_class(
    given_zyx: NDArray[np.uint8],
    prob_czyx: Probs,
    blends: Mapping[int, Shrinkage],
    spacing_mm: Spacing | None,
) -> NDArray[np.uint8]:
    """Return the class whose blended boundary each voxel lies deepest in; never background."""
    nearest = np.zeros(given_zyx.shape, np.uint8)
    depth = np.full(given_zyx.shape, -np.inf, np.float32)
    for value in range(1, prob_czyx.shape[0]):
        given = blends[value].fine if value in blends else 1.0
        networks = _networks_vox(prob_czyx[value])
        mine = networks + np.float32(given) * (_distance(given_zyx == value, spacing_mm) - networks)
        deeper = mine > depth
        nearest[deeper], depth[deeper] = value, mine[deeper]
    return nearest


def _networks_vox(prob_zyx: Probs) -> Probs:
    """Return how deep inside their own outline the networks see each voxel, by its log odds."""
    prob = np.clip(prob_zyx, MIN_PROB, 1.0 - MIN_PROB)
    depth = np.float32(_VOX_PER_LOGIT) * np.log(prob / (1.0 - prob))
    return np.asarray(np.clip(depth, -OFFSET_LIMIT_VOX, OFFSET_LIMIT_VOX), np.float32)


def _distance(mask_zyx: NDArray[np.bool_], spacing_mm: Spacing | None) -> Probs:
    return signed_distance(mask_zyx, spacing_mm, limit_vox=OFFSET_LIMIT_VOX)


@dataclass(frozen=True)
class BlendReviser:
    """Revision of noisy cases; the values of a case are its blends: class, as text, -> numbers."""

    @staticmethod
    def values(blends: Mapping[int, Shrinkage]) -> dict[str, tuple[float, ...]]:
        """Return the blends of a case as values that can be hashed."""
        return {str(value): astuple(blend) for value, blend in blends.items()}

    def halo_vox(self, spacing_mm: Spacing) -> Index3:
        """Return the halo of the blend."""
        return blend_halo_vox(spacing_mm)

    def revise(self, block: PredictedBlock, values: Mapping[str, Any]) -> NDArray[np.uint8]:
        """Return the blended channels of the block's core."""
        blends = {int(value): Shrinkage(*numbers) for value, numbers in values.items()}
        return blend_label(
            block.given_zyx,
            block.prob_czyx,
            blends,
            core=block.core,
            spacing_mm=block.spacing_mm,
        )
