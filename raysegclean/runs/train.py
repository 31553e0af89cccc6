"""Train the voters, and at the end the final network."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raysegclean.cluster.train_groups import train_group
from raysegclean.cluster.train_jobs import TrainJob
from raysegclean.cluster.train_loop import model_key
from raysegclean.cluster.training_progress import Progress
from raysegclean.errors import InputError
from raysegclean.evidence.cases import CaseInfo
from raysegclean.identity import digest
from raysegclean.nets.hooks import PLAIN_HOOK
from raysegclean.nets.torchscript import Script
from raysegclean.nets.weights import load_facts
from raysegclean.planning.network_plan import read_script
from raysegclean.planning.nnunet_folder import adopted
from raysegclean.runs.session import Session
from raysegclean.store.index import build_index
from raysegclean.store.objects import Store

__all__ = ["Ended", "Models", "endings", "hook_reports", "networks_key", "retrain", "train"]

Models = tuple[tuple[str, ...], ...]
"""Keys of the finished networks in the run folder, by fold and member."""


@dataclass(frozen=True)
class Ended:
    """How a network's training ended: after how many steps, and by what (`schedule.Ending`)."""

    steps: int
    by: str


def train(
    session: Session,
    infos: Sequence[CaseInfo],
    on_note: Callable[[Progress], None] | None = None,
) -> Models:
    """Return the voters of every fold: given, lent, finished, or newly trained networks.

    None where labels vote.
    """
    plan = session.plan
    if not plan.voters.members:
        return ()
    if plan.network.script:
        return ((_adopted(session),),)
    if plan.network.nnunet:
        return (_adopted_folds(session),)
    if session.config.models is not None:
        return _lent(session, session.config.models)
    folds = _folds(session)
    job = _job(session, infos, label=plan.label, key=session.train_key, folds=folds)
    keys = train_group(job, session.executor, session.events, on_note=on_note)
    return tuple(tuple(names) for names in keys)


def _folds(session: Session) -> tuple[tuple[str, ...], ...]:
    """Return the training cases of each fold, without those that joined after the first start.

    Else a start that goes on with a training would find other cases than the one that began it.
    """
    first = (session.run.resolved() or {})["plan"]
    known = {case["case"] for case in first["cases"]}
    plan = session.plan
    return tuple(
        tuple(case for case in plan.training_cases(fold) if case in known)
        for fold in range(plan.folds)
    )


def endings(session: Session, models: Models) -> tuple[Ended, ...]:
    """Return how the training of each network ended; nothing where its length was given."""
    if session.plan.network.finished or session.plan.train.max_steps is None:
        return ()
    store = Store.open(session.config.models or session.run.uri)
    facts = [load_facts(store.get(key)) for keys in models for key in keys]
    return tuple(Ended(int(one["steps"]), str(one["course"]["by"])) for one in facts)


def networks_key(session: Session, models: Models) -> str:
    """Return the identity of the networks that vote: where their end was open, with that end."""
    ended = endings(session, models)
    return digest(session.train_key, ended) if ended else session.train_key


def hook_reports(session: Session, models: Models) -> dict[int, list[Mapping[str, Any]]]:
    """Return what the hooks reported at the end of training, by fold; nothing of plain ones."""
    if session.plan.voters.hook == PLAIN_HOOK or session.plan.network.finished:
        return {}
    store = Store.open(session.config.models or session.run.uri)
    return {
        fold: [load_facts(store.get(key)).get("report", {}) for key in keys]
        for fold, keys in enumerate(models)
    }


def _adopted(session: Session) -> str:
    """Copy the TorchScript file into the run folder, where every worker finds the same bytes."""
    key = f"models/{session.train_key}/network.torchscript"
    store = session.run.store
    if store.head(key) is None:
        store.put(key, read_script(session.config).data)
    Script.trusted(store.get(key), session.plan.network.script)
    session.events.say("train", "nothing to train, a TorchScript file votes")
    return key


def _adopted_folds(session: Session) -> tuple[str, ...]:
    """Copy the networks of an nnU-Net folder into the run folder, without what training kept."""
    store, keys = session.run.store, []
    for fold, data in adopted(session.config, session.plan.network):
        keys.append(f"models/{session.train_key}/{fold}.network")
        if store.head(keys[-1]) is None:
            store.put(keys[-1], data)
    session.events.say("train", f"nothing to train, {len(keys)} networks of nnU-Net vote")
    return tuple(keys)


def retrain(session: Session) -> str:
    """Train one fresh network on the cleaned labels of all cases; return its key.

    Co-Seg's final network (arXiv 2102.00523, section 2): same architecture, fresh weights.
    """
    label = session.config.output.label
    infos = list(build_index(session.archive, session.alive(), require_label=label))
    versions = [(info.case, info.label(label).version) for info in infos]
    key = "final-" + digest("final", session.train_key, versions)
    job = _job(session, infos, label=label, key=key, folds=(tuple(i.case for i in infos),))
    job = replace(job, train=replace(job.train, peers=1, hook=PLAIN_HOOK))
    ((network,),) = train_group(job, session.executor, session.events, stage="retrain")
    session.run.write_state(final_network=network)
    return network


def _lent(session: Session, lender: str) -> Models:
    """Return the networks of the run `lender`, checking that all of them are finished."""
    key, plan = session.train_key, session.plan
    members = range(plan.voters.members)
    keys = tuple(tuple(model_key(key, fold, net) for net in members) for fold in range(plan.folds))
    store = Store.open(lender)
    missing = [name for names in keys for name in names if store.head(name) is None]
    if missing:
        raise InputError(
            f"models: {lender} lacks {', '.join(missing)}; that run did not finish its training. "
            "Resume it first."
        )
    return keys


def _job(
    session: Session,
    infos: Sequence[CaseInfo],
    *,
    label: str,
    key: str,
    folds: tuple[tuple[str, ...], ...],
) -> TrainJob:
    plan, wanted = session.plan, session.config.resources.train
    return TrainJob(
        key=key,
        run_uri=session.run.uri,
        archive_uri=plan.archive,
        label=label,
        trusted_label=plan.trusted_label,
        cases=tuple(info for info in infos if info.case not in session.failed),
        folds=tuple(tuple(c for c in fold if c not in session.failed) for fold in folds),
        network=plan.network,
        normaliser=plan.normaliser,
        classes=plan.classes,
        train=plan.train,
        patch_zyx=plan.patch_zyx,
        flips=plan.flips,
        spacing_mm=plan.spacing_mm,
        placement=session.config.train.placement,
        workers=1 if wanted.workers == "auto" else wanted.workers,
        cpus=float(plan.train.threads) if wanted.cpus == "auto" else wanted.cpus,
        gpus=session.gpus(wanted.gpus),
        term=session.term,
    )
