"""Proposals: the only thing that the networks leave behind per voxel.

A proposal is sparse at the loosest policy that could ever be chosen, so thresholds, undo and audit
answers rerun the apply step alone, without a network. It compresses like a label.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from raysegclean.evidence.voxel_evidence import MAX_UNCERTAINTY, Evidence, quantise
from raysegclean.voxels.channels import UNKNOWN

__all__ = ["Proposal", "Score", "propose", "score_of"]

Score = Literal["", "aleatoric", "total", "given_prob", "margin", "who"]
"""Which quantity of every voxel is stored beside the candidates; empty: none. `who` is no number:
its bits say which labels voted (`methods.combine.votes`)."""

_MIN_PROB = 1e-8


@dataclass(frozen=True)
class Proposal:
    """What could change in one block; all arrays uint8 with axes z, y, x."""

    candidate_zyx: NDArray[np.uint8]
    """1 + the predicted channel where it differs from the given label, else 0."""
    confidence_zyx: NDArray[np.uint8]
    """Level of the candidate's probability (`evidence.voxel_evidence.quantise`); 0 where the method
    asks its voters to agree and they do not."""
    score_zyx: NDArray[np.uint8] | None
    """Level of the voxel's score (`score_of`), for methods that use one."""
    correction_zyx: NDArray[np.uint8] | None = None
    """1 + the channel that the voxel corrector prefers where it differs from the given label."""

    def predicted_zyx(self, given_zyx: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the predicted channel of every voxel from the given channels (z, y, x)."""
        differs = self.candidate_zyx > 0
        return np.where(differs, self.candidate_zyx - differs, given_zyx).astype(np.uint8)


def propose(
    evidence: Evidence,
    given_zyx: NDArray[np.uint8],
    *,
    needs_agreement: bool = False,
    score: Score = "",
) -> Proposal:
    """Return the proposal of one block for the given label (channel indices, z y x).

    Where the label and the prediction agree there is no candidate; the score, where the method asks
    for one, is that of every voxel. Of voxels whose label is `UNKNOWN` nothing is said.
    """
    differs = evidence.predicted_zyx != given_zyx
    confident = differs & evidence.agree_zyx if needs_agreement else differs
    return Proposal(
        candidate_zyx=np.where(differs, evidence.predicted_zyx + 1, 0).astype(np.uint8),
        confidence_zyx=np.where(confident, quantise(evidence.prob_zyx), 0).astype(np.uint8),
        score_zyx=_score(evidence, given_zyx, score) if score else None,
    )


def _score(evidence: Evidence, given_zyx: NDArray[np.uint8], score: Score) -> NDArray[np.uint8]:
    levels = quantise(score_of(evidence, given_zyx, score))
    levels[given_zyx == UNKNOWN] = 0
    return levels


def score_of(evidence: Evidence, given_zyx: NDArray[np.uint8], score: Score) -> NDArray[np.float32]:
    """Return a score per voxel in [0, 1]; rules compare it as a share of that range.

    aleatoric: half the trace of Kwon's first term over its upper bound of 0.5. total: that of both
    terms. given_prob: the mean probability of the given label. margin: the logistic of log p(given)
    - mean of log p(k) over k in {given, predicted, background}; below 0.5 the sieve of CORES (Cheng
    et al. 2021, with the class set restricted) drops the voxel.
    """
    if score == "aleatoric":
        return evidence.aleatoric_zyx / np.float32(MAX_UNCERTAINTY)
    if score == "total":
        return (evidence.aleatoric_zyx + evidence.epistemic_zyx) / np.float32(MAX_UNCERTAINTY)
    if score == "given_prob":
        return evidence.given_prob_zyx
    given, predicted, background = (
        np.log(np.maximum(prob_zyx, np.float32(_MIN_PROB)))
        for prob_zyx in (evidence.given_prob_zyx, evidence.prob_zyx, evidence.background_prob_zyx)
    )
    # Each class counts once: given, predicted and background may coincide.
    other_predicted = evidence.predicted_zyx != given_zyx
    other_background = (given_zyx != 0) & (evidence.predicted_zyx != 0)
    total = given + other_predicted * predicted + other_background * background
    margin = given - total / (1 + other_predicted + other_background.astype(np.float32))
    logistic: NDArray[np.float32] = (1 / (1 + np.exp(-margin))).astype(np.float32)
    return logistic
