"""Settle: given label + accepted proposals -> new label, one whole shard at a time, on CPU only.

A rehearsal does the same work and writes nothing: it tells what the decisions would change, so
that a case whose class would vanish, or change too much, is held back before anything is written.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from raysegclean.cluster.proposal_folder import ProposalFolder
from raysegclean.errors import InputError
from raysegclean.evidence.proposals import Proposal
from raysegclean.evidence.records import ApplyRecord, ChangeCounts, StoredObject
from raysegclean.planning.items import ShardTask
from raysegclean.planning.plan import CasePlan, RunPlan
from raysegclean.policy.apply import Applied, TakenBack, apply_edits, take_back
from raysegclean.policy.edits import NO_EDITS, VOTE_BIT, CaseEdits, Reason
from raysegclean.policy.gross_apply import restated
from raysegclean.store.archive import Archive
from raysegclean.store.arrays import Volume
from raysegclean.store.objects import Store
from raysegclean.store.run import RunFolder
from raysegclean.store.shards import ArraySpec, put_shard
from raysegclean.voxels.channels import UNKNOWN, byte_channels
from raysegclean.voxels.geometry import Box
from raysegclean.voxels.packing import arrays_to_text
from raysegclean.voxels.regions import change_components
from raysegclean.voxels.signed_distance import distance_halo_vox, signed_distance

__all__ = [
    "APPLY",
    "REASON_SUFFIX",
    "ApplyJob",
    "ApplyStage",
    "change_counts",
    "load_job",
    "save_job",
]

REASON_SUFFIX = ".reason"
APPLY = "apply"
"""The stage whose ledger lists the output."""
JOB = "apply_job.json"
DEEP_VOX = 2.0
"""Changes closer than this to the given outline of the class are ordinary corrections."""


@dataclass(frozen=True)
class ApplyJob:
    """What settling needs to know; the same for all workers."""

    run: str
    plan: RunPlan
    edits: Mapping[str, CaseEdits]
    """Cases that are not named here stay as given."""
    keys: Mapping[str, str]
    """Case -> key of its apply stage; recorded with every shard."""
    proposal_keys: Mapping[str, str]
    output_label: str
    writes: bool
    overwrite: frozenset[str] = frozenset()
    """Cases whose shards replace what is there."""
    undone: tuple[TakenBack, ...] = ()
    correction_keys: Mapping[str, str] = field(default_factory=dict)
    """Case -> key of the corrector's answer, for cases that have one."""


def save_job(run: RunFolder, job: ApplyJob) -> None:
    """Keep a job as plain values."""
    plain = TypeAdapter(ApplyJob).dump_python(replace(job, overwrite=frozenset()), mode="json")
    run.write_json(JOB, plain)


def load_job(run: RunFolder) -> ApplyJob:
    """Return the job that a run applied last, to read; InputError before it did."""
    plain = run.read_json(JOB)
    if plain is None:
        raise InputError(f"{run.uri}: this run has not applied yet; run its config again first.")
    return TypeAdapter(ApplyJob).validate_python(plain)


@dataclass(frozen=True)
class Loaded:
    """What one shard is applied from; channel indices, axes z, y, x."""

    given_zyx: NDArray[np.uint8]
    core: Box
    proposal: Proposal | None
    trusted_zyx: NDArray[np.uint8] | None
    """The trusted label of the core, for cases that have one."""
    restated_zyx: NDArray[np.uint8] | None = None
    """The core as it would be without an error of the whole label (`policy.gross_apply`)."""


class ApplyStage:
    """Settles shards; one per worker."""

    def __init__(self, job: ApplyJob) -> None:
        self._job = job
        self._store = Store.open(job.run)
        self._archive = Archive.open(job.plan.archive)
        self._cases = {case.case: case for case in job.plan.cases}
        self._given = lru_cache(maxsize=64)(self._open_given)
        self._values = _values(job.plan)

    def load(self, task: ShardTask) -> Loaded:
        """Read the given label with the halo its edits need, and the proposal."""
        case, edits = self._cases[task.case], self._edits(task.case)
        core = case.grid(self._job.plan.shard_vox).box(task.index_zyx)
        window = core.grown(self._halo(case, edits)).clipped(Box.whole(case.shape_zyx))
        read = partial(self._channels, task.case)
        return Loaded(
            read(window),
            core.relative_to(window),
            self._proposal(case, core, edits),
            self._trusted(case, core),
            restated(read, core, case.shape_zyx, edits),
        )

    def compute(self, task: ShardTask, loaded: Loaded) -> tuple[Applied, ApplyRecord]:
        """Return the new label with reasons, and what it changed."""
        case = self._cases[task.case]
        box = case.grid(self._job.plan.shard_vox).box(task.index_zyx)
        applied = apply_edits(
            loaded.given_zyx,
            loaded.core,
            loaded.proposal,
            self._edits(task.case),
            classes=len(self._job.plan.classes),
            spacing_mm=case.metric_mm,
            restated_zyx=loaded.restated_zyx,
            start_zyx=box.start_zyx,
        )
        if self._job.undone:
            given = loaded.given_zyx[loaded.core.slices]
            applied = take_back(applied, given, self._job.undone, task.case)
        classes, writes = len(self._job.plan.classes), self._job.writes
        return applied, ApplyRecord(
            task.name,
            task.case,
            self._job.keys[task.case],
            counts=change_counts(loaded, applied, case, classes),
            regions=_regions(loaded, applied, box) if writes else None,
        )

    def values(self, case: CasePlan, applied: Applied) -> NDArray[Any]:
        """Return the label values that are written, in the dtype of the output."""
        return self._values.astype(case.dtype)[applied.label_zyx]

    def write(self, task: ShardTask, result: tuple[Applied, ApplyRecord]) -> ApplyRecord:
        """Write the shard of the label and of its reasons; return the ledger's record."""
        applied, record = result
        if not self._job.writes:
            return record
        return replace(record, objects=self._put(task, self._cases[task.case], applied))

    def _put(self, task: ShardTask, case: CasePlan, applied: Applied) -> tuple[StoredObject, ...]:
        values = self.values(case, applied)
        shard = case.grid(self._job.plan.shard_vox).shard_zyx
        store = self._archive.at(task.case)
        name = self._job.output_label
        blocks = ((name, values, case.dtype), (name + REASON_SUFFIX, applied.reason_zyx, "uint8"))
        return tuple(
            put_shard(
                store,
                f"labels/{label}/0",
                task.index_zyx,
                block,
                ArraySpec(case.shape_zyx, dtype, shard),
                overwrite=task.case in self._job.overwrite,
            )
            for label, block, dtype in blocks
        )

    def _edits(self, case: str) -> CaseEdits:
        return self._job.edits.get(case, NO_EDITS)

    def _halo(self, case: CasePlan, edits: CaseEdits) -> tuple[int, int, int]:
        if edits.quiet:
            return (0, 0, 0)
        deep = distance_halo_vox(DEEP_VOX + 1, case.metric_mm)
        z, y, x = (max(a, b) for a, b in zip(deep, edits.halo_vox(case.metric_mm), strict=True))
        return z, y, x

    def _proposal(self, case: CasePlan, core: Box, edits: CaseEdits) -> Proposal | None:
        if edits.quiet:
            return None
        key = self._job.proposal_keys[case.case]
        correction = self._job.correction_keys[case.case] if edits.revisions else ""
        folder = ProposalFolder.of(
            self._store, self._job.plan, case, key, correction_key=correction
        )
        return folder.read(core)

    def _trusted(self, case: CasePlan, core: Box) -> NDArray[np.uint8] | None:
        name = self._job.plan.trusted_label
        if name is None or not case.trusted:
            return None
        values = self._archive.label(case.case, name).read(core)
        return byte_channels(values, self._job.plan.classes)

    def _channels(self, case: str, box: Box) -> NDArray[np.uint8]:
        return byte_channels(self._given(case).read(box), self._job.plan.classes)

    def _open_given(self, case: str) -> Volume:
        return self._archive.label(case, self._job.plan.label)


def change_counts(loaded: Loaded, applied: Applied, case: CasePlan, classes: int) -> ChangeCounts:
    """Count what settling changes; `deep` is further than `DEEP_VOX` from the given outline."""
    given, after = loaded.given_zyx[loaded.core.slices], applied.label_zyx
    changed, trusted = given != after, loaded.trusted_zyx
    if trusted is not None:
        trusted = np.where(given == UNKNOWN, given, trusted)
    deep = [0] * classes
    for channel in np.unique([*given[changed], *after[changed]]).tolist():
        if channel:
            touched = changed & ((given == channel) | (after == channel))
            outline = signed_distance(
                loaded.given_zyx == channel, case.metric_mm, limit_vox=DEEP_VOX + 1
            )[loaded.core.slices]
            deep[channel] = int((touched & (np.abs(outline) > DEEP_VOX)).sum())
    # All votes count as one, whoever voted.
    reason = np.where(applied.reason_zyx >= VOTE_BIT, np.uint8(Reason.VOTE), applied.reason_zyx)
    counts = ChangeCounts(
        given_vox=_counted(given, classes),
        kept_vox=_counted(given[~changed], classes),
        after_vox=_counted(after, classes),
        deep_vox=tuple(deep),
        reasons=_counted(reason, len(Reason)),
        trusted_vox=() if trusted is None else _counted(trusted, classes),
        right_vox=() if trusted is None else _counted(after[after == trusted], classes),
    )
    if loaded.proposal is None:
        return counts
    predicted = loaded.proposal.predicted_zyx(given)
    return replace(
        counts,
        predicted_vox=_counted(predicted, classes),
        agreed_vox=_counted(after[after == predicted], classes),
        agreed_before_vox=_counted(given[given == predicted], classes),
    )


def _counted(values: NDArray[np.uint8], upto: int) -> tuple[int, ...]:
    """Return voxels per value below `upto`."""
    return tuple(np.bincount(values.ravel(), minlength=upto)[:upto].tolist())


def _values(plan: RunPlan) -> NDArray[np.uint64]:
    """Return the label value of each channel; where none is ignored, `UNKNOWN` has no value."""
    values = np.asarray(plan.classes, np.uint64)
    if plan.label_ignore is None:
        return values
    every = np.full(UNKNOWN + 1, plan.label_ignore, np.uint64)
    every[: len(values)] = values
    return every


def _regions(loaded: Loaded, applied: Applied, box: Box) -> str | None:
    """Return the changed components of the shard as text, None where nothing changed."""
    given = loaded.given_zyx[loaded.core.slices]
    if np.array_equal(given, applied.label_zyx):
        return None
    found = change_components(
        given,
        applied.label_zyx,
        box,
        reason_zyx=applied.reason_zyx,
        confidence_zyx=loaded.proposal.confidence_zyx if loaded.proposal else None,
    )
    return arrays_to_text(found.to_arrays())
