"""A training worker of Ray Train: the loop, its feed from Ray Data, and its place among ranks."""

import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import ray
import ray.train
import torch

from raysegclean.cluster.exchange import PeerMesh
from raysegclean.cluster.patch_feed import stream_rows
from raysegclean.cluster.patches import Rows
from raysegclean.cluster.train_loop import Host, TrainLoop, WorkerPlan
from raysegclean.errors import ConfigError, InputError, RunOver
from raysegclean.nets.numerics import fix_numerics, usable_gpu
from raysegclean.nets.trainer import TrainingDiverged

__all__ = ["run_worker"]

PREEMPTION_STEPS = 50
"""Steps between two looks for a notice: each is a barrier of about 4 ms over all ranks."""

_FATAL = (ConfigError, InputError, RunOver, TrainingDiverged)


def run_worker(config: dict[str, Any]) -> None:
    """Train to the end and leave the finished networks in the run folder.

    config: references to the plan and the patch source, and the board. Errors that another try
    would meet again are told to the board, and then the other ranks are brought down too.
    """
    plan: WorkerPlan = ray.get(config["plan"])
    board, source = config["board"], config["source"]
    if ray.get(board.fault.remote(plan.fold)) is not None:
        return
    fix_numerics(plan.config.threads)
    alone = ray.train.get_context().get_world_size() == 1

    def rows(steps: range, rank: int, ranks: int) -> Iterator[Rows]:
        return stream_rows(source, steps, rank=rank, ranks=ranks, readers=plan.readers)

    try:
        device, peers = _device(plan), len(plan.members) if plan.split else 1
        host = Host(
            rows=rows,
            note=board.post.remote,
            warn=partial(board.warn.remote, plan.fold),
            device=device,
            mesh=None if alone else PeerMesh.make(peers, device),
            notice=_Notice().came,
        )
        TrainLoop(plan, ray.get(source), host).run()
    except _FATAL as error:
        ray.get(board.fail.remote(plan.fold, type(error).__name__, str(error)))
        if not alone:
            raise


class _Notice:
    """Looks now and then whether a node of this training is about to be taken away."""

    def __init__(self) -> None:
        watched = os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1")
        self.watched = watched.lower() in ("1", "true")
        self.seen: set[int | None] = set()

    def came(self, done: int) -> bool:
        """Return True once per notice; all ranks call this at the same steps."""
        if not self.watched or done % PREEMPTION_STEPS:
            return False
        info = ray.train.get_preemption_info()
        if info is None or info.deadline_ms in self.seen:
            return False
        self.seen.add(info.deadline_ms)
        return True


def _device(plan: WorkerPlan) -> torch.device:
    if plan.gpus <= 0:
        return torch.device("cpu")
    usable_gpu()
    from ray.train.torch import get_device  # imports much that CPU training does without

    device: torch.device = get_device()
    return device
