"""The corrector's two passes: sample rows in trusted cases, then answer for flagged cases.

Both run the voters again over those cases only, because the corrector looks at log-odds in the
boundary band and probabilities are never stored.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysegclean.core.corrector import (
    CorrectorBlock,
    CorrectorRows,
    corrector_halo_vox,
    fit_corrector,
    sample_rows,
)
from raysegclean.core.evidence import EvidenceSum
from raysegclean.core.geometry import Box
from raysegclean.core.items import ShardTask
from raysegclean.dist.predict import Channels, Predictor, VoteJob, Window
from raysegclean.dist.proposals import CORRECTION, ProposalFolder, record_of
from raysegclean.dist.propose import labels_of

__all__ = ["CorrectJob", "CorrectStage", "RowsStage", "rows_key"]

ROWS_PER_SHARD = 20_000


@dataclass(frozen=True)
class CorrectJob:
    """What the corrector's passes need beside the voters."""

    votes: VoteJob
    keys: Mapping[str, str]
    """Case -> key of this pass; recorded with every shard."""
    offsets_vox: Mapping[str, float]
    """Case -> offset of its boundary from the archive's centre."""
    rows: str | None = None
    """Where the merged training rows are in the run folder; None while they are sampled."""


@dataclass(frozen=True)
class Loaded:
    """One shard with the corrector's halo; labels are channels, axes z, y, x."""

    image: Window
    core: Box
    given_zyx: Channels
    trusted_zyx: Channels | None


class _Corrects:
    """What both passes share: reading a shard with halo, and its mean probabilities."""

    def __init__(self, job: CorrectJob) -> None:
        self.job = job
        self.predictor = Predictor(job.votes)

    def load(self, task: ShardTask) -> Loaded:
        """Read image and labels with the corrector's halo."""
        plan, case = self.predictor.plan, self.predictor.cases[task.case]
        core = case.grid(plan.shard_vox).box(task.index_zyx)
        box = core.grown(corrector_halo_vox(case.spacing_mm)).clipped(Box.whole(case.shape_zyx))
        labels = labels_of(self.predictor.reader, plan, case, box)
        return Loaded(self.predictor.read(case, box), core, *labels)

    def block(self, task: ShardTask, loaded: Loaded) -> CorrectorBlock:
        """Predict the shard with its halo."""
        case, box = self.predictor.cases[task.case], loaded.image.box
        shape = (len(self.predictor.plan.classes), *box.shape_zyx)
        prob_czyx: NDArray[np.float32] = np.empty(shape, np.float32)
        for core, passes in self.predictor.tiles(case, loaded.image):
            sums = EvidenceSum()
            for one_czyx in passes:
                sums.add(one_czyx)
            prob_czyx[(slice(None), *core.relative_to(box).slices)] = sums.mean_czyx().cpu().numpy()
        return CorrectorBlock(
            given_zyx=loaded.given_zyx,
            prob_czyx=prob_czyx,
            core=loaded.core.relative_to(box),
            offset_vox=self.job.offsets_vox.get(task.case, 0.0),
            spacing_mm=case.spacing_mm,
        )


class RowsStage:
    """Samples training rows from shards of trusted cases."""

    def __init__(self, job: CorrectJob) -> None:
        self._job = job
        self._shared = _Corrects(job)
        self.load = self._shared.load

    def compute(self, task: ShardTask, loaded: Loaded) -> tuple[CorrectorRows, dict[str, Any]]:
        """Return the rows, and how far given and trusted label agree in the shard."""
        assert loaded.trusted_zyx is not None
        block = self._shared.block(task, loaded)
        rows = sample_rows(
            block,
            loaded.trusted_zyx,
            case=task.case,
            window=loaded.image.box,
            limit=ROWS_PER_SHARD,
        )
        given, trusted = (
            label[block.core.slices] > 0 for label in (loaded.given_zyx, loaded.trusted_zyx)
        )
        counts = {
            "both_vox": int((given & trusted).sum()),
            "sum_vox": int(given.sum() + trusted.sum()),
        }
        return rows, counts

    def write(
        self, task: ShardTask, result: tuple[CorrectorRows, dict[str, Any]]
    ) -> dict[str, Any]:
        """Write the rows as one object; return the ledger's record."""
        rows, counts = result
        key = self._job.keys[task.case]
        self._shared.predictor.store.put(rows_key(task.name, key), rows.to_bytes())
        return record_of(task, key, []) | counts


class CorrectStage:
    """Writes the corrector's answer for shards of flagged cases; fits the trees when it starts."""

    def __init__(self, job: CorrectJob) -> None:
        assert job.rows is not None
        self._job = job
        self._shared = _Corrects(job)
        self.load = self._shared.load
        data = self._shared.predictor.store.get(job.rows)
        self._corrector = fit_corrector([CorrectorRows.from_bytes(data)])
        self._folder = lru_cache(maxsize=256)(self._create_folder)

    def compute(self, task: ShardTask, loaded: Loaded) -> NDArray[np.uint8]:
        """Return 1 + the preferred channel where it differs from the given label, else 0."""
        block = self._shared.block(task, loaded)
        given = loaded.given_zyx[block.core.slices]
        best = self._corrector.apply(block).astype(np.uint8)
        return np.where(best != given, best + 1, 0).astype(np.uint8)

    def write(self, task: ShardTask, result: NDArray[np.uint8]) -> dict[str, Any]:
        """Write the shard of the correction; return the ledger's record."""
        objects = self._folder(task.case).write_correction(task.index_zyx, result)
        return record_of(task, self._job.keys[task.case], objects)

    def _create_folder(self, case: str) -> ProposalFolder:
        key = self._job.keys[case]
        folder = replace(self._shared.predictor.folder(case), correction_key=key)
        folder.create([CORRECTION])
        return folder


def rows_key(task: str, key: str) -> str:
    """Return where the training rows of one shard are in the run folder."""
    return f"corrector/{key}/{task}.npz"
