"""What a worker tells the driver of a shard: one record per stage, each a line of its ledger.

Counts that become megabytes of arrays stay packed as text until their case is judged.
"""

from dataclasses import dataclass, field, fields
from itertools import zip_longest

from raysegclean.voxels.offset_sums import OffsetSums

__all__ = [
    "ApplyRecord",
    "ChangeCounts",
    "CheckRecord",
    "FailedCase",
    "FailedShard",
    "GrossRecord",
    "MeasureRecord",
    "Offsets",
    "ProposeRecord",
    "ShardRecord",
    "StoredObject",
]


@dataclass(frozen=True)
class StoredObject:
    """One committed object; `key` is relative to its store. An empty one is not there."""

    key: str
    size_bytes: int
    crc32c: int
    empty: bool = False


@dataclass(frozen=True)
class ShardRecord:
    """What was committed of one shard, which `task` names, under the key of its case's stage."""

    task: str
    case: str
    key: str
    objects: tuple[StoredObject, ...] = field(default=(), kw_only=True)


@dataclass(frozen=True)
class Offsets:
    """Boundary offsets against the prediction, of the given label and of a trusted one."""

    given: OffsetSums
    trusted: OffsetSums | None = None


@dataclass(frozen=True, kw_only=True)
class ProposeRecord(ShardRecord):
    """What the voters say of a shard; None where it was not asked for."""

    stats: str
    """`CaseStats` of the given label, as text."""
    trusted_stats: str | None = None
    offsets: Offsets | None = None
    """Of a case of one shard; others are measured later."""
    seams: tuple[int, int] | None = None
    """Square and count of `Seams`."""


@dataclass(frozen=True, kw_only=True)
class CheckRecord(ShardRecord):
    """What a shard of a given label says of itself and of its image."""

    facts: str
    """`qc.label_statistics.BlockStatistics` as text."""
    affine: tuple[tuple[float, ...], ...] | None = None
    """Of the case, where it has one; told by its first shard."""


@dataclass(frozen=True, kw_only=True)
class MeasureRecord(ShardRecord):
    """Where the outlines of a shard lie, of a case that has several."""

    offsets: Offsets


@dataclass(frozen=True, kw_only=True)
class GrossRecord(ShardRecord):
    """What was seen of a case as a whole; its only task is named after its first shard."""

    look: str
    """`policy.gross_look.GrossLook` as text."""


@dataclass(frozen=True)
class ChangeCounts:
    """Voxels per channel of a settled shard, which add up to those of its case.

    What is counted against the trusted label or the prediction is empty where there is none.
    """

    given_vox: tuple[int, ...] = ()
    kept_vox: tuple[int, ...] = ()
    """Given voxels that stayed as they were."""
    after_vox: tuple[int, ...] = ()
    deep_vox: tuple[int, ...] = ()
    """Changed voxels that were or became the class, far from its outline in the given label."""
    reasons: tuple[int, ...] = ()
    """Voxels per reason, in the order of their codes."""
    trusted_vox: tuple[int, ...] = ()
    right_vox: tuple[int, ...] = ()
    """Of the new label where the trusted one agrees."""
    predicted_vox: tuple[int, ...] = ()
    agreed_vox: tuple[int, ...] = ()
    """Of the new label where the prediction agrees; before, of the given one."""
    agreed_before_vox: tuple[int, ...] = ()

    @property
    def changed_vox(self) -> int:
        """Voxels of any channel that changed."""
        return sum(self.given_vox) - sum(self.kept_vox)

    def merge(self, other: "ChangeCounts") -> "ChangeCounts":
        """Return the counts of both parts together."""
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return ChangeCounts(*(tuple(map(sum, zip_longest(*p, fillvalue=0))) for p in pairs))


@dataclass(frozen=True, kw_only=True)
class ApplyRecord(ShardRecord):
    """What settling a shard changes, or in a rehearsal would change."""

    counts: ChangeCounts
    regions: str | None = None
    """Changed components as text; None where nothing changed or nothing was written."""


@dataclass(frozen=True)
class FailedCase:
    """A case that failed, and why: a line of failed.jsonl."""

    case: str
    error: str


@dataclass(frozen=True)
class FailedShard(FailedCase):
    """The shard that it failed for, and whether the environment is to blame, as a full disk."""

    shard: str
    unfit: bool
