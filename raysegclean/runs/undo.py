"""Taking changes back. No network is trained, and none runs where the archive is as it was."""

from raysegclean.cluster.apply import load_job
from raysegclean.config.settings import make_config
from raysegclean.errors import ConfigError
from raysegclean.events import Events
from raysegclean.planning.plan import RunPlan
from raysegclean.policy.apply import TakenBack
from raysegclean.policy.edits import reason_code, reason_names
from raysegclean.runs.begin import LATEST
from raysegclean.runs.pipeline import RunReport, clean
from raysegclean.store.run import existing_run

__all__ = ["undo"]


def undo(
    run_uri: str,
    case: str | None = None,
    cls: int | str | None = None,
    reason: str | None = None,
    *,
    events: Events | None = None,
) -> RunReport:
    """Take changes back, all or those of a case, a class and a reason, and publish again.

    No network is trained, and none runs where the archive is as it was: the label is made again
    from the proposals, with the given label in place of the changes. What was undone stays undone
    when the run is resumed.
    """
    run = existing_run(run_uri)
    job = load_job(run)
    entry = TakenBack(case, _channel(job.plan, cls), _reason(job.plan, reason))
    if case is not None:
        job.plan.case(case)
    # Of the last start: cases and thresholds may have changed since the first.
    latest = run.read_json(LATEST) or (run.resolved() or {})["config"]
    config = make_config(latest | {"run": run.uri, "archive": job.plan.archive})
    return clean(config, events, take_back=entry)


def _channel(plan: RunPlan, cls: int | str | None) -> int | None:
    if cls is None:
        return None
    known = {str(value): value for value in plan.classes[1:]}
    known |= {name: value for value, name in plan.names.items() if str(value) in known}
    if str(cls) not in known:
        called = ", ".join(plan.called(value) for value in plan.classes[1:])
        raise ConfigError(f"--class {cls}: this run has the classes {called}.")
    return plan.classes.index(known[str(cls)])


def _reason(plan: RunPlan, name: str | None) -> int | None:
    if name is None:
        return None
    code = reason_code(name, plan.voters.labels)
    if code is None:
        known = [one for code, one in reason_names(plan.voters.labels).items() if code]
        raise ConfigError(f"--reason {name}: expected one of {', '.join(known)}.")
    return code
