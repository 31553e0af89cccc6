"""Proposals: the only thing that the networks leave behind per voxel.

A proposal is sparse at the loosest policy that could ever be chosen, so thresholds, undo and audit
answers rerun the settle step alone, without a network. It compresses like a label.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysegclean.core.evidence import Evidence, quantise, quantise_uncertainty

__all__ = ["Proposal", "propose"]


@dataclass(frozen=True)
class Proposal:
    """What could change in one block; all arrays uint8 with axes z, y, x."""

    candidate_zyx: NDArray[np.uint8]
    """1 + the predicted channel where it differs from the given label, else 0."""
    confidence_zyx: NDArray[np.uint8]
    """Level of the candidate's probability (`core.evidence.quantise`); 0 where the method asks
    its voters to agree and they do not."""
    uncertainty_zyx: NDArray[np.uint8] | None
    """Level of the aleatoric uncertainty of every voxel, for methods that use it."""
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
    keeps_uncertainty: bool = False,
) -> Proposal:
    """Return the proposal of one block for the given label (channel indices, z y x).

    Where the label and the prediction agree there is nothing to propose, except to the published
    rule of uncertainty relabelling, which needs the uncertainty of every voxel.
    """
    differs = evidence.predicted_zyx != given_zyx
    confident = differs & evidence.agree_zyx if needs_agreement else differs
    return Proposal(
        candidate_zyx=np.where(differs, evidence.predicted_zyx + 1, 0).astype(np.uint8),
        confidence_zyx=np.where(confident, quantise(evidence.prob_zyx), 0).astype(np.uint8),
        uncertainty_zyx=quantise_uncertainty(evidence.aleatoric_zyx) if keeps_uncertainty else None,
    )
