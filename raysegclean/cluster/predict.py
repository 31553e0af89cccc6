"""What every stage that runs networks shares: reading windows, and the voters' passes over them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from raysegclean.cluster.proposal_folder import ProposalFolder
from raysegclean.errors import ConfigError, UnfitEnvironment
from raysegclean.evidence.voxel_evidence import EvidenceSum
from raysegclean.nets.inference import Seams, Tile, iter_tile_probs, needed_window
from raysegclean.nets.numerics import fix_numerics, numeric_class, usable_gpu
from raysegclean.nets.torchscript import Script, ScriptVoter
from raysegclean.nets.views import ViewsVoter
from raysegclean.nets.voters import (
    DropoutVoter,
    EnsembleVoter,
    NetworkVoter,
    Precision,
    Voter,
    head_inputs,
)
from raysegclean.nets.weights import load_network
from raysegclean.planning.plan import CasePlan, RunPlan
from raysegclean.store.archive import Archive
from raysegclean.store.arrays import Volume
from raysegclean.store.objects import Store
from raysegclean.voxels.channels import byte_channels
from raysegclean.voxels.geometry import Box

__all__ = ["Channels", "Predictor", "Reader", "VoteJob", "Window", "device_numerics"]

Channels = NDArray[np.uint8]
"""A label as channel indices, axes z, y, x."""


@dataclass(frozen=True)
class VoteJob:
    """What a worker that runs networks needs to know; the same for all workers."""

    run: str
    models_run: str
    models: tuple[tuple[str, ...], ...]
    """Keys of the networks in `models_run`, by fold and member."""
    plan: RunPlan
    keys: Mapping[str, str]
    """Case -> key of its propose stage; recorded with every shard."""
    numerics: Mapping[str, str] | None
    """What every worker must be equal to, or None for any."""
    gpu: bool = False
    """Whether the workers were given a GPU; another that they see is not theirs."""


@dataclass(frozen=True)
class Window:
    """Raw intensities around a box, far enough for the voters; axes c, z, y, x."""

    box: Box
    window: Box
    image_czyx: NDArray[Any]


class Reader:
    """The cases of a run and its folder; opens the volumes of the archive once per process."""

    def __init__(self, job: VoteJob) -> None:
        self.job, self.plan = job, job.plan
        self.cases = {case.case: case for case in job.plan.cases}
        self.store = Store.open(job.run)
        archive = Archive.open(job.plan.archive)
        self.image: Callable[[str], Volume] = lru_cache(maxsize=64)(archive.image)
        self._label: Callable[[str, str], Volume] = lru_cache(maxsize=128)(archive.label)

    def folder(self, case: str) -> ProposalFolder:
        """Return where the proposals of a case are."""
        return ProposalFolder.of(self.store, self.plan, self.cases[case], self.job.keys[case])

    def labels(self, case: CasePlan, box: Box) -> tuple[Channels, Channels | None]:
        """Return the given label and, for a case that has one, the trusted label in `box`."""
        given = self.channels(case.case, self.plan.label, box)
        if not case.trusted or self.plan.trusted_label is None:
            return given, None
        return given, self.channels(case.case, self.plan.trusted_label, box)

    def channels(self, case: str, label: str, box: Box) -> Channels:
        """Return a label's channel indices in `box`; `UNKNOWN` for values the run has not."""
        return byte_channels(self._label(case, label).read(box), self.plan.classes)


class Predictor(Reader):
    """The voters of a run in one process; networks are loaded fold by fold, as cases need them."""

    def __init__(self, job: VoteJob) -> None:
        super().__init__(job)
        train = job.plan.train
        self._device, self._precision = _settled(train.threads, train.precision, job.gpu)
        _check_numerics(job, numeric_class(self._device, self._precision))
        self._voter = lru_cache(maxsize=None)(self._load_voter)

    def read(self, case: CasePlan, box: Box) -> Window:
        """Read what the voters of `case` must see to answer for `box`."""
        grid = self.plan.working_grid(case)
        window = grid.needed_native(needed_window(box, grid, self.plan.tiling))
        block = self.image(case.case).read(window)
        return Window(box, window, block if block.ndim == 4 else block[None])

    def tiles(
        self, case: CasePlan, window: Window, seams: Seams | None = None
    ) -> Iterator[tuple[Tile, Iterator[Tensor]]]:
        """Yield every tile of the window's box with the probabilities (C, Z, Y, X) of each pass.

        `seams` is told how far averaged windows differ.
        """
        voter = self._voter(case.fold)
        grid, tiling = self.plan.working_grid(case), self.plan.tiling
        seen = needed_window(window.box, grid, tiling)
        # Normalised first: what is clipped must not weigh in a mean.
        image = self.plan.normaliser.apply(window.image_czyx, case.intensity)
        image = grid.to_working(image, window.window, seen)

        def read(box: Box) -> NDArray[np.float32]:
            return image[(slice(None), *box.relative_to(seen).slices)]

        return iter_tile_probs(voter, read, window.box, grid, tiling, seams)

    def means(
        self, case: CasePlan, window: Window, *, with_features: bool = False
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Return the mean probabilities of the window's box (C, Z, Y, X), and its features.

        Features (F, Z, Y, X) are what the head of the fold's first network reads in its first
        pass, computed tile by tile like the probabilities; None unless asked for.
        """
        box, voter = window.box, self._voter(case.fold)
        prob_czyx: NDArray[np.float32] = np.empty(
            (len(self.plan.classes), *box.shape_zyx), np.float32
        )
        features_fzyx: NDArray[np.float32] | None = None
        if with_features and self.plan.averaged:
            raise ConfigError(
                f"network.name: {self.plan.network.name} looks at its whole window, so it has no "
                "features of its own for a voxel, which this method compares. Use unet."
            )
        before: Box | None = None
        listening: AbstractContextManager[list[Tensor]] = (
            head_inputs(voter) if with_features else nullcontext([])
        )
        with listening as inputs:
            for tile, passes in self.tiles(case, window):
                part = (slice(None), *tile.core.relative_to(box).slices)
                sums = EvidenceSum()
                if tile.window != before:
                    inputs.clear()
                    before = tile.window
                for one_czyx in passes:
                    sums.add(one_czyx)
                prob_czyx[part] = sums.mean_czyx().cpu().numpy()
                if with_features:
                    mine = tile.to_core(inputs[0])
                    if features_fzyx is None:
                        features_fzyx = np.empty((len(mine), *box.shape_zyx), np.float32)
                    features_fzyx[part] = mine.cpu().numpy()
        return prob_czyx, features_fzyx

    def _load_voter(self, fold: int) -> Voter:
        store = Store.open(self.job.models_run)
        members = self.job.models[fold][: self.plan.voters.members]
        voters = [self._member(store.get(key), number) for number, key in enumerate(members)]
        return voters[0] if len(voters) == 1 else EnsembleVoter(voters)

    def _member(self, data: bytes, number: int) -> Voter:
        voter, views = self._network(data, number), self.plan.voters.views
        return ViewsVoter(voter, views) if views else voter

    def _network(self, data: bytes, number: int) -> Voter:
        network = self.plan.network
        if network.script:
            script = Script.trusted(data, network.script)
            return ScriptVoter(script, network, device=self._device)
        net, spec, _ = load_network(data, network.name)
        passes = self.plan.voters.passes
        if not passes:
            return NetworkVoter(net, spec, device=self._device, precision=self._precision)
        return DropoutVoter(
            net,
            spec,
            n_passes=passes,
            seed=self.plan.train.seed + number,
            device=self._device,
            precision=self._precision,
        )


def device_numerics(threads: int, precision: Precision, gpu: bool) -> dict[str, str]:
    """Return the numeric class of this process, with its numbers fixed as workers fix them."""
    return numeric_class(*_settled(threads, precision, gpu))


def _settled(threads: int, trained: Precision, gpu: bool) -> tuple[str, Precision]:
    """Fix the numbers of this process; return its device and how voters compute there.

    They compute as they were trained, but bf16 gains nothing on a CPU.
    """
    fix_numerics(threads)
    device = usable_gpu() if gpu else "cpu"
    return device, trained if device == "cuda" else "fp32"


def _check_numerics(job: VoteJob, here: Mapping[str, str]) -> None:
    if job.numerics is None:
        return
    differing = [
        f"{name}: {value} here, {job.numerics.get(name)} in the run"
        for name, value in here.items()
        if job.numerics.get(name) != value
    ]
    if differing:
        raise UnfitEnvironment(
            f"this worker computes in another numeric class than the run ({'; '.join(differing)}), "
            "so its answers could differ in the last bit. Use the same kind of machine and image, "
            "or set numerics: any."
        )
