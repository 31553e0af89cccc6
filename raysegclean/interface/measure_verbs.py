"""What cleaning is worth, where the truth is known: demo, simulate, score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from raysegclean.interface.verbs import ARCHIVE, Section, label_option

if TYPE_CHECKING:
    from raysegclean.evaluate.score import ScoreReport
    from raysegclean.interface.demo import DemoReport
    from raysegclean.simulate.noisy_archive import SimulateReport

__all__ = ["MEASURES", "demo", "score", "simulate_noise"]

MEASURES = Section("With known truth")


@MEASURES.verb(click.Argument(["folder"], type=click.Path(), default="demo", help="default: demo"))
def demo(folder: str | Path = "demo") -> DemoReport:
    """Make, corrupt, clean and score a small phantom archive."""
    from raysegclean.interface.demo import run_demo

    return run_demo(Path(folder))


@MEASURES.verb(
    click.Argument(["source"], metavar="SRC", help="archive to copy, a path or URI"),
    click.Argument(["target"], metavar="DST", help="path or URI of the copy"),
    label_option("label to corrupt; the original stays as NAME_truth"),
    click.Option(
        ["--noise"],
        required=True,
        metavar="NAME",
        help="boundary, bias, markov, polygon, smooth, drop, shift or swap",
    ),
    click.Option(["--fraction"], type=float, default=0.5, help="share of cases (0.5)"),
    click.Option(["--seed"], type=int, default=0, help="the same seed gives the same noise"),
    click.Option(
        ["--param", "params"],
        multiple=True,
        metavar="KEY=VALUE",
        help="a parameter of the noise, as --param n_max=2; may be given many times",
    ),
    name="simulate",
)
def simulate_noise(
    source: str,
    target: str,
    label: str,
    *,
    noise: str,
    fraction: float = 0.5,
    seed: int = 0,
    params: Mapping[str, Any] | Sequence[str] = (),
) -> SimulateReport:
    """Copy an archive and corrupt a label.

    `params` are those of the noise: `{"n_max": 2}`, or texts as after --param.
    """
    from raysegclean.config.settings import parse_params
    from raysegclean.simulate.noisy_archive import simulate
    from raysegclean.store.archive import Archive

    return simulate(
        Archive.open(source),
        target,
        label,
        noise=noise,
        fraction=fraction,
        seed=seed,
        params=params if isinstance(params, Mapping) else parse_params(params),
    )


@MEASURES.verb(
    ARCHIVE,
    label_option("label to score"),
    click.Option(["--truth"], required=True, metavar="NAME", help="label to score against"),
    click.Option(
        ["--given"], metavar="NAME", help="label before cleaning: tells harm and precision too"
    ),
)
def score(archive: str, label: str, truth: str, *, given: str | None = None) -> ScoreReport:
    """Compare a label with the truth, per case and class."""
    from raysegclean.evaluate.score import score_archive
    from raysegclean.store.archive import Archive

    return score_archive(Archive.open(archive), label, truth, given=given)
