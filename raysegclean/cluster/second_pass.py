"""Second looks and revisions on workers: the voters run again over the cases that were asked for.

A look leaves a small answer per shard, an npz without pickles in the run folder; a revision leaves
the label it wants as the part `correction` of the case's proposals. Both see a shard with the halo
that they declare, and the probabilities of the same voters that proposed.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysegclean.cluster.predict import Channels, Predictor, VoteJob, Window
from raysegclean.cluster.proposal_folder import CORRECTION, ProposalFolder
from raysegclean.cluster.propose import labels_of
from raysegclean.errors import InputError
from raysegclean.evidence.records import ShardRecord
from raysegclean.evidence.second_pass import Answer, BlockQuery, PredictedBlock, Relabeler
from raysegclean.planning.items import ShardTask
from raysegclean.store.objects import Store
from raysegclean.store.shards import stored
from raysegclean.voxels.geometry import Box

__all__ = ["QueryJob", "QueryStage", "ReviseJob", "ReviseStage", "answer_key", "read_answer"]


@dataclass(frozen=True)
class QueryJob:
    """What a look needs beside the voters."""

    votes: VoteJob
    look: BlockQuery
    values: Mapping[str, Mapping[str, Any]]
    """Case -> what the policy says of it."""
    keys: Mapping[str, str]
    """Case -> key of this look; recorded with every shard."""


@dataclass(frozen=True)
class ReviseJob:
    """What a revision needs beside the voters."""

    votes: VoteJob
    reviser: Relabeler
    values: Mapping[str, Mapping[str, Any]]
    keys: Mapping[str, str]


@dataclass(frozen=True)
class Loaded:
    """One shard with halo; labels are channels, axes z, y, x."""

    image: Window
    core: Box
    given_zyx: Channels
    trusted_zyx: Channels | None


class _Blocks:
    """Reads shards with the halo of `looker`, and predicts them."""

    def __init__(
        self, votes: VoteJob, looker: BlockQuery | Relabeler, *, with_features: bool
    ) -> None:
        self.predictor = Predictor(votes)
        self._looker, self._with_features = looker, with_features

    def load(self, task: ShardTask) -> Loaded:
        """Read image and labels."""
        plan, case = self.predictor.plan, self.predictor.cases[task.case]
        core = case.grid(plan.shard_vox).box(task.index_zyx)
        halo = self._looker.halo_vox(case.metric_mm)
        box = core.grown(halo).clipped(Box.whole(case.shape_zyx))
        labels = labels_of(self.predictor.reader, plan, case, box)
        return Loaded(self.predictor.read(case, box), core, *labels)

    def block(self, task: ShardTask, loaded: Loaded) -> PredictedBlock:
        """Run the voters over the shard and its halo."""
        case, box = self.predictor.cases[task.case], loaded.image.box
        prob_czyx, features_fzyx = self.predictor.means(
            case, loaded.image, with_features=self._with_features
        )
        return PredictedBlock(
            case=task.case,
            window=box,
            core=loaded.core.relative_to(box),
            given_zyx=loaded.given_zyx,
            trusted_zyx=loaded.trusted_zyx,
            prob_czyx=prob_czyx,
            features_fzyx=features_fzyx,
            spacing_mm=case.metric_mm,
        )


class QueryStage:
    """Answers shards; one per worker."""

    def __init__(self, job: QueryJob) -> None:
        self._job = job
        self._blocks = _Blocks(job.votes, job.look, with_features=job.look.needs_features)
        self.load = self._blocks.load

    def compute(self, task: ShardTask, loaded: Loaded) -> Answer:
        """Return what the look says of the shard."""
        block = self._blocks.block(task, loaded)
        return self._job.look.look(block, self._job.values[task.case])

    def write(self, task: ShardTask, result: Answer) -> ShardRecord:
        """Write the answer as one object; return the ledger's record."""
        key = self._job.keys[task.case]
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **dict(result))
        name, data = answer_key(task.name, key), buffer.getvalue()
        self._blocks.predictor.store.put(name, data)
        return ShardRecord(task.name, task.case, key, objects=(stored(name, data),))


class ReviseStage:
    """Writes the label that a reviser wants, shard by shard; one per worker."""

    def __init__(self, job: ReviseJob) -> None:
        self._job = job
        self._blocks = _Blocks(job.votes, job.reviser, with_features=False)
        self.load = self._blocks.load
        self._folder = lru_cache(maxsize=256)(self._create_folder)

    def compute(self, task: ShardTask, loaded: Loaded) -> NDArray[np.uint8]:
        """Return 1 + the wanted channel where it differs from the given label, else 0."""
        block = self._blocks.block(task, loaded)
        given = loaded.given_zyx[block.core.slices]
        wanted = self._job.reviser.revise(block, self._job.values[task.case])
        return np.where(wanted != given, wanted + 1, 0).astype(np.uint8)

    def write(self, task: ShardTask, result: NDArray[np.uint8]) -> ShardRecord:
        """Write the shard of the correction; return the ledger's record."""
        objects = self._folder(task.case).write_correction(task.index_zyx, result)
        key = self._job.keys[task.case]
        return ShardRecord(task.name, task.case, key, objects=objects)

    def _create_folder(self, case: str) -> ProposalFolder:
        key = self._job.keys[case]
        folder = replace(self._blocks.predictor.folder(case), correction_key=key)
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
