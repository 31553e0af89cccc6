"""The plan: every `auto` decided, before anything is computed.

A `RunPlan` is what the run folder freezes at the first start. It is made from the config and the
archive's index alone, so the same input gives the same plan on any number of workers. It holds
plain values, is small per case, and can be printed, costed and hashed.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import median_high
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from raysegclean.config.settings import Config
from raysegclean.errors import ConfigError, InputError
from raysegclean.evidence.cases import CaseImage, CaseInfo
from raysegclean.identity import digest
from raysegclean.methods.base import Voters
from raysegclean.methods.params import EPOCHS
from raysegclean.nets.inference import Tiling
from raysegclean.nets.normalise import Normaliser, plan_normaliser
from raysegclean.nets.trainer import TrainConfig
from raysegclean.planning.folds import dealt_folds, with_twins_joined
from raysegclean.planning.network_plan import NetworkPlan, plan_network
from raysegclean.planning.nnunet_folder import plan_nnunet
from raysegclean.planning.tiles import Windows
from raysegclean.store.objects import Store
from raysegclean.voxels.geometry import Grid, Index3, output_shard_zyx, triple

__all__ = [
    "CasePlan",
    "RunPlan",
    "make_plan",
    "split_usable",
    "with_current_cases",
]

MAX_CLASSES = 250
LEAST_STEPS = 400
CPU_STEPS = 3_000
GPU_STEPS = 50_000
"""Of a training with an open end: the shortest, and the longest on each device."""


@dataclass(frozen=True, kw_only=True)
class CasePlan(CaseImage):
    """What a worker must know about one case."""

    group: str
    fold: int
    dtype: str
    """Of the output label: the given one's, widened where it cannot hold every class."""
    version: str
    """Identity of the image, of the given label, and of labels that vote."""
    trusted: bool
    trusted_version: str = ""
    """Identity of the trusted label, where there is one."""

    @property
    def metric_mm(self) -> tuple[float, float, float]:
        """Voxel size (z, y, x) by which outlines are measured.

        No outline is measured along an axis of one voxel, so its size must not set the unit.
        """
        edges = zip(self.spacing_mm, self.shape_zyx, strict=True)
        finest = min((edge for edge, n in edges if n > 1), default=min(self.spacing_mm))
        return triple(
            edge if n > 1 else finest
            for edge, n in zip(self.spacing_mm, self.shape_zyx, strict=True)
        )

    def grid(self, shard_vox: int) -> Grid:
        """Return the shards of the case's output label."""
        return Grid(self.shape_zyx, output_shard_zyx(self.shape_zyx, shard_vox))


@dataclass(frozen=True, kw_only=True)
class RunPlan(NetworkPlan):
    """One run with nothing left open."""

    archive: str
    label: str
    trusted_label: str | None
    classes: tuple[int, ...]
    """Label values, ascending; the position is the channel, 0 is background."""
    cases: tuple[CasePlan, ...]
    folds: int
    crossfit: bool
    normaliser: Normaliser
    train: TrainConfig
    shard_vox: int
    label_ignore: int | None = None
    """A label value of voxels that are not learnt, not judged and not changed."""
    names: Mapping[int, str] = field(default_factory=dict)
    """What label values are called, where that is known; nothing depends on it."""

    @classmethod
    def from_json(cls, value: Any) -> "RunPlan":
        """Read what `to_json` wrote."""
        return TypeAdapter(cls).validate_python(value)

    def to_json(self) -> Any:
        """Return plain JSON values."""
        return TypeAdapter(type(self)).dump_python(self, mode="json")

    @property
    def tiling(self) -> Tiling:
        """How voters' windows are laid."""
        return Tiling(self.tile_zyx, self.halo_vox, self.stride_zyx, self.averaged, self.window_zyx)

    @cached_property
    def largest_zyx(self) -> Index3:
        """The longest edges that any case has, axis by axis."""
        return triple(map(max, zip(*(case.shape_zyx for case in self.cases), strict=True)))

    @property
    def windows(self) -> Windows:
        """What the windows of its voters take and compute."""
        largest = self.largest_working_zyx
        if self.window_zyx is not None:  # smaller cases lie in a whole window
            largest = triple(map(max, zip(largest, self.window_zyx, strict=True)))
        return Windows(
            self.network,
            self.stride_zyx,
            self.halo_vox,
            largest,
            self.window_bytes_per_vox,
        )

    @cached_property
    def largest_working_zyx(self) -> Index3:
        """The longest edges that any case has on the working grid, axis by axis."""
        shapes = (self.working_grid(case).shape_zyx for case in self.cases)
        return triple(map(max, zip(*shapes, strict=True)))

    @cached_property
    def seen_mm(self) -> tuple[float, float, float]:
        """The median voxel size (z, y, x) of the cases as networks see them."""
        sizes = (self.working_grid(case).seen_mm for case in self.cases)
        return triple(map(median_high, zip(*sizes, strict=True)))

    def case(self, name: str) -> CasePlan:
        """Return one case; raise InputError when the run has none of that name."""
        if name not in self._by_name:
            raise InputError(
                f"case {name} is not part of this run; RUN/cases.parquet lists those that are."
            )
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, CasePlan]:
        return {case.case: case for case in self.cases}

    def called(self, value: int) -> str:
        """Return a label value with its name, as people read it: `5 liver`, or `5`."""
        return f"{value} {self.names.get(value, '')}".strip()

    def training_cases(self, fold: int) -> tuple[str, ...]:
        """Return the cases that the networks of `fold` train on; those they judge are left out."""
        return tuple(c.case for c in self.cases if not self.crossfit or c.fold != fold)

    def train_key(self) -> str:
        """Return the identity of the networks: what they are, and what they are trained on."""
        versions = [(c.case, c.fold, c.version) for c in self.cases]
        return digest(
            "train", versions, self.classes, self.network.identity(), self.normaliser,
            self.train.identity(), self.patch_zyx, self.flips, self.crossfit,
            *self._trusted_versions(),
            *(() if self.spacing_mm is None else (self.spacing_mm,)), *self.ignored(),
        )  # fmt: skip

    def ignored(self) -> tuple[tuple[str, int], ...]:
        """Return what keys say of the ignored value: nothing where there is none."""
        return () if self.label_ignore is None else (("label_ignore", self.label_ignore),)

    def _trusted_versions(self) -> list[tuple[str, str]]:
        """Return what networks learn from trusted cases, where the method's hook asks for them."""
        if not self.train.needs_trusted:
            return []
        return [(c.case, c.trusted_version) for c in self.cases if c.trusted]


def make_plan(
    config: Config,
    infos: Sequence[CaseInfo],
    voters: Voters,
    *,
    gpu: bool,
    lender: "RunPlan | None" = None,
    dealt: bool = False,
    names: Mapping[int, str] | None = None,
) -> RunPlan:
    """Decide everything that the config leaves open.

    `gpu` tells whether the cluster has GPUs; `resources` may keep a stage from them. `lender` is
    the plan of an earlier run whose networks are used instead of training: network, normaliser,
    classes and folds are then its own. `dealt` leaves all cases in fold 0, for a run whose plan
    says which fold they are in. `names` says what label values are called. Raises
    ConfigError or InputError, before any compute, when the archive does not allow the run.
    """
    if not infos:
        raise InputError(
            f"archive {config.archive}: no usable case for label {config.label!r} and "
            f"cases {config.cases!r}. Look at `raysegclean check`."
        )
    classes = _classes(config, infos) if lender is None else _lent_classes(config, infos, lender)
    names = names or {}
    if config.network.nnunet is not None:
        net, normaliser = plan_nnunet(config, infos, classes, names, voters)
    else:
        net = plan_network(config, infos, len(classes), voters, gpu=gpu, lent=lender)
        normaliser = plan_normaliser(infos, config.network.normalise)
    folds = 1 if net.network.finished or not voters.members else max(1, config.train.crossfit)
    plan = RunPlan(
        **vars(net),
        archive=Store.open(config.archive).uri,
        label=config.label,
        trusted_label=config.trusted.label if config.trusted else None,
        classes=classes,
        cases=_case_plans(config, infos, 1 if lender or dealt else folds, classes, voters),
        folds=folds,
        crossfit=folds > 1,
        normaliser=normaliser,
        train=_train(config, net, len(infos), gpu=gpu and config.resources.train.gpus != 0),
        shard_vox=config.relabel.shard_vox,
        label_ignore=config.label_ignore,
        names=names,
    )
    return plan if lender is None else _borrowing(plan, lender)


def _lent_classes(config: Config, infos: Sequence[CaseInfo], lender: RunPlan) -> tuple[int, ...]:
    if config.label_ignore in lender.classes:
        told = f"label_ignore: {config.label_ignore} is a class of the lent networks."
        raise ConfigError(f"{told} Leave it out, or train.")
    strange = sorted(set(_classes(config, infos)) - set(lender.classes))
    if strange:
        raise InputError(
            f"models: the lent networks know the classes {list(lender.classes)}, label "
            f"{config.label!r} also holds {strange}. Train on this archive instead."
        )
    return lender.classes


def _borrowing(plan: RunPlan, lender: RunPlan) -> RunPlan:
    """Return the plan with all that belongs to the lender's networks."""
    if plan.voters.members > lender.voters.members:
        raise ConfigError(
            f"models: the method wants {plan.voters.members} networks per fold, the lent run has "
            f"{lender.voters.members}. Lower params.members, or train."
        )
    return replace(
        plan,
        cases=with_current_cases(lender, plan).cases,
        folds=lender.folds,
        crossfit=lender.crossfit,
        normaliser=lender.normaliser,
        train=lender.train,
    )


def with_current_cases(frozen: RunPlan, now: RunPlan, *, lent: bool = False) -> RunPlan:
    """Return the frozen plan with today's cases: changed ones by their new version, gone ones not.

    A new case takes the fold of its patient, else fold 0; no network of the run trained on it. With
    networks that are `lent` it takes today's fold, by which the lender knows it. The tile is
    today's, where answers do not depend on it: what is left may need a smaller one. So are the
    bounds of a training with an open end.
    """
    known = {case.case: case.fold for case in frozen.cases}
    fold_of = {case.group: case.fold for case in frozen.cases}
    cases = (
        replace(
            case,
            fold=case.fold if lent else known.get(case.case, fold_of.get(case.group, 0)),
            dtype=_holding(case.dtype, frozen.classes[-1]),
        )
        for case in now.cases
    )
    tile_zyx = frozen.tile_zyx if frozen.tile_counts else now.tile_zyx
    train = frozen.train
    if not lent and train.max_steps is not None:
        bounds = now.train
        train = replace(train, max_steps=bounds.max_steps, budget_minutes=bounds.budget_minutes)
    return replace(
        frozen,
        archive=now.archive,
        cases=tuple(cases),
        names=now.names,
        tile_zyx=tile_zyx,
        train=train,
    )


def split_usable(
    config: Config, infos: Sequence[CaseInfo], trained: "RunPlan | None" = None
) -> tuple[list[CaseInfo], dict[str, str]]:
    """Return the cases that one network can serve, and why each of the others cannot.

    `trained` is the plan of networks that are trained already: what they do not know fails.
    """
    usual = Counter(info.channels for info in infos).most_common(1)
    channels = trained.network.in_channels if trained else usual[0][0] if usual else 1
    usable, unusable = [], {}
    for info in infos:
        why = _misfit(config, info, channels, trained.classes if trained else None)
        if why is None:
            usable.append(info)
        else:
            unusable[info.case] = f"{why} Or leave the case out with `cases:`."
    return usable, unusable


def _misfit(
    config: Config, info: CaseInfo, channels: int, known: tuple[int, ...] | None
) -> str | None:
    if info.channels != channels:
        return (
            f"image has {info.channels} channels, the network reads {channels} as in most cases. "
            "Ingest it with the same channels."
        )
    for label in (one for one in info.labels if one.name in _label_names(config)):
        values = set(label.voxels) - {config.label_ignore}
        if len(values) > MAX_CLASSES:
            return _too_many(label.name, len(values))
        strange = sorted(values - set(known or values))
        if strange:
            return (
                f"label {label.name!r} holds {strange}, the networks were trained on "
                f"{list(known or ())}. Correct its values, or start a new run."
            )
    return None


def _classes(config: Config, infos: Sequence[CaseInfo]) -> tuple[int, ...]:
    names = _label_names(config)
    summaries = (summary for info in infos for summary in info.labels if summary.name in names)
    values = {0}.union(*(summary.voxels for summary in summaries)) - {config.label_ignore}
    if len(values) < 2:
        raise InputError(f"label {config.label!r}: every voxel of every case is background.")
    if len(values) > MAX_CLASSES:
        raise InputError(f"all cases together: {_too_many(config.label, len(values))}")
    return tuple(sorted(values))


def _label_names(config: Config) -> list[str]:
    return [config.label] + ([config.trusted.label] if config.trusted else [])


def _too_many(label: str, values: int) -> str:
    return (
        f"label {label!r} has {values} values, expected at most {MAX_CLASSES} classes. Is this an "
        "instance label? Merge instances into classes first."
    )


def _train(config: Config, net: NetworkPlan, cases: int, *, gpu: bool) -> TrainConfig:
    wanted, voters = config.train, net.voters
    steps, most = _length(config, cases, gpu=gpu)
    return TrainConfig(
        steps=steps,
        max_steps=most,
        budget_minutes=wanted.budget_minutes,
        batch=net.batch,
        lr=net.lr if wanted.lr == "auto" else wanted.lr,
        seed=wanted.seed,
        epoch_steps=max(1, steps // EPOCHS),
        threads=wanted.threads,
        precision="bf16"
        if wanted.precision == "bf16" or (gpu and wanted.precision == "auto")
        else "fp32",
        peers=max(1, voters.members),
        hook=voters.hook,
        loss=wanted.loss,
        augment=wanted.augment,
        deep_supervision=net.deep_supervision,
        checkpoint_every=max(50, steps // 10)
        if wanted.checkpoint_every == "auto"
        else wanted.checkpoint_every,
    )


def _length(config: Config, cases: int, *, gpu: bool) -> tuple[int, int | None]:
    """Return the steps, and where the end is open the bound, too.

    The shortest training with an open end has `LEAST_STEPS`, and sees each case twice: on 60
    hippocampus cases half of whose labels are wrong, agreement begins to fall after 225 steps.
    """
    wanted = config.train
    if wanted.steps != "auto":
        return wanted.steps, None
    auto = GPU_STEPS if gpu else CPU_STEPS
    most = auto if wanted.max_steps == "auto" else wanted.max_steps
    return min(most, max(LEAST_STEPS, 2 * cases)), most


def _case_plans(
    config: Config,
    infos: Sequence[CaseInfo],
    folds: int,
    classes: tuple[int, ...],
    voters: Voters,
) -> tuple[CasePlan, ...]:
    groups = with_twins_joined({info.case: _group(config, info, voters) for info in infos}, infos)
    fold_of = dealt_folds(list(groups.values()), folds, config.train.seed)
    trusted = config.trusted.label if config.trusted else None
    return tuple(
        CasePlan(
            case=info.case,
            group=groups[info.case],
            fold=fold_of[groups[info.case]],
            shape_zyx=info.shape_zyx,
            spacing_mm=info.spacing_mm,
            intensity=info.intensity,
            dtype=_holding(info.label(config.label).dtype, classes[-1]),
            version=digest(
                info.image_version,
                *(info.label(name).version for name in (config.label, *voters.labels)),
            ),
            trusted=any(summary.name == trusted for summary in info.labels),
            trusted_version=next((s.version for s in info.labels if s.name == trusted), ""),
        )
        for info in infos
    )


def _holding(dtype: str, highest: int) -> str:
    """Return `dtype`, or the wider one that a class found in other cases needs."""
    return dtype if highest <= np.iinfo(dtype).max else str(np.min_scalar_type(highest))


def _group(config: Config, info: CaseInfo, voters: Voters) -> str:
    nothing_trains = config.network.finished or not voters.members
    # In sample, nobody asks who trained on what.
    if config.group == "case" or config.train.crossfit == 0 or nothing_trains:
        return info.patient or info.case if config.group == "patient" else info.case
    if info.patient is None:
        raise ConfigError(
            f"train.crossfit: {config.train.crossfit} needs the patient of every case, and case "
            f"{info.case} has none. Give `--table` or `--patient-regex` at ingest, or say "
            "`group: case` when no two cases are of one patient."
        )
    return info.patient
