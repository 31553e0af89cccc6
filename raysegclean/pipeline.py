"""The main flow: check, plan, train, propose, decide, settle, publish, retrain.

`clean` reads top to bottom. Everything durable is in the run folder, so calling it again with the
same config resumes: finished networks are reused, committed shards are skipped, published cases
stay. One bad case costs itself and no other; it is named in failed.jsonl with the remedy.
"""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from raysegclean.config import Config
from raysegclean.core.cases import CaseInfo
from raysegclean.dist.cluster import ClusterFacts, connect, shutdown_if_ours
from raysegclean.errors import ConfigError
from raysegclean.methods.base import Method, Verdict, load_method, make_params
from raysegclean.plan import RunPlan, make_plan, select_cases, with_current_cases
from raysegclean.stages.deciding import decide
from raysegclean.stages.proposing import propose
from raysegclean.stages.session import Session
from raysegclean.stages.settling import Settlement, begin_output, settle
from raysegclean.stages.training import retrain, train
from raysegclean.store.archive import Archive
from raysegclean.store.index import load_index
from raysegclean.store.lock import RunLock
from raysegclean.store.run import RunFolder

__all__ = ["Prepared", "RunReport", "clean", "prepare"]

log = logging.getLogger("raysegclean")
Say = Callable[[str], None]


@dataclass(frozen=True)
class RunReport:
    """What a run did; all of it is also in run.json."""

    run: str
    status: str
    output_label: str
    cases: int
    changed_cases: int
    changed_vox: int
    held_cases: int
    failed: tuple[dict[str, Any], ...]

    @property
    def exit_code(self) -> int:
        """0 when every case is clean, 1 when some failed."""
        return 1 if self.failed else 0


@dataclass(frozen=True)
class Prepared:
    """Config and archive, checked: all that is known before anything is computed."""

    method: Method
    params: Any
    infos: tuple[CaseInfo, ...]
    unusable: dict[str, str]
    """Case -> why it cannot be used; the other cases go on."""
    lender: RunPlan | None
    """The plan of the run whose networks are used, where `models:` names one."""

    def plan(self, config: Config, *, gpu: bool) -> RunPlan:
        """Decide everything that the config leaves open."""
        voters = self.method.voters(self.params)
        return make_plan(config, self.infos, voters, gpu=gpu, lender=self.lender)


def clean(config: Config, say: Say = log.info) -> RunReport:
    """Clean the archive that `config` names, or resume where an earlier start stopped.

    Raises RaysegcleanError before any compute when the config or the input does not allow it.
    """
    run = RunFolder(config.run)
    run.store.check_writable()
    prepared = prepare(config)
    lock = RunLock(run.store, job=f"{os.uname().nodename}-{os.getpid()}")
    epoch = lock.acquire()
    facts: ClusterFacts | None = None
    try:
        run.store.sweep()
        facts = connect(gpus_needed=_gpus_needed(config))
        session = _begin(config, run, prepared, facts, (epoch, lock.check, say))
        return _stages(session, prepared)
    except BaseException as error:
        run.write_state(status="failed", error=f"{type(error).__name__}: {error}")
        raise
    finally:
        lock.release()
        if facts is not None:
            shutdown_if_ours(facts)


def _stages(session: Session, prepared: Prepared) -> RunReport:
    begin_output(session)
    models = train(session, prepared.infos)
    proposals = propose(session, models)
    verdict = decide(session, proposals)
    settlement = settle(session, proposals, verdict)
    if session.method.retrains(session.params):
        retrain(session)
    return _finish(session, verdict, settlement)


def prepare(config: Config) -> Prepared:
    """Check config and archive; write nothing but the archive's index."""
    method = load_method(config.method)
    params = make_params(method, config.params)
    index = load_index(Archive.open(config.archive), config.index, require_label=config.label)
    infos = select_cases(config.cases, index)
    unusable = {fault.case: fault.reason for fault in index.failed}
    prepared = Prepared(method, params, tuple(infos), unusable, _lender(config))
    prepared.plan(config, gpu=False)  # raises what is wrong before a cluster is asked for
    return prepared


def _lender(config: Config) -> RunPlan | None:
    if config.models is None:
        return None
    frozen = RunFolder(config.models).resolved()
    if frozen is None:
        raise ConfigError(f"models: {config.models} is no run folder; resolved.json is missing.")
    return RunPlan.from_json(frozen["plan"])


def _begin(
    config: Config,
    run: RunFolder,
    prepared: Prepared,
    facts: ClusterFacts,
    job: tuple[int, Callable[[], None], Say],
) -> Session:
    """Freeze the plan at the first start, or take the frozen one; refuse another run's folder."""
    epoch, still_ours, say = job
    plan = prepared.plan(config, gpu=facts.gpus > 0)
    frozen = run.freeze(
        {
            "identity": plan.identity() | {"method": config.method, "models": config.models},
            "plan": plan.to_json(),
            "train_key": _train_key(config, plan),
            "config": config.resolved(),
        }
    )
    plan = with_current_cases(RunPlan.from_json(frozen["plan"]), plan)
    run.write_state(status="running", epoch=epoch, started=time.time(), cases=len(plan.cases))
    session = Session(
        config=config,
        run=run,
        archive=Archive.open(plan.archive),
        plan=plan,
        train_key=frozen["train_key"],
        method=prepared.method,
        params=prepared.params,
        epoch=epoch,
        facts=facts,
        still_ours=still_ours,
        say=say,
    )
    session.fail(prepared.unusable)
    return session


def _train_key(config: Config, plan: RunPlan) -> str:
    """Return the identity of the networks that vote: the lender's where they are lent."""
    if config.models is None:
        return plan.train_key()
    frozen = RunFolder(config.models).resolved() or {}
    return str(frozen["train_key"])


def _finish(session: Session, verdict: Verdict, settlement: Settlement) -> RunReport:
    report = RunReport(
        run=session.run.uri,
        status="complete",
        output_label=session.config.output.label,
        cases=len(session.plan.cases),
        changed_cases=settlement.changed_cases,
        changed_vox=settlement.changed_vox,
        held_cases=len(settlement.held),
        failed=tuple(session.run.failed()),
    )
    session.run.write_state(**asdict(report), chosen=dict(verdict.chosen), finished=time.time())
    return report


def _gpus_needed(config: Config) -> float:
    wanted = (config.resources.train.gpus, config.resources.relabel.gpus)
    return max((float(gpus) for gpus in wanted if gpus != "auto"), default=0.0)
