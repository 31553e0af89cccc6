"""What a run would do: everything that is decided before, and nothing is run."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from raysegclean.config.settings import Config
from raysegclean.nets.memory import computed_per_kept
from raysegclean.planning.items import plan_items
from raysegclean.planning.network_plan import network_notes, seam_error_of
from raysegclean.planning.plan import RunPlan
from raysegclean.planning.spacing import spacing_notes
from raysegclean.planning.worker_memory import passes_of, trainer_bytes, worker_bytes
from raysegclean.runs.preflight import prepare
from raysegclean.voxels.geometry import Index3, triple

__all__ = ["PlanReport", "plan"]


@dataclass(frozen=True)
class PlanReport:
    """What a run would do; nothing of it was run. Sizes are uncompressed unless they say so."""

    method: str
    params: dict[str, Any]
    """All of the method's, those that the config leaves alone included."""
    trials: int
    """Of a search; 0 without one."""
    cases: int
    unusable: dict[str, str]
    classes: tuple[int, ...]
    names: Mapping[int, str]
    """Of those classes that have one."""
    shards: int
    items: int
    voxels: int
    input_bytes: int
    networks: int
    train_steps: int
    """Of each network; where `train.steps` is auto, at most."""
    seen_mm: tuple[float, float, float]
    """Voxel size (z, y, x) at which networks see a typical case."""
    patch_zyx: tuple[int, int, int]
    patch_mm: tuple[float, float, float]
    tile_zyx: tuple[int, int, int]
    halo_vox: tuple[int, int, int]
    halo_mm: tuple[float, float, float]
    """What lies around a tile, like patch and tile in voxels that networks see."""
    peak_memory_bytes: int
    """Upper bound for one relabelling worker without a GPU; what Ray keeps free for it."""
    training_memory_bytes: int
    """Upper bound for one worker that trains without a GPU; 0 where nothing is trained."""
    forward_voxels: int
    """Voxels of all windows of all passes, halos included."""
    averaged: bool
    """Whether windows overlap and are averaged, because the network looks at its whole window."""
    seam_error: float | None
    """How far such windows differ in probability, on noise and before training."""
    notes: tuple[str, ...]
    """What must be known of the voters to judge the result."""


def plan(config: Config) -> PlanReport:
    """Return what `config` would do; raise what is wrong with it."""
    prepared = prepare(config)
    whole = prepared.plan(config, gpu=False)
    grids = [(case.case, case.grid(whole.shard_vox)) for case in whole.cases]
    infos = {info.case: info for info in prepared.infos}
    voxels = [math.prod(case.shape_zyx) for case in whole.cases]
    seen = [math.prod(whole.working_grid(case).shape_zyx) for case in whole.cases]
    input_bytes = sum(
        count * (infos[case.case].channels * np.dtype(infos[case.case].image_dtype).itemsize + 1)
        for count, case in zip(voxels, whole.cases, strict=True)
    )
    final = 1 if prepared.method.retrains(prepared.params) else 0
    return PlanReport(
        method=config.method,
        params=asdict(prepared.params),
        trials=config.search.samples if config.search else 0,
        cases=len(whole.cases),
        unusable=prepared.unusable,
        classes=whole.classes,
        names={value: whole.names[value] for value in whole.classes if value in whole.names},
        shards=sum(len(grid) for _, grid in grids),
        items=len(plan_items(grids)),
        voxels=sum(voxels),
        input_bytes=input_bytes,
        networks=0 if whole.network.finished else whole.folds * whole.voters.members + final,
        train_steps=whole.train.bound,
        seen_mm=whole.seen_mm,
        patch_zyx=whole.patch_zyx,
        patch_mm=_in_mm(whole.patch_zyx, whole),
        tile_zyx=whole.tile_zyx,
        halo_vox=whole.halo_vox,
        halo_mm=_in_mm(whole.halo_vox, whole),
        peak_memory_bytes=worker_bytes(whole, "look"),
        training_memory_bytes=0 if config.models else trainer_bytes(whole),
        forward_voxels=int(sum(seen) * _overhead(whole) * passes_of(whole)),
        averaged=whole.averaged,
        seam_error=seam_error_of(config, whole.network, whole.tiling),
        notes=network_notes(whole.network, averaged=whole.averaged)
        + spacing_notes(whole.cases, whole.spacing_mm),
    )


def _in_mm(edges_vox: Index3, plan: RunPlan) -> tuple[float, float, float]:
    return triple(float(f"{n * s:.4g}") for n, s in zip(edges_vox, plan.seen_mm, strict=True))


def _overhead(plan: RunPlan) -> float:
    """Return the voxels computed per voxel of a tile that is kept, inside a large case."""
    window, core = plan.windows.of(plan.tile_zyx)
    return max(1.0, computed_per_kept(plan.network, window, core))
