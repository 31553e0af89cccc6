"""Training patches, cut from the archive: what comes at a step is a function of (seed, step) alone.

See `nets.sampling`. All data-parallel ranks together get the batch of the step: rank r of R takes
its samples r, r + R, ...

Guaranteed: each step whole, its samples in order. A patch that cannot be cut because its case is
damaged comes as an empty one, all `IGNORE`, with the reason in the column `fault`: one bad case
costs its own patches and nothing else. Not guaranteed: that a store which cannot be reached is
survived.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysegclean.errors import InputError, MissingObject
from raysegclean.evidence.cases import Intensity
from raysegclean.nets.normalise import Normaliser
from raysegclean.nets.sampling import (
    PatchDraw,
    SamplingTable,
    draw,
    flip,
    place_patch,
    present_channels,
)
from raysegclean.store.archive import Archive
from raysegclean.store.arrays import Volume
from raysegclean.voxels.channels import IGNORE, channels_of, pad_to_box
from raysegclean.voxels.geometry import Box, Index3, triple
from raysegclean.voxels.resampling import Spacing, WorkingGrid

__all__ = ["LabelView", "PatchSource", "Rows"]

_OPEN_CASES = 2048
"""Cases that a reader keeps open, at some 10 kB each."""

Rows = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class LabelView:
    """The label to learn: the given one, or one of another round or archive."""

    archive_uri: str
    label: str
    label_uri: str | None = None
    """Archive that holds the label, where it is not the one of the images."""

    def open(self, case: str) -> tuple[Volume, Volume]:
        """Return image and label of a case.

        Raises CaseError when one is missing, InputError when their shapes differ.
        """
        image = Archive.open(self.archive_uri).image(case)
        label = Archive.open(self.label_uri or self.archive_uri).label(case, self.label)
        if image.shape_zyx != label.shape_zyx:
            raise InputError(
                f"{label.uri}: shape {label.shape_zyx}, its image has {image.shape_zyx}; "
                "ingest the case again"
            )
        return image, label


@dataclass(frozen=True, eq=False)
class PatchSource:
    """All that a reader must know; sent once to each node that reads.

    intensities, spacing_mm: by case id. classes: label values, ascending; the position is the
    channel. batch: samples per step, all data-parallel ranks together. flip_axes: 0 z, 1 y, 2 x.
    patch_zyx: working voxels. working_mm: their spacing, None for each case's own.
    clean: the source of trusted patches that come beside each step's own. judged: that of the cases
    on which agreement is measured; they are never learnt from.
    """

    view: LabelView
    table: SamplingTable
    intensities: dict[str, Intensity]
    spacing_mm: dict[str, tuple[float, float, float]]
    normaliser: Normaliser
    classes: tuple[int, ...]
    patch_zyx: Index3
    channels: int
    batch: int
    seed: int
    flip_axes: tuple[int, ...] = ()
    working_mm: Spacing | None = None
    clean: "PatchSource | None" = None
    judged: "PatchSource | None" = None

    @property
    def cases(self) -> tuple[str, ...]:
        """All cases by number: those of the table, then those of `clean`."""
        return self.table.cases + (self.clean.cases if self.clean else ())

    def rows(self, rank: int, ranks: int) -> int:
        """Return how many rows `cut` returns."""
        return len(range(rank, self.batch, ranks)) + (
            self.clean.rows(rank, ranks) if self.clean else 0
        )

    @property
    def patch_bytes(self) -> int:
        """Bytes of one row: float32 channels and an int16 label."""
        return int(np.prod(self.patch_zyx)) * (4 * self.channels + 2)

    @cached_property
    def present(self) -> dict[str, tuple[int, ...]]:
        """Case -> the channels that its whole label holds."""
        return present_channels(self.table, self.classes)

    @cached_property
    def seen_mm(self) -> dict[str, Spacing]:
        """Case -> voxel size (z, y, x) of its patches."""
        shapes = zip(self.table.cases, self.table.shape_zyx, strict=True)
        return {case: self.grid(case, triple(map(int, shape))).seen_mm for case, shape in shapes}

    def grid(self, case: str, shape_zyx: Index3) -> WorkingGrid:
        """Return the grid on which a case of this native shape is learnt."""
        return WorkingGrid.of(shape_zyx, self.spacing_mm[case], self.working_mm)

    def cut(self, step: int, rank: int, ranks: int) -> Rows:
        """Return the samples of `rank` at `step` as columns.

        image (N, C, Z, Y, X) float32; label (N, Z, Y, X) int16 channels; step (N,); case (N,)
        numbers into `cases`; uniform (N,) uint8; trusted (N,) uint8, 1 for the rows of `clean`,
        which come last; fault (N,) text, empty when all is well.
        """
        rows = self._own(step, rank, ranks)
        if self.clean is None:
            return rows
        clean = self.clean.cut(step, rank, ranks)
        clean["case"] += np.int32(len(self.table.cases))
        clean["trusted"][:] = 1
        return {name: np.concatenate([rows[name], clean[name]]) for name in rows}

    def _own(self, step: int, rank: int, ranks: int) -> Rows:
        draws = draw(self.seed, step, 0, self.batch, self.table, flip_axes=self.flip_axes)
        mine = draws[rank::ranks]
        cuts = [_Cut(self, drawn) for drawn in mine]
        for stage in (_Cut.find, _Cut.read, _Cut.finish):
            for cut in cuts:  # each stage starts all its reads before the next waits for them
                cut.run(stage)
        return {
            "image": np.stack([cut.image_czyx for cut in cuts]),
            "label": np.stack([cut.label_zyx for cut in cuts]),
            "step": np.full(len(cuts), step, np.int64),
            "case": np.array([self._numbers[drawn.case] for drawn in mine], np.int32),
            "uniform": np.array([drawn.class_value is None for drawn in mine], np.uint8),
            "trusted": np.zeros(len(cuts), np.uint8),
            "fault": np.array([cut.fault for cut in cuts], object),
        }

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {case: number for number, case in enumerate(self.table.cases)}

    @cached_property
    def volumes(self) -> Callable[[str], tuple[Volume, Volume]]:
        """Case -> its image and label, which stay open for the next patches."""
        return lru_cache(maxsize=_OPEN_CASES)(self.view.open)


class _Cut:
    """One patch on its way: find the box, start the reads, finish. A fault leaves it empty."""

    def __init__(self, source: PatchSource, drawn: PatchDraw) -> None:
        self.source = source
        self.drawn = drawn
        self.fault = ""
        self.image_czyx = np.zeros((source.channels, *source.patch_zyx), np.float32)
        self.label_zyx = np.full(source.patch_zyx, IGNORE, np.int16)

    def run(self, stage: Any) -> None:
        if self.fault:
            return
        try:
            stage(self)
        except (InputError, MissingObject) as error:
            self.fault = f"{self.drawn.case}: {error}"

    def find(self) -> None:
        self.image, self.label = self.source.volumes(self.drawn.case)
        wants_voxel = self.drawn.class_value is not None
        self.block = self.label.start(self.drawn.block) if wants_voxel else None

    def read(self) -> None:
        block = self.block.result() if self.block else None
        self.grid = self.source.grid(self.drawn.case, self.label.shape_zyx)
        self.box = place_patch(self.drawn, self.source.patch_zyx, self.grid, block)
        self.inner = self.box.clipped(Box.whole(self.grid.shape_zyx))
        self.native = self.grid.needed_native(self.inner)
        self.image_read = self.image.start(self.native)
        self.label_read = self.label.start(self.native)

    def finish(self) -> None:
        source, drawn = self.source, self.drawn
        voxels = self.image_read.result()
        image = voxels if voxels.ndim == 4 else voxels[np.newaxis]
        if len(image) != source.channels:
            raise InputError(f"image: {len(image)} channels, the network reads {source.channels}")
        # Normalised first: what is clipped must not weigh in a mean.
        image = source.normaliser.apply(image, source.intensities[drawn.case])
        image = self.grid.to_working(image, self.native, self.inner)
        label = self.grid.label_to_working(self.label_read.result(), self.native, self.inner)
        label = channels_of(label, source.classes)
        label = pad_to_box(label, self.inner, self.box, fill=IGNORE)
        self.image_czyx = flip(pad_to_box(image, self.inner, self.box), drawn.flips)
        self.label_zyx = flip(label, drawn.flips).astype(np.int16)
