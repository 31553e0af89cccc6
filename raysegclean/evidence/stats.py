"""Stats: a mergeable record of what one block says about its case.

Everything is counted in integers; sums of logarithms are fixed point. Addition of integers is
associative and commutative, so a case has the same stats however its blocks were spread over
workers, retried or resumed. The size depends on the number of classes only.
"""

from dataclasses import dataclass, fields, replace
from math import prod
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from raysegclean.evidence.case_scores import FOREGROUND, CaseScore, ClassScore, Kind
from raysegclean.evidence.proposals import Proposal
from raysegclean.evidence.voxel_evidence import LEVELS, Evidence
from raysegclean.voxels.channels import UNKNOWN
from raysegclean.voxels.offset_sums import OffsetSums
from raysegclean.voxels.packing import arrays_to_text, text_to_arrays

__all__ = ["KINDS", "NATS_SCALE", "PROB_SCALE", "CaseStats", "block_stats", "case_score"]

KINDS = (Kind.ADDED, Kind.REMOVED, Kind.SWAPPED)
"""Order of the first axis of `CaseStats.disagreement`."""

NATS_SCALE = 1 << 16
"""Fixed-point scale of sums of -log p."""

PROB_SCALE = 1 << 24
"""Fixed-point scale of sums of p."""

MIN_PROB = 1e-4
"""Probabilities below this count as this, so that one voxel cannot dominate a case."""

Counts = NDArray[np.int64]
Block = TypeVar("Block", Evidence, Proposal)


@dataclass(frozen=True)
class CaseStats:
    """Counts of one block, or by merging, of one case; C classes, channel 0 is background."""

    confusion: Counts
    """(C, C): voxels with given label i and predicted label j."""
    cross_entropy: Counts
    """(C,): sum of -log p(given) where given or predicted is c, fixed point; entry 0 is the sum
    over all voxels."""
    disagreement: Counts
    """(3, C, 256): voxels whose label and prediction differ, by level of confidence: added to a
    class from background, removed from a class to background, swapped into a class from another;
    in the order of `KINDS`."""
    score: Counts
    """(2, C, 256): voxels by (differs from the prediction, given label, level of the method's
    score); zero where it has none."""
    given_prob: Counts
    """(C,): sum of p(given) over the voxels of each given class, fixed point."""
    trusted: Counts
    """(2, 3, C, 256): disagreements by level of (confidence, score), by candidate, where the
    trusted label equals the candidate (right), the given label (harm) or neither; zero without."""

    @classmethod
    def zero(cls, classes: int) -> "CaseStats":
        """Return the neutral element for `classes` channels."""
        return cls(
            confusion=np.zeros((classes, classes), np.int64),
            cross_entropy=np.zeros(classes, np.int64),
            disagreement=np.zeros((len(KINDS), classes, LEVELS), np.int64),
            score=np.zeros((2, classes, LEVELS), np.int64),
            given_prob=np.zeros(classes, np.int64),
            trusted=np.zeros((2, 3, classes, LEVELS), np.int64),
        )

    @property
    def classes(self) -> int:
        """Number of channels."""
        return int(self.confusion.shape[0])

    def merge(self, other: "CaseStats") -> "CaseStats":
        """Return the stats of both; associative and commutative to the last bit."""
        return CaseStats(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def given_vox(self) -> Counts:
        """(C,): voxels of each class in the given label."""
        return np.asarray(self.confusion.sum(axis=1), np.int64)

    @property
    def predicted_vox(self) -> Counts:
        """(C,): voxels of each class in the prediction."""
        return np.asarray(self.confusion.sum(axis=0), np.int64)

    def to_text(self) -> str:
        """Return the record as one line of text, for the ledger."""
        return arrays_to_text({f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def from_text(cls, text: str) -> "CaseStats":
        """Read what `to_text` wrote."""
        return cls(**text_to_arrays(text))


def block_stats(
    evidence: Evidence,
    proposal: Proposal,
    given_zyx: NDArray[np.uint8],
    classes: int,
    trusted_zyx: NDArray[np.uint8] | None = None,
) -> CaseStats:
    """Return the stats of one block; labels are channel indices with axes z, y, x.

    Voxels whose given label is `UNKNOWN` are not counted.
    """
    known = given_zyx != UNKNOWN
    if not known.all():
        evidence, proposal = _only(evidence, known), _only(proposal, known)
        trusted_zyx = None if trusted_zyx is None else trusted_zyx[known]
        given_zyx = given_zyx[known]
    given = given_zyx.ravel().astype(np.int64)
    predicted = evidence.predicted_zyx.ravel().astype(np.int64)
    confusion = np.bincount(given * classes + predicted, minlength=classes * classes)
    differs = predicted != given
    kind = np.where(given == 0, 0, np.where(predicted == 0, 1, 2))
    channel = np.where(predicted == 0, given, predicted)
    confidence = proposal.confidence_zyx.ravel().astype(np.int64)
    prob = np.rint(evidence.given_prob_zyx.ravel().astype(np.float64) * PROB_SCALE)
    return CaseStats(
        confusion=confusion.reshape(classes, classes),
        cross_entropy=_cross_entropy(evidence, given, predicted, classes),
        disagreement=_histogram(
            (kind * classes + channel)[differs], confidence[differs], len(KINDS), classes
        ),
        score=_score(proposal, given, differs, classes),
        given_prob=np.bincount(given, weights=prob, minlength=classes).astype(np.int64),
        trusted=_trusted_hits(proposal, given_zyx, trusted_zyx, predicted, classes),
    )


def _only(block: Block, known: NDArray[np.bool_]) -> Block:
    """Return the arrays of a block at the known voxels, as rows."""
    arrays = ((f.name, getattr(block, f.name)) for f in fields(block))
    return replace(block, **{name: a[known] for name, a in arrays if a is not None})


def _histogram(group: NDArray[np.int64], level: NDArray[np.int64], *shape: int) -> Counts:
    """Return voxels by group, whose numbers run through `shape`, and by level (*shape, 256)."""
    counts = np.bincount(group * LEVELS + level, minlength=prod(shape) * LEVELS)
    return counts.reshape(*shape, LEVELS)


def _cross_entropy(
    evidence: Evidence, given: NDArray[np.int64], predicted: NDArray[np.int64], classes: int
) -> Counts:
    prob = np.clip(evidence.given_prob_zyx.ravel(), MIN_PROB, 1.0)
    nats = np.rint(-np.log(prob.astype(np.float64)) * NATS_SCALE)
    by_given = np.bincount(given, weights=nats, minlength=classes)
    other = predicted != given
    by_predicted = np.bincount(predicted[other], weights=nats[other], minlength=classes)
    # Integers below 2^53 are exact in float64, whatever the order of the additions.
    sums = (by_given + by_predicted).astype(np.int64)
    sums[0] = np.int64(nats.sum())
    return sums


def _score(
    proposal: Proposal, given: NDArray[np.int64], differs: NDArray[np.bool_], classes: int
) -> Counts:
    if proposal.score_zyx is None:
        return np.zeros((2, classes, LEVELS), np.int64)
    level = proposal.score_zyx.ravel().astype(np.int64)
    return _histogram(differs.astype(np.int64) * classes + given, level, 2, classes)


def _trusted_hits(
    proposal: Proposal,
    given_zyx: NDArray[np.uint8],
    trusted_zyx: NDArray[np.uint8] | None,
    predicted: NDArray[np.int64],
    classes: int,
) -> Counts:
    hits = np.zeros((2, 3, classes, LEVELS), np.int64)
    if trusted_zyx is None:
        return hits
    truth, given = trusted_zyx.ravel(), given_zyx.ravel()
    differs = (predicted != given) & (truth != UNKNOWN)
    outcome = np.where(truth == predicted, 0, np.where(truth == given, 1, 2))
    group = (outcome * classes + predicted)[differs]
    for kind, levels in enumerate((proposal.confidence_zyx, proposal.score_zyx)):
        if levels is not None:
            level = levels.ravel().astype(np.int64)[differs]
            hits[kind] = _histogram(group, level, 3, classes)
    return hits


def case_score(case: str, stats: CaseStats, offsets: OffsetSums, fold: int = 0) -> CaseScore:
    """Return the scores of one case; `offsets` are keyed by channel, `fold` is who judged it."""
    channels = list(range(1, stats.classes))
    classes = {channel: _score_of(channel, [channel], stats, offsets) for channel in channels}
    return CaseScore(case, _score_of(FOREGROUND, channels, stats, offsets), classes, fold)


def _score_of(key: int, channels: list[int], stats: CaseStats, offsets: OffsetSums) -> ClassScore:
    """Return the score of channels that count as one; `key` is theirs in `cross_entropy`."""
    given, predicted = (int(vox[channels].sum()) for vox in (stats.given_vox, stats.predicted_vox))
    both = int(stats.confusion[np.ix_(channels, channels)].sum())
    return ClassScore(
        offset_vox=offsets.mean_vox(*channels),
        boundary_vox=offsets.boundary_vox(*channels),
        spread_vox=offsets.spread_vox(*channels),
        roughness_vox=offsets.roughness_vox(*channels),
        nats=int(stats.cross_entropy[key]) / NATS_SCALE,
        union_vox=given + predicted - both,
        given_vox=given,
        predicted_vox=predicted,
        both_vox=both,
        candidates=_candidates(stats, channels),
    )


def _candidates(stats: CaseStats, channels: list[int]) -> dict[Kind, NDArray[np.int32 | np.int64]]:
    mine = stats.disagreement[:, channels].sum(axis=1)
    # Those of all cases and classes are kept at once: half of the bytes, where the counts allow it.
    small = mine.astype(np.int32) if mine.max(initial=0) <= np.iinfo(np.int32).max else mine
    return {kind: small[row] for row, kind in enumerate(KINDS)}
