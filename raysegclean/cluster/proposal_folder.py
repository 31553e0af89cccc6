"""Where proposals live in the run folder, and how a shard of them is read and written.

The folder of a case carries the key of the propose stage, so proposals of other networks or of a
changed input can never be mixed up with these. What a worker left that died before it committed is
overwritten: another device may answer otherwise in the last bit. What is committed is not, because
no worker begins with it again (`cluster.worker`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysegclean.evidence.proposals import Proposal
from raysegclean.evidence.records import StoredObject
from raysegclean.planning.plan import CasePlan, RunPlan
from raysegclean.store.arrays import Volume
from raysegclean.store.objects import Store
from raysegclean.store.shards import ArraySpec, create_array, put_shard
from raysegclean.voxels.geometry import Box, Index3, output_shard_zyx

__all__ = ["CORRECTION", "ProposalFolder"]

CORRECTION = "correction"
"""The part that the corrector writes: 1 + its channel where it differs from the given label."""


@dataclass(frozen=True)
class ProposalFolder:
    """The proposals of one case under one key."""

    store: Store
    key: str
    case: str
    shape_zyx: Index3
    shard_vox: int
    with_score: bool
    correction_key: str = ""
    """Key of the corrector's pass; empty where its answer is not asked for."""

    @classmethod
    def of(
        cls, store: Store, plan: RunPlan, case: CasePlan, key: str, *, correction_key: str = ""
    ) -> "ProposalFolder":
        """Return where the proposals of one case of a run are."""
        return cls(
            store=store,
            key=key,
            case=case.case,
            shape_zyx=case.shape_zyx,
            shard_vox=plan.shard_vox,
            with_score=bool(plan.voters.score),
            correction_key=correction_key,
        )

    @property
    def spec(self) -> ArraySpec:
        """Layout of each part: the same shards as the output label."""
        shard = output_shard_zyx(self.shape_zyx, self.shard_vox)
        return ArraySpec(self.shape_zyx, "uint8", shard)

    def path(self, part: str) -> str:
        """Return where one part is: candidate, confidence, score or correction."""
        if part == CORRECTION:
            return f"corrector/{self.correction_key}/{self.case}/{part}"
        return f"proposals/{self.key}/{self.case}/{part}"

    def create(self, parts: Sequence[str] = ()) -> "ProposalFolder":
        """Write the metadata of `parts` (default: those of a proposal); repeatable."""
        for part in parts or self._parts():
            create_array(self.store, self.path(part), self.spec)
        return self

    def write(self, index_zyx: Index3, proposal: Proposal) -> tuple[StoredObject, ...]:
        """Write one shard of a proposal; return what the ledger lists."""
        blocks = [proposal.candidate_zyx, proposal.confidence_zyx]
        if proposal.score_zyx is not None:
            blocks.append(proposal.score_zyx)
        parts = zip(self._parts(), blocks, strict=True)
        return tuple(self._put(part, index_zyx, block) for part, block in parts)

    def write_correction(
        self, index_zyx: Index3, correction_zyx: NDArray[np.uint8]
    ) -> tuple[StoredObject, ...]:
        """Write one shard of the corrector's answer; return what the ledger lists."""
        return (self._put(CORRECTION, index_zyx, correction_zyx),)

    def read(self, box: Box) -> Proposal:
        """Return the proposal of `box`, which lies inside the case."""
        names = (*self._parts(), CORRECTION) if self.correction_key else self._parts()
        reads = {name: Volume(self.store, self.path(name)).start(box) for name in names}
        blocks: dict[str, NDArray[np.uint8]] = {name: r.result() for name, r in reads.items()}
        return Proposal(
            candidate_zyx=blocks["candidate"],
            confidence_zyx=blocks["confidence"],
            score_zyx=blocks.get("score"),
            correction_zyx=blocks.get(CORRECTION),
        )

    def _put(self, part: str, index_zyx: Index3, block: NDArray[np.uint8]) -> StoredObject:
        path = self.path(part)
        return put_shard(self.store, path, index_zyx, block, self.spec, overwrite=True)

    def _parts(self) -> tuple[str, ...]:
        return ("candidate", "confidence") + (("score",) if self.with_score else ())
