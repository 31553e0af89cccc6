"""The main flow: check, plan, train, propose, decide, apply, publish, retrain.

`clean` reads top to bottom. Everything durable is in the run folder, so calling it again with the
same config resumes: finished networks are reused, committed shards are skipped, published cases
stay. One bad case costs itself and no other; it is named in failed.jsonl with the remedy.
"""

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field

from raysegclean.cluster.executor import Executor, open_executor
from raysegclean.config.settings import Config
from raysegclean.errors import RaysegcleanError, UnfitEnvironment, told
from raysegclean.events import Events, Lines
from raysegclean.evidence.case_scores import evidence_rows
from raysegclean.evidence.cases import CaseInfo
from raysegclean.evidence.records import FailedCase
from raysegclean.methods.base import Verdict
from raysegclean.policy.apply import TakenBack
from raysegclean.runs.apply import Outcome, apply, begin_output, note_undone
from raysegclean.runs.begin import begin, gpus_needed
from raysegclean.runs.check import check, check_notes
from raysegclean.runs.gather import gather, voter_notes
from raysegclean.runs.judge import judge, with_doubts
from raysegclean.runs.learning import learning_notes
from raysegclean.runs.metrics import kept_metrics
from raysegclean.runs.preflight import prepare
from raysegclean.runs.propose import propose
from raysegclean.runs.session import Session
from raysegclean.runs.train import endings, retrain, train
from raysegclean.store.lock import RunLock
from raysegclean.store.run import RunFolder

__all__ = ["RunReport", "clean"]


@dataclass(frozen=True)
class RunReport:
    """What a run did; all of it is also in run.json."""

    run: str
    status: str
    output_label: str
    cases: int
    kept_cases: int
    """Judged and found right; what was not judged of them too is counted in `classes`."""
    changed_cases: int
    review_cases: int
    """A person should look at them, changed or not."""
    not_judged_cases: int
    changed_vox: int
    failed: tuple[FailedCase, ...]
    classes: Mapping[str, int] = field(default_factory=dict)
    """The same of the classes of all cases."""
    look_at: tuple[str, ...] = ()
    """Cases in review, and why."""
    notes: tuple[str, ...] = ()
    """What must be known of the voters and the archive to judge the result."""

    @property
    def exit_code(self) -> int:
        """0 when every case is clean, 1 when some failed."""
        return 1 if self.failed else 0


def clean(
    config: Config, events: Events | None = None, *, take_back: TakenBack | None = None
) -> RunReport:
    """Clean the archive that `config` names, or resume where an earlier start stopped.

    `events` are told how far the run is (default: lines in the log), and the run folder is, too.
    `take_back` names changes that are undone in this start and stay undone; none is trained then.
    Raises RaysegcleanError before any compute when the config or the input does not allow it.
    """
    run = RunFolder(config.run)
    run.store.check_writable()
    prepared = prepare(config)
    lock = RunLock(run.store, job=f"{os.uname().nodename}-{os.getpid()}")
    term = lock.acquire()
    executor: Executor | None = None
    session: Session | None = None
    events = events or Events(Lines())
    records = ExitStack()
    try:
        run.store.sweep()
        kind = config.resources.executor
        executor = open_executor(kind, gpus_needed=gpus_needed(config))
        if config.search is not None:
            from raysegclean.runs.search import with_searched_params  # imports Ray

            config = with_searched_params(config, run, events, lock.check)
            prepared = prepare(config)
        session = begin(config, run, prepared, executor, (term, lock.check, events))
        records.enter_context(kept_metrics(run.store, events, lock.check))
        if take_back is not None:
            note_undone(run, take_back)
        return _stages(session, prepared.infos, final=take_back is None)
    except BaseException as error:
        # Of a folder that belongs to another run, nothing is touched.
        if session is not None or run.resolved() is None:
            _note_failure(run, lock, error)
        raise
    finally:
        records.close()
        with suppress(UnfitEnvironment):  # a full disk; the error that is under way says it
            lock.release()
        if executor is not None:
            executor.close()


def _note_failure(run: RunFolder, lock: RunLock, error: BaseException) -> None:
    stopped = isinstance(error, KeyboardInterrupt | SystemExit)
    why = "stopped from outside; the same command again resumes" if stopped else told(error)
    with suppress(RaysegcleanError):
        lock.check()
        run.write_state(status="stopped" if stopped else "failed", error=why)


def _stages(session: Session, infos: Sequence[CaseInfo], *, final: bool) -> RunReport:
    """Do what is left; `final` tells whether a network is trained on the cleaned labels."""
    session.fail(session.unusable)
    begin_output(session)
    found = check(session)
    models = train(session, infos)
    proposals = propose(session, models)
    with session.events.stage("gather"):
        evidence = gather(session, proposals)
        rows = evidence_rows(evidence.scores, evidence.trusted)
        session.run.write_table("evidence.parquet", rows)
    with session.events.stage("judge"):
        proposals, verdict = judge(session, proposals, evidence)
        verdict = with_doubts(session, evidence, verdict, found)
    outcome = apply(session, proposals, verdict)
    if final and session.method.retrains(session.params) and not session.plan.network.finished:
        retrain(session)
    notes = voter_notes(session.plan, proposals.records.values())
    notes += learning_notes(session.plan, evidence, endings(session, models))
    notes += check_notes(session, found)
    return _finish(session, verdict, outcome, notes)


def _finish(
    session: Session, verdict: Verdict, outcome: Outcome, notes: tuple[str, ...]
) -> RunReport:
    cases = outcome.tally.cases
    report = RunReport(
        run=session.run.uri,
        status="complete",
        output_label=session.config.output.label,
        cases=len(session.plan.cases),
        kept_cases=cases["kept"],
        changed_cases=cases["changed"],
        review_cases=cases["review"],
        not_judged_cases=cases["not judged"],
        changed_vox=outcome.changed_vox,
        failed=tuple(session.run.failed()),
        classes=outcome.tally.classes,
        look_at=outcome.tally.look_at,
        notes=notes,
    )
    session.still_ours()
    session.run.write_state(**asdict(report), chosen=dict(verdict.chosen), finished=time.time())
    return report
