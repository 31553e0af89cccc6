"""Train the voters, and at the end the final network."""

from dataclasses import replace

from raysegclean.core.cases import CaseInfo
from raysegclean.core.identity import digest
from raysegclean.dist.train import TrainJob, train_group
from raysegclean.stages.session import Session
from raysegclean.store.index import build_index

__all__ = ["Models", "retrain", "train"]

Models = tuple[tuple[str, ...], ...]
"""Keys of the finished networks in the run folder, by fold and member."""


def train(session: Session, infos: list[CaseInfo]) -> Models:
    """Return the voters of every fold; finished networks are reused."""
    plan = session.plan
    folds = tuple(plan.training_cases(fold) for fold in range(plan.folds))
    job = _job(session, infos, label=plan.label, key=session.train_key, folds=folds)
    return tuple(tuple(keys) for keys in train_group(job, on_progress=session.say))


def retrain(session: Session) -> str:
    """Train one fresh network on the cleaned labels of all cases; return its key.

    Co-Seg's final network (arXiv 2102.00523, section 2): same architecture, fresh weights.
    """
    label = session.config.output.label
    cases = session.alive()
    index = build_index(session.archive, cases, require_label=label)
    infos = list(index)
    versions = [(info.case, info.label(label).version) for info in infos]
    key = "final-" + digest("final", session.train_key, versions)
    job = _job(session, infos, label=label, key=key, folds=(tuple(i.case for i in infos),))
    config = replace(job.train, peers=1, coupling="independent", keep=1.0)
    (keys,) = train_group(replace(job, train=config, members=1), on_progress=session.say)
    return keys[0]


def _job(
    session: Session,
    infos: list[CaseInfo],
    *,
    label: str,
    key: str,
    folds: tuple[tuple[str, ...], ...],
) -> TrainJob:
    raise NotImplementedError
