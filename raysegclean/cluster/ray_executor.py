"""The work of a run on a Ray cluster: passes by Ray Data, trainings by Ray Train."""

from functools import partial

from raysegclean.cluster.connection import shutdown_if_ours
from raysegclean.cluster.driver import ClusterFacts
from raysegclean.cluster.executor import Executor
from raysegclean.cluster.passes import ask_worker, run_pass
from raysegclean.cluster.ray_trainings import train_missing

__all__ = ["ray_executor"]


def ray_executor(facts: ClusterFacts) -> Executor:
    """Return the executor on the cluster that `connect` told the facts of."""
    return Executor(facts, run_pass, ask_worker, train_missing, partial(shutdown_if_ours, facts))
