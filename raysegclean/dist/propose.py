"""Propose: the only stage that runs networks over the archive, once.

One actor holds the voters of the folds it meets. A shard is read with its halo, predicted tile by
tile, folded into evidence, and left as a sparse proposal plus counts; probabilities never leave
the device's tile.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysegclean.core.boundary import OFFSET_LIMIT_VOX, OffsetSums, boundary_sums, distance_halo_vox
from raysegclean.core.evidence import EvidenceSum
from raysegclean.core.geometry import Box
from raysegclean.core.items import ShardTask
from raysegclean.core.proposals import Proposal, propose
from raysegclean.core.sampling import channels_of
from raysegclean.core.stats import CaseStats, block_stats
from raysegclean.dist.proposals import ProposalFolder
from raysegclean.errors import UnfitEnvironment
from raysegclean.nets.inference import Tiling, iter_tile_probs
from raysegclean.nets.numerics import fix_numerics, numeric_class
from raysegclean.nets.voters import DropoutVoter, EnsembleVoter, NetworkVoter, Voter
from raysegclean.nets.weights import load_network
from raysegclean.plan import CasePlan, RunPlan
from raysegclean.store.archive import Archive
from raysegclean.store.arrays import Volume
from raysegclean.store.objects import Store

__all__ = ["MeasureStage", "ProposeJob", "ProposeStage", "device_numerics"]

Channels = NDArray[np.uint8]


@dataclass(frozen=True)
class ProposeJob:
    """What proposing needs to know; the same for all workers."""

    run: str
    models_run: str
    models: tuple[tuple[str, ...], ...]
    """Keys of the networks in `models_run`, by fold and member."""
    plan: RunPlan
    keys: Mapping[str, str]
    """Case -> key of its propose stage; recorded with every shard."""
    numerics: Mapping[str, str] | None
    """What every worker must be equal to, or None for any."""


@dataclass(frozen=True)
class Loaded:
    """What one shard is proposed from."""

    box: Box
    window: Box
    image_czyx: NDArray[Any]
    """Raw intensities of `window`."""
    given_zyx: Channels
    trusted_zyx: Channels | None


@dataclass(frozen=True)
class Proposed:
    """What came of one shard."""

    proposal: Proposal
    fields: dict[str, Any]


class _Reader:
    """Opens volumes once per process and reads labels as channels."""

    def __init__(self, plan: RunPlan) -> None:
        self._archive = Archive.open(plan.archive)
        self._classes = plan.classes
        self.image: Callable[[str], Volume] = lru_cache(maxsize=64)(self._archive.image)
        self._label: Callable[[str, str], Volume] = lru_cache(maxsize=128)(self._archive.label)

    def channels(self, case: str, label: str, box: Box) -> Channels:
        """Return a label's channel indices in `box`."""
        values = self._label(case, label).read(box)
        return channels_of(values, self._classes).astype(np.uint8)


class ProposeStage:
    """Proposes shards; one per actor."""

    def __init__(self, job: ProposeJob) -> None:
        self._job = job
        self._plan = job.plan
        self._cases = {case.case: case for case in job.plan.cases}
        self._store = Store.open(job.run)
        self._reader = _Reader(job.plan)
        fix_numerics(job.plan.train.threads)
        self._device = _device()
        _check_numerics(job, self._device)
        self._voter = lru_cache(maxsize=None)(self._load_voter)
        self._folder = lru_cache(maxsize=256)(self._create_folder)

    def load(self, task: ShardTask) -> Loaded:
        """Read the image with the network's halo, and the labels."""
        case = self._cases[task.case]
        box = case.grid(self._plan.shard_vox).box(task.index_zyx)
        voter = self._voter(case.fold)
        z, y, x = (h + s for h, s in zip(self._plan.halo_vox, voter.stride_zyx, strict=True))
        window = box.grown((z, y, x)).clipped(Box.whole(case.shape_zyx))
        image = self._reader.image(task.case).start(window)
        given = self._reader.channels(task.case, self._plan.label, box)
        trusted = None
        if case.trusted and self._plan.trusted_label is not None:
            trusted = self._reader.channels(task.case, self._plan.trusted_label, box)
        block = image.result()
        return Loaded(box, window, block if block.ndim == 4 else block[None], given, trusted)

    def compute(self, task: ShardTask, loaded: Loaded) -> Proposed:
        """Predict the shard tile by tile; return its proposal and counts."""
        case = self._cases[task.case]
        voter = self._voter(case.fold)
        classes = len(self._plan.classes)
        proposal = _empty_proposal(loaded.box, self._plan.voters.keeps_uncertainty)
        stats = trusted_stats = CaseStats.zero(classes)
        tiling = Tiling(self._plan.tile_zyx, self._plan.halo_vox, voter.stride_zyx)
        read = self._normalised(case, loaded)
        for core, passes in iter_tile_probs(voter, read, loaded.box, case.shape_zyx, tiling):
            sums = EvidenceSum()
            for prob_czyx in passes:
                sums.add(prob_czyx)
            part = core.relative_to(loaded.box).slices
            given, truth = loaded.given_zyx[part], _part(loaded.trusted_zyx, part)
            evidence = sums.finish(given)
            tile = self._propose(evidence, given)
            _place(proposal, tile, part)
            stats = stats.merge(block_stats(evidence, tile, given, classes, truth))
            if truth is not None:
                against = sums.finish(truth)
                trusted_stats = trusted_stats.merge(
                    block_stats(against, self._propose(against, truth), truth, classes)
                )
        fields: dict[str, Any] = {"stats": stats.to_text()}
        if loaded.trusted_zyx is not None:
            fields["trusted_stats"] = trusted_stats.to_text()
        if len(case.grid(self._plan.shard_vox)) == 1:
            fields |= _offsets(case, loaded.given_zyx, loaded.trusted_zyx, proposal, classes)
        return Proposed(proposal, fields)

    def write(self, task: ShardTask, result: Proposed) -> dict[str, Any]:
        """Write the proposal's shard; return the ledger's record."""
        key = self._job.keys[task.case]
        objects = self._folder(task.case).write(task.index_zyx, result.proposal)
        return {
            "shard": f"{task.name}@{key}",
            "task": task.name,
            "case": task.case,
            "key": key,
            "objects": objects,
            **result.fields,
        }

    def _propose(self, evidence: Any, given: Channels) -> Proposal:
        voters = self._plan.voters
        return propose(
            evidence,
            given,
            needs_agreement=voters.needs_agreement,
            keeps_uncertainty=voters.keeps_uncertainty,
        )

    def _normalised(self, case: CasePlan, loaded: Loaded) -> Callable[[Box], NDArray[np.float32]]:
        image = self._plan.normaliser.apply(loaded.image_czyx, case.intensity)

        def read(box: Box) -> NDArray[np.float32]:
            return image[(slice(None), *box.relative_to(loaded.window).slices)]

        return read

    def _create_folder(self, case: str) -> ProposalFolder:
        folder = proposal_folder(self._store, self._plan, self._cases[case], self._job.keys[case])
        folder.create()
        return folder

    def _load_voter(self, fold: int) -> Voter:
        store = Store.open(self._job.models_run)
        voters = self._plan.voters
        members: list[Voter] = []
        for member, key in enumerate(self._job.models[fold][: voters.members]):
            net, spec, _ = load_network(store.get(key))
            precision = self._plan.train.precision
            if voters.passes:
                members.append(
                    DropoutVoter(
                        net,
                        spec,
                        n_passes=voters.passes,
                        seed=self._plan.train.seed + member,
                        device=self._device,
                        precision=precision,
                    )
                )
            else:
                members.append(NetworkVoter(net, spec, device=self._device, precision=precision))
        return members[0] if len(members) == 1 else EnsembleVoter(members)


class MeasureStage:
    """Measures boundary offsets of cases of several shards, from label and proposal, on CPU.

    It runs after the proposals are complete, because a boundary's distance needs a halo of
    predictions that only the neighbouring shards hold.
    """

    def __init__(self, job: ProposeJob) -> None:
        self._job = job
        self._plan = job.plan
        self._cases = {case.case: case for case in job.plan.cases}
        self._store = Store.open(job.run)
        self._reader = _Reader(job.plan)

    def load(self, task: ShardTask) -> tuple[Box, Channels, Channels | None, Proposal]:
        """Read label and proposal with the halo of the distances."""
        case = self._cases[task.case]
        core = case.grid(self._plan.shard_vox).box(task.index_zyx)
        halo = distance_halo_vox(OFFSET_LIMIT_VOX, case.spacing_mm)
        window = core.grown(halo).clipped(Box.whole(case.shape_zyx))
        folder = proposal_folder(self._store, self._plan, case, self._job.keys[task.case])
        trusted = None
        if case.trusted and self._plan.trusted_label is not None:
            trusted = self._reader.channels(task.case, self._plan.trusted_label, window)
        given = self._reader.channels(task.case, self._plan.label, window)
        return core.relative_to(window), given, trusted, folder.read(window)

    def compute(
        self, task: ShardTask, loaded: tuple[Box, Channels, Channels | None, Proposal]
    ) -> dict[str, Any]:
        """Return the offsets of the shard's core."""
        core, given, trusted, proposal = loaded
        case = self._cases[task.case]
        return _offsets(case, given, trusted, proposal, len(self._plan.classes), core)

    def write(self, task: ShardTask, result: dict[str, Any]) -> dict[str, Any]:
        """Return the ledger's record; there is nothing to write."""
        key = self._job.keys[task.case]
        return {
            "shard": f"{task.name}@{key}",
            "task": task.name,
            "case": task.case,
            "key": key,
            "objects": [],
            **result,
        }


def proposal_folder(store: Store, plan: RunPlan, case: CasePlan, key: str) -> ProposalFolder:
    """Return where the proposals of one case are."""
    return ProposalFolder(
        store, key, case.case, case.shape_zyx, plan.shard_vox, plan.voters.keeps_uncertainty
    )


def device_numerics(threads: int, precision: str) -> dict[str, str]:
    """Return the numeric class of this process, with its numbers fixed as workers fix them."""
    fix_numerics(threads)
    return numeric_class(_device(), precision)


def _device() -> str:
    import torch  # noqa: PLC0415

    return "cuda" if torch.cuda.is_available() else "cpu"


def _check_numerics(job: ProposeJob, device: str) -> None:
    if job.numerics is None:
        return
    here = numeric_class(device, job.plan.train.precision)
    differing = [f"{k}: {v} here, {job.numerics.get(k)} in the run" for k, v in here.items()]
    if here != dict(job.numerics):
        raise UnfitEnvironment(
            f"this worker computes in another numeric class than the run ({'; '.join(differing)}), "
            "so its answers could differ in the last bit. Use the same kind of machine and image, "
            "or set numerics: any."
        )


def _empty_proposal(box: Box, with_uncertainty: bool) -> Proposal:
    blank = [np.zeros(box.shape_zyx, np.uint8) for _ in range(3 if with_uncertainty else 2)]
    return Proposal(blank[0], blank[1], blank[2] if with_uncertainty else None)


def _place(whole: Proposal, tile: Proposal, part: tuple[slice, slice, slice]) -> None:
    whole.candidate_zyx[part] = tile.candidate_zyx
    whole.confidence_zyx[part] = tile.confidence_zyx
    if whole.uncertainty_zyx is not None and tile.uncertainty_zyx is not None:
        whole.uncertainty_zyx[part] = tile.uncertainty_zyx


def _part(label: Channels | None, part: tuple[slice, slice, slice]) -> Channels | None:
    return None if label is None else label[part]


def _offsets(
    case: CasePlan,
    given: Channels,
    trusted: Channels | None,
    proposal: Proposal,
    classes: int,
    core: Box | None = None,
) -> dict[str, Any]:
    predicted = proposal.predicted_zyx(given)
    labels = {"offsets": given} | ({} if trusted is None else {"trusted_offsets": trusted})
    z, y, x = given.shape
    fields = {}
    for name, label in labels.items():
        sums: OffsetSums = boundary_sums(
            label,
            predicted,
            classes=range(1, classes),
            core=core or Box.whole((z, y, x)),
            spacing_mm=case.spacing_mm,
        )
        fields[name] = {str(channel): list(values) for channel, values in sums.sums.items()}
    return fields

