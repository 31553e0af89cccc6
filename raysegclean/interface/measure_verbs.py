"""What cleaning is worth, where the truth is known: demo, simulate, score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from raysegclean.errors import ConfigError
from raysegclean.interface.verbs import ARCHIVE, Section, label_option

if TYPE_CHECKING:
    from raysegclean.evaluate.score import ScoreReport
    from raysegclean.interface.demo import DemoReport
    from raysegclean.simulate.noisy_archive import SimulateReport
    from raysegclean.store.each import CasesReport

__all__ = ["MEASURES", "demo", "score", "simulate_noise", "warp"]

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
        metavar="NAME",
        help="one kind of error, as boundary, drop, leak or swap: docs/methods.md lists them",
    ),
    click.Option(
        ["--mix"], metavar="YAML", help="many kinds, each with its share: examples/mix.yaml"
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
    noise: str | None = None,
    mix: str | Path | Mapping[str, Any] | None = None,
    fraction: float = 0.5,
    seed: int = 0,
    params: Mapping[str, Any] | Sequence[str] = (),
) -> SimulateReport:
    """Copy an archive and corrupt a label.

    `params` are those of the noise: `{"n_max": 2}`, or texts as after --param. `mix` is a file, or
    what such a file says: name -> noise, share and params.
    """
    from raysegclean.config.settings import parse_params
    from raysegclean.simulate.mixture import kinds_of
    from raysegclean.simulate.noisy_archive import simulate
    from raysegclean.store.archive import Archive

    if (noise is None) is (mix is None):
        raise ConfigError("simulate needs --noise or --mix, and not both.")
    return simulate(
        Archive.open(source),
        target,
        label,
        noise=noise or kinds_of(_values(mix)),
        fraction=fraction,
        seed=seed,
        params=params if isinstance(params, Mapping) else parse_params(params),
    )


@MEASURES.verb(
    click.Argument(["image"], metavar="IMAGE", help="NIfTI file of one CT"),
    click.Argument(["labels"], metavar="LABEL", help="its label, a NIfTI file"),
    click.Argument(["archive"], help="path or URI of the new archive"),
    label_option("name of the label inside the archive"),
    click.Option(["--cases"], type=int, default=40, help="how many cases (40)"),
    click.Option(["--seed"], type=int, default=0, help="the same seed makes the same cases"),
    click.Option(
        ["--groups"], metavar="YAML", help="classes of the archive: a name and its values each"
    ),
    click.Option(
        ["--add-label", "more_labels"],
        multiple=True,
        type=(str, str),
        callback=lambda _, __, pairs: dict(pairs),
        metavar="NAME FILE",
        help="one more label, as another model's; may be given many times",
    ),
)
def warp(
    image: str,
    labels: str,
    archive: str,
    label: str,
    *,
    cases: int = 40,
    seed: int = 0,
    groups: str | Path | Mapping[str, Sequence[int]] | None = None,
    more_labels: Mapping[str, str] | None = None,
) -> CasesReport:
    """Warp one labelled CT into an archive of patients with known truth.

    `groups` is a file, or what such a file says: name -> values of the label, or one value. Classes
    are 1, 2, ... then, in that order.
    """
    from raysegclean.simulate.warped import grouped, read_scan, write_warped_archive

    scan = read_scan(image, {label: labels, **(more_labels or {})})
    if groups is not None:
        scan = grouped(scan, {k: _whole(k, v) for k, v in _values(groups).items()})
    return write_warped_archive(archive, scan, cases, seed=seed)


def _whole(name: str, values: Any) -> list[int]:
    found = values if isinstance(values, list | tuple) else [values]
    if not all(isinstance(value, int) for value in found):
        raise ConfigError(f"groups, {name}: expected whole numbers as [15, 16, 17], got {values}.")
    return list(found)


def _values(given: str | Path | Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return what a YAML file says, or what is given in its place."""
    from raysegclean.config.yaml_source import read_yaml

    if given is None or isinstance(given, Mapping):
        return given or {}
    source = read_yaml(Path(given))
    if source.problems:
        raise ConfigError("\n".join(source.problems))
    return source.values


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
