"""Who does the work of a run: a Ray cluster, or this process; the stages do not know which.

What is computed, what is written and what is told of a bad case are the same, bit for bit, and no
key depends on it: a run that one began the other goes on with. Nothing here imports Ray.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

from raysegclean.cluster.driver import ClusterFacts
from raysegclean.cluster.train_jobs import TrainJob
from raysegclean.cluster.training_progress import Told
from raysegclean.cluster.worker import ItemReport, ShardStage
from raysegclean.events import Events
from raysegclean.nets.voters import Precision
from raysegclean.planning.items import Item

__all__ = [
    "Executor",
    "PassJob",
    "PassResources",
    "StageFactory",
    "open_executor",
    "ray_executor",
]

StageFactory = Callable[[Any], ShardStage[Any, Any]]


class PassJob(Protocol):
    """What the jobs of all passes have."""

    @property
    def keys(self) -> Mapping[str, str]:
        """Case -> the key that is recorded with each of its shards."""


@dataclass(frozen=True)
class PassResources:
    """What one pass takes of the cluster: at most so many `actors`."""

    actors: int
    cpus: float = 1.0
    gpus: float = 0.0
    memory_bytes: int | None = None
    labels: tuple[tuple[str, str], ...] = ()
    at_least: int = 1
    """Actors that a pass on GPUs begins with."""


RunPass = Callable[
    [StageFactory, PassJob, Sequence[Item], tuple[str, str, int], PassResources, Events],
    Generator[ItemReport, None, None],
]
AskWorker = Callable[[PassResources, int, Precision], dict[str, str]]
Train = Callable[[TrainJob, Mapping[int, tuple[int, ...]], Told], None]


@dataclass(frozen=True)
class Executor:
    """Where the items of passes are done and networks are trained.

    run_pass: does all items and yields each one's report as it comes in. The factory builds the
    stage from the job; the triple is run URI, stage and term. Raises what concerns all items: a
    stage that cannot be built, a ledger that cannot be written, RunOver.
    ask_worker: (resources, threads, precision) -> the numeric class of such a worker.
    train: trains the missing networks of each fold; raises what the first fold failed of, after
    the others.
    close: gives back what was taken.
    """

    facts: ClusterFacts
    run_pass: RunPass
    ask_worker: AskWorker
    train: Train
    close: Callable[[], None]


def open_executor(kind: Literal["ray", "local"], *, gpus_needed: float = 0.0) -> Executor:
    """Return the executor with that many GPUs at once; raise UnfitEnvironment without them."""
    # Here, because who works in this process needs no Ray, whose import takes seconds.
    if kind == "local":
        from raysegclean.cluster.local_executor import local_executor

        return local_executor(gpus_needed)
    from raysegclean.cluster.connection import connect

    return ray_executor(connect(gpus_needed=gpus_needed))


def ray_executor(facts: ClusterFacts) -> Executor:
    """Return the executor on the cluster that `connect` told the facts of."""
    from raysegclean.cluster.connection import shutdown_if_ours
    from raysegclean.cluster.passes import ask_worker, run_pass
    from raysegclean.cluster.ray_trainings import train_missing

    return Executor(facts, run_pass, ask_worker, train_missing, partial(shutdown_if_ours, facts))
