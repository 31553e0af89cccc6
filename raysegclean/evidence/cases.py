"""What is known about one case without opening its voxels.

A `CaseInfo` is one row of the archive's index: geometry, intensities, and for every label the
number of voxels of each value, in the whole case and in each 64^3 block. Training draws rare
classes from it, planning sizes the work with it, and its versions tell a changed input from an
unchanged one. These are plain values: no file is touched here.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysegclean.errors import CaseError
from raysegclean.voxels.geometry import Grid, Index3

__all__ = [
    "BLOCK_VOX",
    "BlockCounts",
    "CaseImage",
    "CaseInfo",
    "Intensity",
    "LabelSummary",
    "block_grid",
]

BLOCK_VOX: Index3 = (64, 64, 64)

_PACKED = np.dtype("<u4")


def block_grid(shape_zyx: Index3) -> Grid:
    """Return the grid whose flat indices (x fastest) number the blocks of `LabelSummary.blocks`."""
    return Grid(shape_zyx, BLOCK_VOX)


@dataclass(frozen=True)
class BlockCounts:
    """Which 64^3 blocks hold a value, and how many of its voxels; 8 bytes per block.

    As Python tuples the blocks of 10,000 cases with 100 classes would take gigabytes.
    """

    packed: bytes

    @classmethod
    def of(cls, pairs: Iterable[tuple[int, int]]) -> "BlockCounts":
        """Pack pairs (flat index of a block, voxels in it), sorted by index."""
        return cls(np.array(sorted(pairs), _PACKED).tobytes())

    def rows(self) -> NDArray[np.int64]:
        """Return the pairs as (n, 2), sorted by index."""
        return np.frombuffer(self.packed, _PACKED).reshape(-1, 2).astype(np.int64)


@dataclass(frozen=True)
class Intensity:
    """Intensities of a whole image, all channels together, in the image's own unit.

    `p005` and `p995` are the 0.5 and 99.5 percentiles.
    """

    minimum: float
    p005: float
    p995: float
    maximum: float
    mean: float
    std: float


@dataclass(frozen=True)
class LabelSummary:
    """How often each value occurs in one label of one case.

    `voxels` maps every value that is present, background 0 included, to its number of voxels.
    `blocks` maps every value but 0 to the blocks that hold it; see `block_grid`. `version` changes
    when any object of the label changes.
    """

    name: str
    dtype: str
    voxels: dict[int, int]
    blocks: dict[int, BlockCounts]
    version: str


@dataclass(frozen=True, kw_only=True)
class CaseImage:
    """A case and its image, as the index and a plan know them; axes z, y, x."""

    case: str
    shape_zyx: Index3
    spacing_mm: tuple[float, float, float]
    intensity: Intensity


@dataclass(frozen=True, kw_only=True)
class CaseInfo(CaseImage):
    """One row of the index."""

    patient: str | None
    site: str | None
    annotator: str | None
    channels: int
    image_dtype: str
    labels: tuple[LabelSummary, ...]
    image_version: str

    def label(self, name: str) -> LabelSummary:
        """Return the summary of the label `name`; raise CaseError when the case has none."""
        for summary in self.labels:
            if summary.name == name:
                return summary
        present = ", ".join(s.name for s in self.labels) or "no label at all"
        raise CaseError(
            self.case,
            f"label {name!r} is missing; it has {present}. "
            "Ingest that label too, or leave the case out with `cases:`.",
        )
