"""A run, before, while and after: plan, clean, status, rank, verify, replay, undo."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from raysegclean.interface.verbs import RUN, SETS, Section

if TYPE_CHECKING:
    from raysegclean.config.settings import Config
    from raysegclean.runs.pipeline import RunReport
    from raysegclean.runs.plan_report import PlanReport
    from raysegclean.runs.rank import RankReport
    from raysegclean.runs.replay import ReplayReport
    from raysegclean.runs.verify import VerifyReport

__all__ = ["RUNS", "clean", "plan", "rank", "replay", "status", "undo", "verify"]

RUNS = Section("Runs")
Settings = Mapping[str, Any] | Sequence[str]


@RUNS.verb(
    click.Argument(["config"], type=click.Path(), help="YAML; see examples/clean.yaml"), SETS
)
def plan(config: str | Path, settings: Settings = ()) -> PlanReport:
    """Show what a run would do, without running it.

    `settings` win over the file's: `{"train.steps": 500}`, or texts as after --set. Raises
    ConfigError with every problem and its line.
    """
    loaded = _loaded(config, settings)
    from raysegclean.runs.plan_report import plan

    return plan(loaded)


@RUNS.verb(
    click.Argument(
        ["config"],
        type=click.Path(),
        required=False,
        help="YAML; without it the phantom archive in ./demo is made and cleaned",
    ),
    SETS,
)
def clean(config: str | Path | None = None, settings: Settings = ()) -> RunReport:
    """Train, relabel and publish; again to resume.

    `settings` win over the file's, as in `plan`. Progress is shown on a terminal, or
    logged by the logger "raysegclean".
    """
    loaded = _loaded(config, settings)
    from raysegclean.interface.live import shown
    from raysegclean.runs.pipeline import clean

    if config is None:
        from raysegclean.interface.demo import prepare_archive

        prepare_archive(loaded.archive)
    with shown() as events:
        return clean(loaded, events)


def _loaded(config: str | Path | None, settings: Settings) -> Config:
    """Return the validated config; only pydantic is imported for it."""
    from raysegclean.config.settings import load_config

    if isinstance(settings, Mapping):
        settings = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    return load_config(None if config is None else Path(config), settings)


@RUNS.verb(RUN)
def status(run: str) -> dict[str, Any]:
    """Show how far a run is."""
    from raysegclean.runs.status import status

    return status(run)


@RUNS.verb(RUN)
def rank(run: str) -> RankReport:
    """List a run's cases, the worst given label first.

    By the expected Dice of the given label to the truth, from networks that did not train on it.
    """
    from raysegclean.runs.rank import rank

    return rank(run)


@RUNS.verb(RUN)
def verify(run: str) -> VerifyReport:
    """Check a run's outputs against its ledger."""
    from raysegclean.runs.verify import verify

    return verify(run)


@RUNS.verb(RUN, SETS)
def replay(run: str, settings: Settings = ()) -> ReplayReport:
    """Decide again with other numbers, from the scores that a run kept.

    `settings` name numbers of the policy: `{"policy.posterior": 0.9}`, or texts as after --set.
    No network runs and no voxel is read; nothing is written.
    """
    from raysegclean.config.settings import parse_params
    from raysegclean.runs.replay import replay

    values = (
        settings
        if isinstance(settings, Mapping)
        else parse_params(settings, "--set policy.posterior=0.9")
    )
    return replay(run, values)


@RUNS.verb(
    RUN,
    click.Option(["--case"], metavar="CASE", help="only in this case"),
    click.Option(["--class", "cls"], metavar="K", help="only this class, by value or name"),
    click.Option(["--reason"], metavar="REASON", help="only changes made for this reason"),
)
def undo(
    run: str, *, case: str | None = None, cls: int | str | None = None, reason: str | None = None
) -> RunReport:
    """Take back changes of a run.

    All of them, or those of a case, a class and a reason; what was undone stays undone.
    """
    from raysegclean.interface.live import shown
    from raysegclean.runs.undo import undo

    with shown() as events:
        return undo(run, case, cls, reason, events=events)
