"""How much memory one worker of a pass takes, known before anything runs.

It is what `plan` prints and what Ray is told to keep free for each worker, so that a node holds as
many workers as it has memory for. Upper bounds: what a pass holds at one time or another is counted
as if all of it were held at once. Not counted: the object store, which Ray keeps apart.
"""

import math
from typing import Literal

from raysegclean.nets.inference import PART_VOX, needed_window
from raysegclean.nets.memory import training_bytes
from raysegclean.planning.plan import RunPlan
from raysegclean.planning.tiles import SUMS_BYTES
from raysegclean.voxels.geometry import Box, Index3, triple

__all__ = ["PassKind", "passes_of", "trainer_bytes", "window_bytes", "worker_bytes"]

PassKind = Literal["labels", "vote", "look"]
"""labels: no network runs. vote: proposals are made. look: whole shards are held, with their
probabilities and features."""

PROCESS_BYTES = 5 << 27
"""Python, torch and Ray, before there is any voxel."""
CUDA_BYTES = 2 << 30
"""What the libraries of a GPU take of the host's memory."""
SHARD_BYTES = 48
"""Per voxel of a shard: labels and proposals of the shards that are read, worked on and written."""
IMAGE_BYTES = 12
"""Per voxel and channel that a shard reads: two shards as they are stored, one normalised."""
TILE_BYTES = 64
"""Per voxel of a window: evidence, indices of classes, and what counting them needs."""
FLOAT_BYTES = 4


def worker_bytes(plan: RunPlan, kind: PassKind, *, gpu: bool = False) -> int:
    """Return an upper bound of the host memory of one worker of such a pass, in bytes.

    `gpu`: its networks run on a GPU, whose own memory is not counted.
    """
    shard = _shard(plan)
    total = PROCESS_BYTES + SHARD_BYTES * math.prod(shard)
    if kind == "labels" or not plan.voters.members:
        return total
    total += IMAGE_BYTES * plan.network.in_channels * _read_vox(plan, shard)
    if kind == "look":
        total += FLOAT_BYTES * (len(plan.classes) + plan.network.widths[0]) * math.prod(shard)
    return total + (CUDA_BYTES if gpu else window_bytes(plan))


def trainer_bytes(plan: RunPlan, *, gpu: bool = False) -> int:
    """Return an upper bound of the memory of one worker that trains, in bytes; 0 if none does.

    `gpu`: of the GPU's own. Networks that teach each other share a process, those of a fold that do
    not learn one after the other. Hooks that hold networks of their own take more.
    """
    if plan.network.finished or not plan.voters.members:
        return 0
    train = plan.train
    learnt = training_bytes(
        plan.network,
        train.batch * math.prod(plan.patch_zyx),
        together=1 if train.exchanges == "nothing" else train.peers,
        networks=train.peers,
        bf16=train.precision == "bf16",
        deep=train.deep_supervision,
    )
    return learnt + (CUDA_BYTES if gpu else PROCESS_BYTES)


def window_bytes(plan: RunPlan) -> int:
    """Return what predicting one window takes where the network runs, evidence included."""
    window, core = plan.windows.of(plan.tile_zyx)
    total = plan.windows.taken_bytes(plan.tile_zyx) + TILE_BYTES * math.prod(window)
    if plan.spacing_mm is not None:  # passes are kept while parts of the tile are brought back
        total += FLOAT_BYTES * len(plan.classes) * passes_of(plan) * core.voxels
        part = min(PART_VOX, math.prod(_shard(plan)))
        total += (6 * SUMS_BYTES * len(plan.classes) + TILE_BYTES) * part
    if plan.averaged:  # the sums of all passes for a slab of the shard, copied when it grows
        _, height, width = _shard(plan)
        terms = len(plan.classes) * (1 if plan.window_zyx is None else 2) + 2
        sums = FLOAT_BYTES * terms * passes_of(plan)
        total += 2 * sums * window[0] * height * width
    return int(total)


def passes_of(plan: RunPlan) -> int:
    """Return how many times a voxel is predicted, halos aside."""
    voters = plan.voters
    members = 1 if plan.network.script else voters.members
    return members * max(1, voters.passes) * (1 + len(voters.views))


def _shard(plan: RunPlan) -> Index3:
    return triple(min(plan.shard_vox, edge) for edge in plan.largest_zyx)


def _read_vox(plan: RunPlan, shard_zyx: Index3) -> int:
    """Return the most native voxels that answering for a shard reads."""
    if plan.spacing_mm is None:
        return math.prod(_window(plan, shard_zyx))
    most = 0
    for grid in {plan.working_grid(case) for case in plan.cases}:
        core = Box.whole(triple(map(min, zip(shard_zyx, grid.native_zyx, strict=True))))
        middle = triple((n - c) // 2 for n, c in zip(grid.native_zyx, core.stop_zyx, strict=True))
        window = needed_window(core.moved(middle), grid, plan.tiling)
        most = max(most, grid.needed_native(window).voxels)
    return most


def _window(plan: RunPlan, core_zyx: Index3) -> Index3:
    """Return the core with its halo, in steps of the stride, no larger than the largest case."""
    return triple(
        -(-min(core + 2 * halo, edge) // step) * step
        for core, halo, edge, step in zip(
            core_zyx, plan.halo_vox, plan.largest_working_zyx, plan.stride_zyx, strict=True
        )
    )
