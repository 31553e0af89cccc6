"""Where proposals live in the run folder, and how a shard of them is read and written.

The folder of a case carries the key of the propose stage, so proposals of other networks or of a
changed input can never be mixed up with these, and nothing is ever overwritten.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysegclean.core.geometry import Box, Index3, output_shard_zyx
from raysegclean.core.proposals import Proposal
from raysegclean.store.arrays import Volume
from raysegclean.store.objects import Store
from raysegclean.store.shards import LabelArraySpec, create_label_array, put_shard

__all__ = ["ProposalFolder"]


@dataclass(frozen=True)
class ProposalFolder:
    """The proposals of one case under one key."""

    store: Store
    key: str
    case: str
    shape_zyx: Index3
    shard_vox: int
    with_uncertainty: bool

    @property
    def spec(self) -> LabelArraySpec:
        """Layout of each part: the same shards as the output label."""
        shard = output_shard_zyx(self.shape_zyx, self.shard_vox)
        return LabelArraySpec(self.shape_zyx, "uint8", shard)

    def path(self, part: str) -> str:
        """Return where one part is: candidate, confidence or uncertainty."""
        return f"proposals/{self.key}/{self.case}/{part}"

    def create(self) -> None:
        """Write the metadata of all parts; repeatable."""
        for part in self._parts():
            create_label_array(self.store, self.path(part), self.spec)

    def write(self, index_zyx: Index3, proposal: Proposal) -> list[dict[str, Any]]:
        """Write one shard of all parts; return what the ledger lists."""
        blocks = {
            "candidate": proposal.candidate_zyx,
            "confidence": proposal.confidence_zyx,
            "uncertainty": proposal.uncertainty_zyx,
        }
        return [
            asdict(put_shard(self.store, self.path(part), index_zyx, block, self.spec))
            for part, block in blocks.items()
            if block is not None
        ]

    def read(self, box: Box) -> Proposal:
        """Return the proposal of `box`, which lies inside the case."""
        parts = {part: self._volume(part).start(box) for part in self._parts()}
        blocks: dict[str, NDArray[np.uint8]] = {p: r.result() for p, r in parts.items()}
        return Proposal(
            candidate_zyx=blocks["candidate"],
            confidence_zyx=blocks["confidence"],
            uncertainty_zyx=blocks.get("uncertainty"),
        )

    def _parts(self) -> tuple[str, ...]:
        return ("candidate", "confidence") + (("uncertainty",) if self.with_uncertainty else ())

    def _volume(self, part: str) -> Volume:
        return Volume(self.store, self.path(part))
