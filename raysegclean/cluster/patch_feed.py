"""The training feed: patches cut anywhere on the cluster, in the order of the steps.

What comes at a step is a pure function of (seed, step), see `nets.sampling`; how it gets there is
not. A Ray Data source emits one read task per few steps; the task cuts the patches where it runs
and only finished patches of one fixed shape travel. So reading scales apart from training, and a
resumed training starts at any step with exactly the patches it would have had. All data-parallel
ranks together get the batch of the step: rank r of R takes its samples r, r + R, ...

Guaranteed: rows in the order of steps and samples, each step whole. A patch that cannot be cut
because its case is damaged comes as an empty one, all `IGNORE`, with the reason in the column
`fault`: one bad case costs its own patches and nothing else. Not guaranteed: that a store which
cannot be reached is survived; that is an error of the task, which the training retries.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.data import Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask
from ray.data.extensions import ArrowTensorArray

from raysegclean.cluster.connection import data_rules, node_memory_bytes
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
from raysegclean.voxels.geometry import Box, Index3

__all__ = ["LabelView", "PatchSource", "StepSource", "stream_rows"]

_BLOCK_BYTES = 32 << 20
_BLOCK_STEPS = 64
_BLOCKS_PER_DATASET = 2000
_READER_CPUS = 0.5
_READER_BYTES = 700 << 20
"""Heap of a reader: the chunk cache of 256 MB, a block being built, and the interpreter."""

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
    clean: the source of trusted patches that come beside each step's own.
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
    clean: "PatchSource | None" = None

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

    def volumes(self, case: str) -> tuple[Volume, Volume]:
        """Return image and label of a case, which stay open for the next patches."""
        return self._open(case)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {case: number for number, case in enumerate(self.table.cases)}

    @cached_property
    def _open(self) -> Callable[[str], tuple[Volume, Volume]]:
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
        shape = self.label.shape_zyx
        self.box = place_patch(self.drawn, self.source.patch_zyx, shape, block)
        self.inner = self.box.clipped(Box.whole(shape))
        self.image_read = self.image.start(self.inner)
        self.label_read = self.label.start(self.inner)

    def finish(self) -> None:
        source, drawn = self.source, self.drawn
        voxels = self.image_read.result()
        image = voxels if voxels.ndim == 4 else voxels[np.newaxis]
        if len(image) != source.channels:
            raise InputError(f"image: {len(image)} channels, the network reads {source.channels}")
        image = source.normaliser.apply(image, source.intensities[drawn.case])
        label = channels_of(self.label_read.result(), source.classes)
        label = pad_to_box(label, self.inner, self.box, fill=IGNORE)
        self.image_czyx = flip(pad_to_box(image, self.inner, self.box), drawn.flips)
        self.label_zyx = flip(label, drawn.flips).astype(np.int16)


@dataclass(frozen=True)
class _CutBlock:
    """What a read task runs: cut the steps [first, stop) of one rank into one block."""

    source: "ray.ObjectRef[PatchSource]"
    first: int
    stop: int
    rank: int
    ranks: int

    def __call__(self) -> Iterator[pa.Table]:
        source = _fetched(self.source)
        steps = [source.cut(step, self.rank, self.ranks) for step in range(self.first, self.stop)]
        rows = {name: np.concatenate([step[name] for step in steps]) for name in steps[0]}
        tensors = {name: ArrowTensorArray.from_numpy(rows[name]) for name in ("image", "label")}
        plain = {name: pa.array(rows[name]) for name in ("step", "case", "uniform", "trusted")}
        yield pa.table({**tensors, **plain, "fault": pa.array(rows["fault"], pa.string())})


@lru_cache(maxsize=2)
def _fetched(source: "ray.ObjectRef[PatchSource]") -> PatchSource:
    return ray.get(source)


@dataclass(eq=False)
class StepSource(Datasource):
    """Ray Data's view of a stretch of training: a read task per `steps_per_block` steps."""

    source: "ray.ObjectRef[PatchSource]"
    steps: range
    rank: int
    ranks: int
    rows_per_step: int
    patch_bytes: int
    bounds: list[int] = field(init=False)

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # no types in Ray
        size = max(1, min(_BLOCK_STEPS, _BLOCK_BYTES // (self.patch_bytes * self.rows_per_step)))
        self.bounds = [*range(self.steps.start, self.steps.stop, size), self.steps.stop]

    def __len__(self) -> int:
        """Return the number of blocks."""
        return len(self.bounds) - 1

    def get_read_tasks(
        self,
        parallelism: int,  # noqa: ARG002  (the blocks follow from the steps)
        per_task_row_limit: int | None = None,
        data_context: ray.data.DataContext | None = None,  # noqa: ARG002
    ) -> list[ReadTask]:
        """Return one task per block, in the order of the steps."""
        return [
            ReadTask(
                _CutBlock(self.source, first, stop, self.rank, self.ranks),
                BlockMetadata(
                    num_rows=(stop - first) * self.rows_per_step,
                    size_bytes=(stop - first) * self.rows_per_step * self.patch_bytes,
                    input_files=None,
                    exec_stats=None,
                ),
                per_task_row_limit=per_task_row_limit,
            )
            for first, stop in pairwise(self.bounds)
        ]

    def estimate_inmemory_data_size(self) -> int:
        """Return the bytes of all patches."""
        return len(self.steps) * self.rows_per_step * self.patch_bytes


def stream_rows(
    source: "ray.ObjectRef[PatchSource]",
    steps: range,
    *,
    rank: int = 0,
    ranks: int = 1,
    readers: int | None = None,
) -> Iterator[Rows]:
    """Yield the columns of one step after the other, as `PatchSource.cut` returns them.

    `readers` limits how many tasks read at once for this stream; by default Ray Data uses what
    is free. Raises RuntimeError when rows come out of order, which Ray Data rules out while
    `preserve_order` is set.
    """
    known = _fetched(source)
    rows = known.rows(rank, ranks)
    data_rules(ordered=True)
    for stretch in _stretches(steps, known.patch_bytes * rows):
        stream = StepSource(source, stretch, rank, ranks, rows, known.patch_bytes)
        data = ray.data.read_datasource(
            stream,
            num_cpus=_READER_CPUS,
            memory=min(_READER_BYTES, node_memory_bytes()),
            concurrency=readers,
            override_num_blocks=len(stream),
        )
        ahead = len(stretch) // len(stream) + 1
        batches = data.iter_batches(
            batch_size=rows, batch_format="numpy", prefetch_batches=ahead, drop_last=False
        )
        for step, batch in zip(stretch, batches, strict=True):
            if len(batch["step"]) != rows or (batch["step"] != step).any():
                raise RuntimeError(
                    f"training feed: expected {rows} rows of step {step}, got {batch['step']}"
                )
            yield batch


def _stretches(steps: range, step_bytes: int) -> Sequence[range]:
    """Split a long training into datasets whose planning stays small."""
    size = max(1, min(_BLOCK_STEPS, _BLOCK_BYTES // step_bytes)) * _BLOCKS_PER_DATASET
    starts = range(steps.start, steps.stop, size)
    return [range(start, min(start + size, steps.stop)) for start in starts]
