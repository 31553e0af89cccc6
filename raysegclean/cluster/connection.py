"""Getting on a cluster, or making one of this machine.

Guaranteed after `connect`: Ray is up, its log is quiet, Ray Data waits for ever for a node that is
still to come instead of giving up, and SIGTERM ends the driver through its `finally` blocks. A Ray
that is started here listens on this machine only, asks for a token that lives as long as this
process, and is never somebody else's: a Ray that happens to run on this host is joined only where
`RAY_ADDRESS` says so, which is what `ray job submit` does.
"""

import logging
import math
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysegclean.cluster import local_ray
from raysegclean.cluster.driver import ClusterFacts, end_on_sigterm
from raysegclean.errors import UnfitEnvironment

__all__ = [
    "actor_here",
    "can_grow",
    "cluster_share",
    "connect",
    "data_rules",
    "live_nodes",
    "node_memory_bytes",
    "shared_by",
    "shutdown_if_ours",
]

log = logging.getLogger("raysegclean.cluster")

_KNOCK_S = 10
_LOOK_S = 2.0
_REST_S = 0.1
_QUIET = ("ray", "ray.data", "ray.train", "ray.tune", "ray.serve")

_ALWAYS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # The worker keeps the driver's folder, so that relative paths mean the same in both.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # it would end a search as if all trials had ended
    "RAY_AIR_NEW_OUTPUT": "0",  # its boxes are printed even at verbosity 0
}
# One machine is not reclaimed with notice, and each of these is a process per training.
_ONE_MACHINE = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_TRAIN_METRICS_ENABLED": "0"}
_FIXED_SIZE = "RAYSEGCLEAN_FIXED_SIZE"
_WITHOUT_BF16 = frozenset({"K80", "P4", "P100", "V100", "T4"})
"""GPUs, by Ray's names, that only emulate bf16, slower than fp32."""
_AUTH_LOGGER = "ray._private.authentication.authentication_token_setup"
_AUTH = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")

_share: ContextVar[int] = ContextVar("raysegclean_cluster_share", default=1)


def connect(*, gpus_needed: float = 0, wait_s: float = 1800) -> ClusterFacts:
    """Join the cluster that `RAY_ADDRESS` names, or start a Ray on this machine; idempotent.

    `gpus_needed` are the GPUs that the config demands at once. Where they, or any CPU to work
    with, are not there yet, the autoscaler of a joined cluster is asked for them and has `wait_s`
    to bring them.

    Raises UnfitEnvironment when the cluster cannot be reached or has too few GPUs.
    """
    started_here = False
    if not ray.is_initialized():
        started_here = os.environ.get("RAY_ADDRESS", "") in ("", "local")
        _prepare_environment(one_machine=started_here)
        if started_here:
            local_ray.start()
        else:
            _join()
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    data_rules()
    end_on_sigterm()  # Ray sets its own handler while it starts, so ours comes after
    _await_nodes({"CPU": 1.0, "GPU": gpus_needed}, wait_s, started_here)
    return _facts(started_here)


def shutdown_if_ours(facts: ClusterFacts) -> None:
    """Stop the Ray that `connect` started; leave any other one."""
    if facts.started_here:
        ray.shutdown()
        os.environ.pop(_FIXED_SIZE, None)


def data_rules(*, ordered: bool = False) -> None:
    """Set this process's rules for Ray Data; every process that runs a dataset calls it.

    No bars, no printing, and no giving up while a node is awaited. An errored block is an error,
    never a dropped one (Ray's default, set again because it is silent). A task whose worker died
    is tried again for ever, as an actor's is: the attempts of a pass say when to give up.
    `ordered`, for rows that somebody waits for in the order of the read tasks, keeps that order and
    lets the scheduler rest between two looks at its tasks.
    """
    os.environ.setdefault("RAY_TASK_MAX_RETRIES", "-1")  # Ray Data has no option for it
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1
    context.max_errored_blocks = 0
    context.execution_options.verbose_progress = False
    context.execution_options.preserve_order = ordered
    resting: list[Any] = [_Rest] if ordered else []
    context.custom_execution_callback_classes = resting


class _Rest:
    """What Ray Data calls after each look at its tasks (an `ExecutionCallback`).

    While a finished block waits for room, it looks again at once, in the process that trains: as
    much CPU as the training itself took on two cores.
    """

    def on_execution_step(self, executor: object) -> None:  # noqa: ARG002  (Ray's signature)
        time.sleep(_REST_S)

    def before_execution_starts(self, executor: object) -> None: ...

    def after_execution_succeeds(self, executor: object) -> None: ...

    def after_execution_fails(self, executor: object, error: Exception) -> None: ...


@contextmanager
def shared_by(users: int) -> Iterator[None]:
    """Tell what runs inside that `users` of its kind, itself included, share the cluster.

    A search that trains several candidates at once uses it: none may plan with all slots, or the
    workers of one would hold the slots that the other's readers wait for.
    """
    token = _share.set(max(1, users))
    try:
        yield
    finally:
        _share.reset(token)


def cluster_share() -> tuple[float, float]:
    """Return the CPU and GPU slots, of all nodes that are up, that the caller may plan with."""
    total, users = _resources(), _share.get()
    return total.get("CPU", 0.0) / users, total.get("GPU", 0.0) / users


def node_memory_bytes() -> int:
    """Return the memory, in bytes, of the node that is up and has most to give.

    What asks Ray for more waits for ever.
    """
    return int(max((node["Resources"].get("memory", 0) for node in live_nodes()), default=0))


def can_grow() -> bool:
    """Return whether nodes may still come: not to a Ray that `connect` started on this machine.

    Ray does not tell whether a cluster has an autoscaler, so any joined one may grow.
    """
    return _FIXED_SIZE not in os.environ


def _prepare_environment(*, one_machine: bool) -> None:
    """Set what Ray reads from the environment, without overriding the user."""
    for name, value in (_ALWAYS | (_ONE_MACHINE if one_machine else {})).items():
        os.environ.setdefault(name, value)
    if one_machine:
        os.environ[_FIXED_SIZE] = "1"  # read by the processes that Ray starts, too
        # Else Ray warns of many processes whenever trainings start, which is what they do.
        os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(local_ray.slots()))
    if one_machine and not any(os.environ.get(name) for name in _AUTH):
        # Ray would write a token below HOME, which may be read-only or shared. It switches to
        # token mode by itself, and says so on every start.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        logging.getLogger(_AUTH_LOGGER).setLevel(logging.ERROR)


def _join() -> None:
    address = os.environ["RAY_ADDRESS"]
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if host and port.isdigit():  # Ray itself would knock for many minutes
            socket.create_connection((host, int(port)), timeout=_KNOCK_S).close()
        ray.init(log_to_driver=False, logging_level=logging.WARNING, configure_logging=False)
    except Exception as error:  # Ray raises bare ones
        reason = str(error).partition("\n")[0]
        raise UnfitEnvironment(
            f"the Ray cluster at RAY_ADDRESS={address} cannot be joined: {reason}. Check that it "
            "is up and that RAY_AUTH_TOKEN is its token, or unset RAY_ADDRESS to start a Ray on "
            "this machine."
        ) from error


def _facts(started_here: bool) -> ClusterFacts:
    nodes, (cpus, gpus) = live_nodes(), cluster_share()
    kinds = {node.get("Labels", {}).get("ray.io/accelerator-type") for node in nodes}
    return ClusterFacts(
        cpus=cpus,
        gpus=gpus,
        nodes=len(nodes),
        node_memory_bytes=node_memory_bytes(),
        has_bf16=gpus > 0 and not _WITHOUT_BF16 & kinds,
        started_here=started_here,
    )


def live_nodes() -> list[dict[str, Any]]:
    """Return the nodes that are up."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]  # no types in Ray
    return [node for node in nodes if node["Alive"]]


def actor_here(kind: type) -> Any:
    """Start an actor on this node, the driver's; it needs no CPU slot."""
    here = ray.get_runtime_context().get_node_id()
    affinity = NodeAffinitySchedulingStrategy(here, soft=False)
    return ray.remote(kind).options(num_cpus=0, scheduling_strategy=affinity).remote()


def _resources() -> dict[str, float]:
    return dict(ray.cluster_resources())  # type: ignore[no-untyped-call]  # no types in Ray


def _await_nodes(needed: dict[str, float], wait_s: float, started_here: bool) -> None:
    """Return once the cluster has what is needed; ask its autoscaler where it may have one."""
    if not _lacking(needed):
        return
    if not can_grow():
        message = _too_small(needed, "and is this machine alone")
        if started_here:
            shutdown_if_ours(_facts(started_here))
        raise UnfitEnvironment(message)
    log.warning("%s", _too_small(needed, f"so the autoscaler is asked, for up to {wait_s:.0f} s"))
    bundles = [{name: 1} for name, amount in needed.items() for _ in range(math.ceil(amount))]
    request_resources(bundles=bundles)
    try:
        deadline = time.monotonic() + wait_s
        while _lacking(needed):
            if time.monotonic() > deadline:
                raise UnfitEnvironment(_too_small(needed, f"and none came in {wait_s:.0f} s"))
            time.sleep(min(_LOOK_S, wait_s))
    finally:
        request_resources(bundles=[])  # what is used from here on asks for itself


def _lacking(needed: dict[str, float]) -> bool:
    have = _resources()
    return any(have.get(name, 0.0) < amount for name, amount in needed.items())


def _too_small(needed: dict[str, float], why: str) -> str:
    have = _resources()
    return (
        f"resources: {needed['GPU']:g} GPUs and a CPU are demanded, the cluster has "
        f"{have.get('GPU', 0):g} GPUs and {have.get('CPU', 0):g} CPUs {why}. Set "
        "resources.train.gpus and resources.relabel.gpus to 0, or use nodes with GPUs."
    )
