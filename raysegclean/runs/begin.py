"""The start of a run: its plan is frozen in its folder, or taken from there; others are refused."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from raysegclean.cluster.driver import ClusterFacts
from raysegclean.cluster.executor import Executor
from raysegclean.config.settings import Config
from raysegclean.events import Events
from raysegclean.identity import digest
from raysegclean.planning.named_cases import names_file
from raysegclean.planning.plan import RunPlan, split_usable, with_current_cases
from raysegclean.runs.preflight import Prepared
from raysegclean.runs.session import Session
from raysegclean.store.archive import Archive
from raysegclean.store.objects import Store
from raysegclean.store.run import RunFolder

__all__ = ["LATEST", "Job", "begin", "gpus_needed"]

LATEST = "config.json"
"""The config of the last start; `resolved.json` has that of the first."""

Job = tuple[int, Callable[[], None], Events]
"""Epoch of the lock, a check that the lock is still held, and where progress is told."""


def begin(
    config: Config,
    run: RunFolder,
    prepared: Prepared,
    executor: Executor,
    job: Job,
) -> Session:
    """Freeze the plan at the first start, or take the frozen one; refuse another run's folder."""
    (term, still_ours, events), facts = job, executor.facts
    plan, before = _planned(prepared, config, facts), run.resolved()
    frozen = run.freeze(
        {
            "identity": _identity(config, plan, before),
            "plan": plan.to_json(),
            "train_key": _train_key(config, plan),
            "config": config.resolved(),
            "gpu": facts.gpus > 0,
        }
    )
    run.write_json(LATEST, _placed(config))
    first = RunPlan.from_json(frozen["plan"])
    known, strangers = split_usable(config, prepared.infos, first)
    _tell_other_archive(first, plan, events)
    today = _planned(replace(prepared, infos=tuple(known)), config, facts)
    plan = with_current_cases(first, today, lent=prepared.lender is not None)
    run.write_state(
        status="running", term=term, started=time.time(), cases=len(plan.cases), error=None
    )
    return Session(
        unusable=prepared.unusable | strangers,
        config=config,
        run=run,
        archive=Archive.open(plan.archive),
        plan=plan,
        train_key=frozen["train_key"],
        method=prepared.method,
        params=prepared.params,
        term=term,
        executor=executor,
        began_on_gpu=bool(frozen.get("gpu")),
        still_ours=still_ours,
        events=events,
    )


def _tell_other_archive(begun: RunPlan, now: RunPlan, events: Events) -> None:
    """Say when a run goes on with another archive than it began with; it may have been moved."""
    if begun.archive != now.archive:
        versions = {case.case: case.version for case in begun.cases}
        changed = sum(versions.get(case.case) != case.version for case in now.cases)
        events.say(
            "archive",
            f"this run began on {begun.archive} and goes on with {now.archive}; {changed} "
            f"of {len(now.cases)} cases differ, and are judged by the networks of the former",
        )


def _planned(prepared: Prepared, config: Config, facts: ClusterFacts) -> RunPlan:
    """Return the plan for this cluster: `precision: auto` is bf16 where its GPUs have it."""
    if config.train.precision == "auto" and facts.gpus and not facts.has_bf16:
        config = config.with_settings({"train.precision": "fp32"})
    return prepared.plan(config, gpu=facts.gpus > 0)


def _placed(config: Config) -> dict[str, Any]:
    """Return the settings with whole paths, so that `undo` can be run from any folder."""
    settings = config.resolved()
    for name in ("archive", "index", "models", "run"):
        settings[name] = settings[name] and Store.open(settings[name]).uri
    for name in ("torchscript", "nnunet"):
        if (place := settings["network"][name]) is not None:
            settings["network"] |= {name: Store.open(place).uri}
    if names_file(config.cases):
        settings["cases"] = str(Path(str(config.cases)).absolute())
    return settings


def _identity(config: Config, plan: RunPlan, before: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what a run folder is bound to.

    Settings, and not what followed from the archive: that is frozen at the first start, and new
    or changed cases are cleaned with it. What only decides about proposals may change: then the
    label is settled again. What only decides about memory may change, too. `before` is what an
    earlier start froze: its word on the tile counts, and the same place may be spelled otherwise.
    """
    settings = config.resolved()
    bound = {name: settings[name] for name in ("label", "trusted", "group", "method", "models")}
    if config.label_ignore is not None:
        bound["label_ignore"] = config.label_ignore
    tile_counts = plan.tile_counts
    if before is not None:
        tile_counts = before["plan"].get("tile_counts", True)
        spelled = before["identity"].get("models")
        if spelled and config.models and Store.open(spelled) == Store.open(config.models):
            bound["models"] = spelled
    tile = () if tile_counts else ("tile_zyx",)
    bounds = ("max_steps", "budget_minutes")
    without = {
        "train": ("placement", "checkpoint_every", *bounds),
        "relabel": ("max_change", *tile),
    }
    for section in ("network", "train", "relabel"):
        left_out = without.get(section, ())
        bound[section] = {k: v for k, v in settings[section].items() if k not in left_out}
    begun = {} if before is None else before["identity"].get("network", {})
    left_open = config.network.spacing_mm in (None, "auto")
    if begun and "spacing_mm" not in begun and left_open:  # of a version without it: native
        del bound["network"]["spacing_mm"]
    if plan.network.script:  # the file may move, but not change
        bound["network"] |= {"torchscript": plan.network.script}
    if plan.network.nnunet:
        bound["network"] |= {"nnunet": digest(plan.network.nnunet)}
    workers = config.resources.train.workers
    if workers not in ("auto", 1):  # gradients of other ranks are other sums
        bound["resources"] = {"train": {"workers": workers}}
    return bound | {"voters": asdict(plan.voters)}


def _train_key(config: Config, plan: RunPlan) -> str:
    """Return the identity of the networks that vote: the lender's where they are lent."""
    if config.models is None:
        return plan.train_key()
    frozen = RunFolder(config.models).resolved() or {}
    return str(frozen["train_key"])


def gpus_needed(config: Config) -> float:
    """Return the GPUs per worker that the config demands outright."""
    wanted = (config.resources.train.gpus, config.resources.relabel.gpus)
    return max((float(gpus) for gpus in wanted if gpus != "auto"), default=0.0)
