"""Propose and measure: run the voters over the archive, once."""

from dataclasses import dataclass, field

from raysegclean.cluster.executor import PassResources
from raysegclean.cluster.label_votes import LabelVoteStage
from raysegclean.cluster.predict import VoteJob
from raysegclean.cluster.propose import MeasureStage, ProposeStage
from raysegclean.evidence.records import MeasureRecord, ProposeRecord
from raysegclean.identity import ALGORITHM_VERSIONS, digest
from raysegclean.planning.worker_memory import PassKind, worker_bytes
from raysegclean.runs.session import Session
from raysegclean.runs.train import Models, networks_key

__all__ = ["Proposals", "propose", "relabel_resources"]


MOST_ACTORS = 100_000
"""No limit: a pass takes no more than it has items."""


@dataclass(frozen=True)
class Proposals:
    """What the propose stage left in the run folder."""

    keys: dict[str, str]
    """Case -> key of its proposals, for cases that were proposed whole."""
    job: VoteJob
    records: dict[str, ProposeRecord]
    measured: dict[str, MeasureRecord]
    corrections: dict[str, str] = field(default_factory=dict)
    """Case -> key of the corrector's answer, for cases that have one."""


def propose(session: Session, models: Models) -> Proposals:
    """Propose what the ledger lacks; then measure the cases that have several shards."""
    by_labels = not session.plan.voters.members
    resources = relabel_resources(session, "vote")
    keys = _keys(session, networks_key(session, models))
    job = VoteJob(
        run=session.run.uri,
        models_run=session.config.models or session.run.uri,
        models=models,
        plan=session.plan,
        keys=keys,
        numerics=None
        if by_labels or session.config.numerics == "any"
        else _numerics(session, resources),
        gpu=resources.gpus > 0,
    )
    stage = LabelVoteStage if by_labels else ProposeStage
    records = session.run_stage("propose", ProposeRecord, stage, job, keys, resources)
    alive = set(session.alive())
    keys = {case: key for case, key in keys.items() if case in alive}
    several = {c.case for c in session.plan.cases if len(c.grid(session.plan.shard_vox)) > 1}
    due = {case: key for case, key in keys.items() if case in several}
    on_labels = relabel_resources(session, "labels")
    measured = session.run_stage("measure", MeasureRecord, MeasureStage, job, due, on_labels)
    return Proposals(keys, job, records, measured)


def relabel_resources(session: Session, kind: PassKind) -> PassResources:
    """Return what a relabelling pass of this kind takes; one that runs no network takes no GPU.

    auto: all of the cluster, one CPU per thread, and for each worker as much memory as it may need.
    """
    wanted, facts = session.config.resources.relabel, session.facts
    cpus = float(session.plan.train.threads) if wanted.cpus == "auto" else wanted.cpus
    by_labels = kind == "labels" or not session.plan.voters.members
    gpus = 0.0 if by_labels else session.gpus(wanted.gpus)
    # A Ray that was started here has two CPU slots per core.
    slots = facts.cpus / 2 if facts.started_here else facts.cpus
    fit = facts.gpus / gpus if gpus else slots / cpus
    at_least = max(1, int(fit))
    # Nodes may still come to a cluster that was joined, and what waits is what brings them.
    most = at_least if facts.started_here else MOST_ACTORS
    return PassResources(
        actors=most if wanted.actors == "auto" else wanted.actors,
        cpus=cpus,
        gpus=gpus,
        memory_bytes=_memory_bytes(session, kind, gpu=gpus > 0),
        labels=tuple(sorted(wanted.labels.items())),
        at_least=at_least if wanted.actors == "auto" else wanted.actors,
    )


def _memory_bytes(session: Session, kind: PassKind, *, gpu: bool) -> int:
    """Return what is kept free for a worker; auto: no more than one of the nodes has."""
    wanted, most = (
        session.config.resources.relabel.memory_gb,
        session.facts.node_memory_bytes,
    )
    if wanted != "auto":
        return int(wanted * 2**30)
    needed = worker_bytes(session.plan, kind, gpu=gpu)
    if needed > most:  # an upper bound: the pass may still fit, and waiting would bring no node
        session.events.warn(
            "resources",
            f"a worker may need {needed / 2**30:.1f} GiB, and no node has more than "
            f"{most / 2**30:.1f}: one runs per node. If it runs out of memory, set "
            "relabel.tile_zyx, lower network.widths or use fewer of them, or use larger nodes.",
        )
    return min(needed, most)


def _keys(session: Session, networks: str) -> dict[str, str]:
    plan = session.plan
    return {
        case.case: digest(
            ALGORITHM_VERSIONS["propose"],
            networks,
            case.version,
            case.fold,
            plan.voters,
            plan.tile_zyx if plan.tile_counts else None,
            plan.halo_vox,
            plan.shard_vox,
            (plan.trusted_label, case.trusted_version) if case.trusted else None,
            *plan.ignored(),
        )
        for case in plan.cases
        if case.case not in session.failed
    }


def _numerics(session: Session, resources: PassResources) -> dict[str, str]:
    """Return the numeric class that the run froze, asking one worker at the first start."""
    frozen = session.run.read_json("numerics.json")
    if frozen is None:
        train = session.plan.train
        frozen = session.executor.ask_worker(resources, train.threads, train.precision)
        session.run.write_json("numerics.json", frozen)
    return dict(frozen)
