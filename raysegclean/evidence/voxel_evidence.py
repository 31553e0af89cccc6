"""Evidence: what the voters say about each voxel, folded into a running sum per class and one more.

Any number of passes (members of an ensemble, dropout passes, augmented views) costs the same
memory, because Kwon's two terms follow from the sums of p and of p squared alone:
the aleatoric part is mean p (1 - p), the epistemic part mean p^2 - (mean p)^2, and they add up to
the diagonal of diag(pbar) - pbar pbar^T (Kwon et al. 2018; Redekop & Chernyavskiy 2021). Only their
sums over classes are used, so the squares are summed over classes as they come.
Evidence is transient: it is never stored whole.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysegclean.errors import InputError
from raysegclean.voxels.channels import UNKNOWN

__all__ = ["LEVELS", "MAX_UNCERTAINTY", "Evidence", "EvidenceSum", "quantise", "threshold_level"]

LEVELS = 256
"""Number of levels of a quantised probability: level q stands for [q / 256, (q + 1) / 256)."""

MAX_UNCERTAINTY = 0.5
"""Upper bound of half the trace of Kwon's matrix; binary labels reach 0.25."""


@dataclass(frozen=True)
class Evidence:
    """What the voters say about the voxels of one block; all arrays have axes z, y, x."""

    predicted_zyx: NDArray[np.uint8]
    """Channel with the highest mean probability; ties go to the lower channel."""
    prob_zyx: NDArray[np.float32]
    """Mean probability of `predicted_zyx`."""
    given_prob_zyx: NDArray[np.float32]
    """Mean probability of the given label (its self-confidence)."""
    background_prob_zyx: NDArray[np.float32]
    """Mean probability of channel 0."""
    aleatoric_zyx: NDArray[np.float32]
    """Half the trace of Kwon's first term: for two classes mean p (1 - p), in [0, 0.25]."""
    epistemic_zyx: NDArray[np.float32]
    """Half the trace of Kwon's second term: for two classes the variance of p over passes."""
    agree_zyx: NDArray[np.bool_]
    """True where every pass has the same most probable channel."""


class EvidenceSum:
    """Running sums over passes; memory does not depend on their number."""

    def __init__(self) -> None:
        self._passes = 0
        self._done = False
        self._sum_czyx: Tensor | None = None
        self._sum_squares_zyx: Tensor | None = None
        self._first_zyx: Tensor | None = None
        self._agree_zyx: Tensor | None = None

    def add(self, prob_czyx: Tensor) -> None:
        """Add one pass: class probabilities (C, Z, Y, X) that sum to 1 over C.

        Raises ValueError after their mean was asked for.
        """
        if self._done:
            raise ValueError("The passes were summed up already: begin another EvidenceSum.")
        winner_zyx = prob_czyx.max(dim=0)[1]  # several times as fast as argmax
        self._passes += 1
        if self._sum_czyx is None or self._sum_squares_zyx is None or self._agree_zyx is None:
            self._sum_czyx = prob_czyx.clone()
            self._sum_squares_zyx = _squares(prob_czyx)
            self._first_zyx = winner_zyx
            self._agree_zyx = torch.ones_like(winner_zyx, dtype=torch.bool)
            return
        self._sum_czyx += prob_czyx
        self._sum_squares_zyx += _squares(prob_czyx)
        self._agree_zyx &= winner_zyx == self._first_zyx

    def mean_czyx(self) -> Tensor:
        """Return the mean probabilities (C, Z, Y, X).

        Raises InputError where they are not numbers, which would pass for a confident background.
        """
        if self._sum_czyx is None or self._sum_squares_zyx is None:
            raise ValueError(
                "No pass was added: call add() with the probabilities of a voter first."
            )
        if not torch.isfinite(self._sum_czyx).all():
            raise InputError(
                "The networks answered with probabilities that are not finite. Look for extreme "
                "intensities in the image; if other cases fail too, the networks have diverged: "
                "train again with a lower train.lr."
            )
        if not self._done:  # where they lie: with many classes each copy is gigabytes
            self._sum_czyx /= self._passes
            self._sum_squares_zyx /= self._passes
        self._done = True
        return self._sum_czyx

    def finish(self, given_zyx: NDArray[np.integer]) -> Evidence:
        """Return the evidence of all passes against the given label (channel indices, z y x).

        Where the label is `UNKNOWN`, so is the prediction, with probability 0.
        """
        mean_czyx, squares_zyx = self.mean_czyx(), self._sum_squares_zyx
        assert squares_zyx is not None
        assert self._agree_zyx is not None
        prob_zyx, predicted_zyx = mean_czyx.max(dim=0)
        given_index = torch.from_numpy(given_zyx.astype(np.int64)).to(mean_czyx.device)
        unknown = given_index == UNKNOWN
        given_prob_zyx = mean_czyx.gather(0, given_index.masked_fill(unknown, 0)[None])[0]
        given_prob_zyx, prob_zyx = (
            prob.masked_fill(unknown, 0.0) for prob in (given_prob_zyx, prob_zyx)
        )
        predicted_zyx = predicted_zyx.masked_fill(unknown, UNKNOWN)
        aleatoric_zyx = (mean_czyx.sum(dim=0) - squares_zyx).clamp_(min=0) / 2
        epistemic_zyx = (squares_zyx - _squares(mean_czyx)).clamp_(min=0) / 2
        return Evidence(
            predicted_zyx=predicted_zyx.to(torch.uint8).cpu().numpy(),
            prob_zyx=prob_zyx.cpu().numpy(),
            given_prob_zyx=given_prob_zyx.cpu().numpy(),
            background_prob_zyx=mean_czyx[0].cpu().numpy(),
            aleatoric_zyx=aleatoric_zyx.cpu().numpy(),
            epistemic_zyx=epistemic_zyx.cpu().numpy(),
            agree_zyx=self._agree_zyx.cpu().numpy(),
        )


def _squares(prob_czyx: Tensor) -> Tensor:
    """Return the sums over classes of p squared (Z, Y, X), plane by plane to copy little."""
    return torch.stack([prob_zyx.square().sum(dim=0) for prob_zyx in prob_czyx.unbind(1)])


def quantise(prob: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Return the level floor(256 p) of each probability, 255 at most.

    Thresholds are compared on levels only, so a histogram of levels scores every threshold exactly.
    """
    levels: NDArray[np.uint8] = np.clip(np.floor(prob * LEVELS), 0, LEVELS - 1).astype(np.uint8)
    return levels


def threshold_level(threshold: float) -> int:
    """Return the lowest level that counts as above `threshold` of a quantity in [0, 1).

    >>> threshold_level(0.5)
    128
    """
    return int(np.clip(np.ceil(threshold * LEVELS), 0, LEVELS))
