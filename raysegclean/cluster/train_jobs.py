"""What is to be trained, cut into trainings: whole folds, or networks apart.

The networks of a fold share one process, or have ranks of their own where there are devices for
all: peers then are the ranks of one training, independent members are trainings of their own. A
network that is finished is in none of them. Pure but for a look at the checkpoints there are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from raysegclean.cluster.train_loop import resumable
from raysegclean.errors import ConfigError, UnfitEnvironment
from raysegclean.evidence.cases import CaseInfo
from raysegclean.identity import ALGORITHM_VERSIONS, digest
from raysegclean.nets.normalise import Normaliser
from raysegclean.nets.trainer import TrainConfig
from raysegclean.nets.unet import NetworkSpec
from raysegclean.store.objects import Store
from raysegclean.voxels.geometry import Index3
from raysegclean.voxels.resampling import Spacing

__all__ = ["TrainJob", "Training", "at_once", "check_fits", "missing_networks", "trainings_of"]

_READER_SLOTS = 1.0


@dataclass(frozen=True)
class TrainJob:
    """A group of networks to train: `train.peers` for each fold.

    key: identity; names the folders in the run folder. folds: the training cases of each fold.
    label: what is learnt, in the archive `label_uri` (None: the one of the images). classes: label
    values, ascending; the position is the channel. flips: axes (0 z, 1 y, 2 x) along which patches
    may be flipped. spacing_mm: that of the working grid, of which patches are voxels; None where
    cases are native. trusted_label: what hooks that need trusted cases learn from, in those
    training cases of a fold that have it. placement: all networks of a fold in one "process", each
    on "ranks" of its own, or "auto": ranks where there is a GPU for each. workers: data-parallel
    ranks per network. cpus, gpus: per worker. term: that of the run's lock, 0 where there is none.
    """

    key: str
    run_uri: str
    archive_uri: str
    label: str
    cases: tuple[CaseInfo, ...]
    folds: tuple[tuple[str, ...], ...]
    network: NetworkSpec
    normaliser: Normaliser
    classes: tuple[int, ...]
    train: TrainConfig
    patch_zyx: Index3
    flips: tuple[int, ...] = ()
    spacing_mm: Spacing | None = None
    label_uri: str | None = None
    trusted_label: str | None = None
    placement: Literal["auto", "process", "ranks"] = "auto"
    workers: int = 1
    cpus: float = 1
    gpus: float = 0
    term: int = 0

    @property
    def checkpoints(self) -> str:
        """Folder of the checkpoints, by what they were trained on and how.

        A training that finds the archive changed, or is of an older version, begins anew.
        """
        names, used = (self.label, self.trusted_label), set().union(*self.folds)
        read = [
            (info.case, info.image_version, [x.version for x in info.labels if x.name in names])
            for info in self.cases
            if info.case in used
        ]
        return f"train/{self.key}/{digest(ALGORITHM_VERSIONS['train'], read, self.folds)}"

    def __post_init__(self) -> None:
        if self.train.batch < self.workers:
            raise ConfigError(
                f"train: batch {self.train.batch} cannot be split among {self.workers} workers; "
                "set train.batch to at least resources.train.workers"
            )
        if self.train.exchanges == "samples" and self.train.batch < 2 * self.workers:
            raise ConfigError(
                f"train: hook {self.train.hook.name} chooses among the samples of a batch, and "
                f"batch {self.train.batch} leaves fewer than two to each of {self.workers} "
                f"workers; set train.batch to at least {2 * self.workers}"
            )
        in_ranks = self.placement == "ranks" and self.train.exchanges != "nothing"
        if 0 < self.gpus < 1 and (self.workers > 1 or in_ranks):
            raise ConfigError(
                f"resources.train: ranks with {self.gpus:g} GPU each would share one, which ranks "
                "of one training cannot; set gpus to 1, or workers to 1 and train.placement to "
                "process"
            )


@dataclass(frozen=True)
class Training:
    """One training: some networks of a fold."""

    fold: int
    members: tuple[int, ...]
    split: bool
    """Whether each network has ranks of its own."""

    def world(self, job: TrainJob) -> int:
        """Return how many workers it has."""
        return job.workers * (len(self.members) if self.split else 1)


def missing_networks(job: TrainJob, store: Store, names: Sequence[str]) -> tuple[int, ...]:
    """Return the networks of a fold to train: peers that exchange lessons all go again."""
    lacking = tuple(net for net, name in enumerate(names) if store.head(name) is None)
    return tuple(range(len(names))) if lacking and job.train.exchanges != "nothing" else lacking


def trainings_of(
    job: TrainJob, store: Store, missing: Mapping[int, tuple[int, ...]], gpus: float
) -> list[Training]:
    """Return the trainings: one per fold, or one per network where that is wanted and apart."""
    due = {fold: members for fold, members in missing.items() if members}
    wanted = sum(map(len, due.values())) * job.workers * job.gpus
    apart = job.placement == "ranks" or (job.placement == "auto" and 0 < wanted <= gpus)
    if job.train.exchanges != "nothing":
        alone = not 0 < job.gpus < 1  # ranks of one training cannot share a GPU
        split = apart and alone and job.train.peers > 1
        return [Training(fold, members, split) for fold, members in due.items()]
    if apart:
        return [Training(fold, (net,), split=False) for fold, nets in due.items() for net in nets]
    return [
        Training(fold, together, split=False)
        for fold, members in due.items()
        for together in _in_step(job, store, fold, members)
    ]


def _in_step(
    job: TrainJob, store: Store, fold: int, members: tuple[int, ...]
) -> list[tuple[int, ...]]:
    """Return which networks go on in one process: all, unless they drifted apart while alone.

    Those would begin again where the first checkpoint that all of them have is none.
    """
    by_step: dict[int, list[int]] = {}
    for net in members:
        by_step.setdefault(resumable(store, job.checkpoints, fold, (net,))[1], []).append(net)
    if len(by_step) == 1 or resumable(store, job.checkpoints, fold, members)[1]:
        return [members]
    return [tuple(together) for _, together in sorted(by_step.items())]


def check_fits(job: TrainJob, unit: Training, share: tuple[float, float]) -> None:
    """Refuse a unit that could never start, or whose readers could not, in a share of slots."""
    world, (cpus, gpus) = unit.world(job), share
    if world * job.cpus + _READER_SLOTS > cpus or world * job.gpus > gpus:
        raise UnfitEnvironment(
            f"training: {world} worker(s) with {job.cpus:g} CPU and {job.gpus:g} GPU each, and "
            f"{_READER_SLOTS:g} CPU for reading, do not fit into {cpus:g} CPU and {gpus:g} GPU. "
            "Lower resources.train, or use a larger cluster."
        )


def at_once(job: TrainJob, unit: Training, share: tuple[float, float], growing: bool) -> int:
    """Return how many units may run at once now, leaving each a slot for its readers.

    Workers that hold every slot while their readers wait for one would wait for ever. A cluster
    that may grow is given one unit more than fits, where that takes no reader's slot: what waits
    is what an autoscaler acts on.
    """
    world, (cpus, gpus) = unit.world(job), share
    need_cpus = world * job.cpus
    fit = int(cpus // (need_cpus + _READER_SLOTS))
    if job.gpus:
        fit = min(fit, int(gpus // (world * job.gpus)))
    if growing and (fit + 1) * need_cpus + _READER_SLOTS <= cpus:
        fit += 1
    return max(1, fit)
