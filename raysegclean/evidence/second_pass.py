"""A second look: what a method asks of chosen cases, with the voters' probabilities in hand.

The propose stage runs the voters once and keeps no probabilities. A policy that needs more says so
by yielding a `CaseQuery`: a pure function on one block, and the cases to run it on. Its answers
are merged per case in a fixed order, so they do not depend on workers. A `Revision` is the last
look: it returns a label, which the rule takes where the edits open a class to it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from raysegclean.voxels.channels import UNKNOWN
from raysegclean.voxels.geometry import Box, Index3

__all__ = [
    "Answer",
    "BlockQuery",
    "CaseQuery",
    "PredictedBlock",
    "Relabeler",
    "Revision",
    "with_unknown_filled",
]

Answer = Mapping[str, NDArray[Any]]
"""What a look says of one block, or merged, of one case: small arrays by name."""


@dataclass(frozen=True)
class PredictedBlock:
    """One block with halo, as voters and annotators see it; labels are channel indices (z y x)."""

    case: str
    window: Box
    """Where the arrays lie in the case."""
    core: Box
    """The voxels to answer for, relative to the arrays."""
    given_zyx: NDArray[np.uint8]
    trusted_zyx: NDArray[np.uint8] | None
    prob_czyx: NDArray[np.float32]
    """Mean probabilities over all passes."""
    features_fzyx: NDArray[np.float32] | None
    """Penultimate activations of the first network, for looks that ask for them."""
    spacing_mm: tuple[float, float, float]
    known_zyx: NDArray[np.bool_] | None = None
    """Where every label was known, None for everywhere; elsewhere labels are what the voters say,
    so that outlines run on, and nothing is counted or revised."""

    @property
    def known_core_zyx(self) -> NDArray[np.bool_]:
        """Where in the core every label was known."""
        if self.known_zyx is None:
            return np.ones(self.core.shape_zyx, np.bool_)
        return self.known_zyx[self.core.slices]


def with_unknown_filled(block: PredictedBlock) -> PredictedBlock:
    """Return the block with what the voters say where a label is `UNKNOWN`."""
    labels = [one for one in (block.given_zyx, block.trusted_zyx) if one is not None]
    unknown = np.logical_or.reduce([one == UNKNOWN for one in labels])
    if not unknown.any():
        return block
    seen = block.prob_czyx.argmax(axis=0).astype(np.uint8)
    filled = [np.where(one == UNKNOWN, seen, one) for one in labels]
    return replace(
        block,
        given_zyx=filled[0],
        trusted_zyx=None if block.trusted_zyx is None else filled[1],
        known_zyx=~unknown,
    )


class BlockQuery(Protocol):
    """A frozen dataclass of plain values: it travels to the workers and is hashed."""

    @property
    def needs_features(self) -> bool:
        """Whether `PredictedBlock.features_fzyx` is to be filled."""

    def halo_vox(self, spacing_mm: tuple[float, float, float]) -> Index3:
        """Return how far the arrays must reach beyond the core."""

    def look(self, block: PredictedBlock, values: Mapping[str, Any]) -> Answer:
        """Return what the block says; `values` are those of its case."""

    def merge(self, first: Answer, second: Answer) -> Answer:
        """Return both answers as one; associative and commutative to the last bit."""


class Relabeler(Protocol):
    """A frozen dataclass of plain values: it travels to the workers and is hashed."""

    def halo_vox(self, spacing_mm: tuple[float, float, float]) -> Index3:
        """Return how far the arrays must reach beyond the core."""

    def revise(self, block: PredictedBlock, values: Mapping[str, Any]) -> NDArray[np.uint8]:
        """Return the channels (z y x) of the core; `values` are those of its case."""


@dataclass(frozen=True)
class CaseQuery:
    """Which cases to look at, and how."""

    look: BlockQuery
    cases: Mapping[str, Mapping[str, Any]]
    """Case -> plain values for it."""


@dataclass(frozen=True)
class Revision:
    """Which cases to revise, and how."""

    reviser: Relabeler
    cases: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Case -> plain values for it."""
