"""Votes of labels: several cleaned labels of one case say where, and to what, a label changes.

Each label gives one vote per voxel. A label that agrees with the given one votes for no change;
among the other values the one with most votes is the candidate, and of equal ones that of the label
named first. Everything is voxel by voxel, so blocks equal the whole case.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysegclean.errors import ConfigError
from raysegclean.evidence.proposals import Proposal
from raysegclean.evidence.voxel_evidence import Evidence, quantise

__all__ = ["MAX_LABELS", "Ballot", "count_votes", "vote_threshold"]

Channels = NDArray[np.uint8]

MAX_LABELS = 7
"""Labels that can vote: who did is kept in one byte, whose highest bit says that it is a vote."""


@dataclass(frozen=True)
class Ballot:
    """The votes of one block; all arrays uint8 with axes z, y, x."""

    labels: int
    """How many may vote."""
    predicted_zyx: Channels
    """The candidate's channel, the given one where nobody wants a change."""
    votes_zyx: Channels
    """Labels for the candidate; 0 where there is none."""
    who_zyx: Channels
    """Which labels these are: bit i for label i."""
    given_votes_zyx: Channels
    """Labels for the given label."""
    background_votes_zyx: Channels
    """Labels for background."""

    def proposal(self) -> Proposal:
        """Return the candidates, with the share of labels as confidence and who as score."""
        differs = self.votes_zyx > 0
        return Proposal(
            candidate_zyx=np.where(differs, self.predicted_zyx + 1, 0).astype(np.uint8),
            confidence_zyx=quantise(self._share(self.votes_zyx)) * differs,
            score_zyx=self.who_zyx,
        )

    def evidence(self) -> Evidence:
        """Return shares of labels as if they were probabilities; nothing is uncertain."""
        differs, given = self.votes_zyx > 0, self._share(self.given_votes_zyx)
        share = np.where(differs, self._share(self.votes_zyx), given)
        unanimous = np.where(differs, self.votes_zyx, self.given_votes_zyx) == self.labels
        none = np.zeros(share.shape, np.float32)
        return Evidence(
            predicted_zyx=self.predicted_zyx,
            prob_zyx=share.astype(np.float32),
            given_prob_zyx=given,
            background_prob_zyx=self._share(self.background_votes_zyx),
            aleatoric_zyx=none,
            epistemic_zyx=none,
            agree_zyx=np.asarray(unanimous, np.bool_),
        )

    def _share(self, votes_zyx: Channels) -> NDArray[np.float32]:
        if not self.labels:
            return np.ones(votes_zyx.shape, np.float32)
        return votes_zyx.astype(np.float32) / np.float32(self.labels)


def count_votes(given_zyx: Channels, labels_zyx: Sequence[Channels], classes: int) -> Ballot:
    """Return the votes of labels (channel indices, z y x) against the given one.

    A channel of `classes` or more, a value that the run does not know, is an abstention; where the
    given label has one, nobody votes. Raises ConfigError for more than `MAX_LABELS` labels.
    """
    if len(labels_zyx) > MAX_LABELS:
        raise ConfigError(f"labels: at most {MAX_LABELS} labels can vote, got {len(labels_zyx)}.")
    none, known = np.zeros_like(given_zyx), given_zyx < classes
    best, who, predicted = none.copy(), none.copy(), given_zyx.copy()
    for label_zyx in labels_zyx:
        same = [other_zyx == label_zyx for other_zyx in labels_zyx]
        votes = sum(same, none)
        wins = known & (label_zyx != given_zyx) & (label_zyx < classes) & (votes > best)
        mask = sum(one.astype(np.uint8) << bit for bit, one in enumerate(same))
        best[wins], predicted[wins] = votes[wins], label_zyx[wins]
        who[wins] = np.asarray(mask, np.uint8)[wins]
    return Ballot(
        labels=len(labels_zyx),
        predicted_zyx=predicted,
        votes_zyx=best,
        who_zyx=who,
        given_votes_zyx=sum((one == given_zyx for one in labels_zyx), none),
        background_votes_zyx=sum((one == 0 for one in labels_zyx), none),
    )


def vote_threshold(agree: int, labels: int) -> float:
    """Return a confidence that `agree` votes of `labels` reach and fewer do not.

    Halfway between two counts, so that rounding of shares to levels cannot matter.
    """
    return (agree - 0.5) / labels
