"""Second looks and revisions on workers: the voters run again over the cases that were asked for.

A look leaves a small answer per shard, an npz without pickles in the run folder; a revision leaves
the label it wants as the part `correction` of the case's proposals. Both see a shard with the halo
that they declare, and the probabilities of the same voters that proposed.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from raysegclean.cluster.predict import Channels, Predictor, VoteJob, Window
from raysegclean.cluster.proposal_folder import CORRECTION, ProposalFolder
from raysegclean.errors import InputError
from raysegclean.evidence.records import ShardRecord
from raysegclean.evidence.second_pass import (
    Answer,
    BlockQuery,
    PredictedBlock,
    Relabeler,
    with_unknown_filled,
)
from raysegclean.planning.items import ShardTask
from raysegclean.store.objects import Store
from raysegclean.store.shards import stored
from raysegclean.voxels.channels import UNKNOWN
from raysegclean.voxels.geometry import Box

__all__ = [
    "LookJob",
    "QueryJob",
    "QueryStage",
    "ReviseJob",
    "ReviseStage",
    "answer_key",
    "read_answer",
]

Looker = TypeVar("Looker", bound=BlockQuery | Relabeler)


@dataclass(frozen=True)
class LookJob(Generic[Looker]):
    """What a look or a revision needs beside the voters."""

    votes: VoteJob
    looker: Looker
    values: Mapping[str, Mapping[str, Any]]
    """Case -> what the policy says of it."""
    keys: Mapping[str, str]
    """Case -> key of this look; recorded with every shard."""


QueryJob = LookJob[BlockQuery]
ReviseJob = LookJob[Relabeler]


@dataclass(frozen=True)
class Loaded:
    """One shard with halo; labels are channels, axes z, y, x."""

    image: Window
    core: Box
    given_zyx: Channels
    trusted_zyx: Channels | None


class _Blocks(Generic[Looker]):
    """Reads shards with the halo of the looker, and predicts them."""

    def __init__(self, job: LookJob[Looker], *, with_features: bool = False) -> None:
        self._job, self._with_features = job, with_features
        self._predictor = Predictor(job.votes)

    def load(self, task: ShardTask) -> Loaded:
        """Read image and labels."""
        case = self._predictor.cases[task.case]
        core = case.grid(self._predictor.plan.shard_vox).box(task.index_zyx)
        halo = self._job.looker.halo_vox(case.metric_mm)
        box = core.grown(halo).clipped(Box.whole(case.shape_zyx))
        labels = self._predictor.labels(case, box)
        return Loaded(self._predictor.read(case, box), core, *labels)

    def _block(self, task: ShardTask, loaded: Loaded) -> PredictedBlock:
        """Run the voters over the shard and its halo."""
        case, box = self._predictor.cases[task.case], loaded.image.box
        prob_czyx, features_fzyx = self._predictor.means(
            case, loaded.image, with_features=self._with_features
        )
        return with_unknown_filled(
            PredictedBlock(
                case=task.case,
                window=box,
                core=loaded.core.relative_to(box),
                given_zyx=loaded.given_zyx,
                trusted_zyx=loaded.trusted_zyx,
                prob_czyx=prob_czyx,
                features_fzyx=features_fzyx,
                spacing_mm=case.metric_mm,
            )
        )


class QueryStage(_Blocks[BlockQuery]):
    """Answers shards; one per worker."""

    def __init__(self, job: QueryJob) -> None:
        super().__init__(job, with_features=job.looker.needs_features)

    def compute(self, task: ShardTask, loaded: Loaded) -> Answer:
        """Return what the look says of the shard."""
        return self._job.looker.look(self._block(task, loaded), self._job.values[task.case])

    def write(self, task: ShardTask, result: Answer) -> ShardRecord:
        """Write the answer as one object; return the ledger's record."""
        key = self._job.keys[task.case]
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **dict(result))
        name, data = answer_key(task.name, key), buffer.getvalue()
        self._predictor.store.put(name, data)
        return ShardRecord(task.name, task.case, key, objects=(stored(name, data),))


class ReviseStage(_Blocks[Relabeler]):
    """Writes the label that a reviser wants, shard by shard; one per worker."""

    def __init__(self, job: ReviseJob) -> None:
        super().__init__(job)
        self._folder = lru_cache(maxsize=256)(self._create_folder)

    def compute(self, task: ShardTask, loaded: Loaded) -> NDArray[np.uint8]:
        """Return 1 + the wanted channel where it differs from the given label, else 0."""
        block = self._block(task, loaded)
        given = loaded.given_zyx[block.core.slices]
        wanted = self._job.looker.revise(block, self._job.values[task.case])
        changes = (wanted != given) & (given != UNKNOWN)
        return np.where(changes, wanted + 1, 0).astype(np.uint8)

    def write(self, task: ShardTask, result: NDArray[np.uint8]) -> ShardRecord:
        """Write the shard of the correction; return the ledger's record."""
        objects = self._folder(task.case).write_correction(task.index_zyx, result)
        key = self._job.keys[task.case]
        return ShardRecord(task.name, task.case, key, objects=objects)

    def _create_folder(self, case: str) -> ProposalFolder:
        key = self._job.keys[case]
        folder = replace(self._predictor.folder(case), correction_key=key)
        return folder.create([CORRECTION])


def answer_key(task: str, key: str) -> str:
    """Return where the answer of one shard is in the run folder."""
    return f"looks/{key}/{task}.npz"


def read_answer(store: Store, task: str, key: str) -> Answer:
    """Return the answer of one shard; InputError when it is no such file."""
    name = answer_key(task, key)
    try:
        with np.load(io.BytesIO(store.get(name)), allow_pickle=False) as arrays:
            return {part: arrays[part] for part in arrays.files}
    except (ValueError, OSError, KeyError) as error:
        raise InputError(
            f"{store.uri}/{name}: unreadable ({error}). Delete the folder looks/ and ledger/look-* "
            "of the run; its second looks are then taken again."
        ) from error
