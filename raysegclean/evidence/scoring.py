"""From the counts of a case to what a policy decides on, and from its decisions to actions."""

from collections.abc import Sequence

import numpy as np

from raysegclean.evidence.case_scores import CaseScore, ClassScore, Counts, Kind
from raysegclean.evidence.stats import KINDS, NATS_SCALE, CaseStats
from raysegclean.voxels.contour_offset import OffsetSums

__all__ = ["case_score"]


def case_score(case: str, stats: CaseStats, offsets: OffsetSums, fold: int = 0) -> CaseScore:
    """Return the scores of one case; `offsets` are keyed by channel, `fold` is who judged it."""
    channels = range(1, stats.classes)
    foreground = ClassScore(
        offset_vox=offsets.mean_vox(*channels),
        boundary_vox=offsets.boundary_vox(*channels),
        spread_vox=offsets.spread_vox(*channels),
        roughness_vox=offsets.roughness_vox(*channels),
        nats=int(stats.cross_entropy[0]) / NATS_SCALE,
        union_vox=stats.foreground_vox,
        given_vox=int(stats.given_vox[1:].sum()),
        predicted_vox=int(stats.predicted_vox[1:].sum()),
        both_vox=int(stats.confusion[1:, 1:].sum()),
        candidates=_candidates(stats, channels),
    )
    classes = {c: _class_score(c, stats, offsets) for c in channels}
    return CaseScore(case, foreground, classes, fold)


def _class_score(channel: int, stats: CaseStats, offsets: OffsetSums) -> ClassScore:
    given, predicted, both = stats.given_vox, stats.predicted_vox, stats.both_vox
    return ClassScore(
        offset_vox=offsets.mean_vox(channel),
        boundary_vox=offsets.boundary_vox(channel),
        spread_vox=offsets.spread_vox(channel),
        roughness_vox=offsets.roughness_vox(channel),
        nats=int(stats.cross_entropy[channel]) / NATS_SCALE,
        union_vox=int(given[channel] + predicted[channel] - both[channel]),
        given_vox=int(given[channel]),
        predicted_vox=int(predicted[channel]),
        both_vox=int(both[channel]),
        candidates=_candidates(stats, [channel]),
    )


def _candidates(stats: CaseStats, channels: Sequence[int]) -> dict[Kind, Counts]:
    mine = stats.disagreement[:, list(channels)].sum(axis=1)
    # Those of all cases and classes are kept at once: half of the bytes, where the counts allow it.
    small = mine.astype(np.int32) if mine.max(initial=0) <= np.iinfo(np.int32).max else mine
    return {kind: small[row] for row, kind in enumerate(KINDS)}
