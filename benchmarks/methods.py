"""Every method on every noise: writes docs/scoreboard.md and docs/which-method.md.

`python benchmarks/methods.py [--data NAME] [--scenario NAME] [--method LINE] [--seed N]` runs the
cells that are missing, each kept under benchmarks/measured, and rewrites the page. It can be
stopped at any time and goes on where it stopped, on another machine too; `--minutes N` starts no
new cell after that. Cells that other settings, or an older revision, gave are measured again. A
cell that fails is recorded with its error and stops no other; `--retry` runs the failed ones again.
`--heldout` trains networks on the labels of the best lines; `--published` repeats the settings of
the papers. `--evidence` keeps what the policies of two lines read (benchmarks/evidence). Tables of
what there is: benchmarks/grid.py.
"""

import argparse
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from advice import advice
from archives import Unavailable
from cells import MEASURED, ROOT, default_source, read_cell, read_cells, write_cell
from grid import BASELINES, DATA, HELD_OUT, METHODS, PUBLISHED, SCENARIOS, names
from heldout import held_out, held_out_path
from running import Key, measure
from scoreboard import page
from winners import ranked

from raysegclean.errors import told

__all__ = ["main"]

PAGE = ROOT / "docs" / "scoreboard.md"
ADVICE = ROOT / "docs" / "which-method.md"
KEY = ("data", "scenario", "line", "seed")
EVIDENCE_OF = (
    "none", "boundary", "polygon", "drop", "bias", "markov", "swap", "shift", "smooth", "bias-one"
)  # fmt: skip
"""Scenarios whose evidence is kept."""
BEST = 3
"""Lines per scenario whose labels train a network."""

Measure = Callable[[Key, Path], dict[str, Any]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing of the chosen cells, then write the page from all cells there are."""
    options = _parser().parse_args(argv)
    logging.basicConfig(level=logging.ERROR)
    deadline = time.monotonic() + 60 * options.minutes
    if options.evidence:
        return _keep_all(options, deadline)
    if not options.page_only:
        _run_all(options, deadline)
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    cells = _current("cells")
    PAGE.write_text(page(cells, _current("heldout")))
    ADVICE.write_text(advice(cells))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    lines = (*METHODS, *BASELINES)
    parser.add_argument("--data", choices=DATA, action="append")
    parser.add_argument("--scenario", choices=SCENARIOS, action="append", metavar="NAME")
    parser.add_argument("--method", choices=lines, action="append", metavar="LINE")
    parser.add_argument("--seed", type=int, action="append")
    parser.add_argument("--source", type=Path, default=default_source())
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--heldout", action="store_true", help="train networks on cleaned labels")
    parser.add_argument("--published", action="store_true", help="repeat the papers' settings")
    parser.add_argument("--retry", action="store_true", help="run failed cells again")
    parser.add_argument("--evidence", action="store_true", help="keep what policies read")
    parser.add_argument("--page-only", action="store_true", help="only write the pages")
    return parser


def _run_all(options: argparse.Namespace, deadline: float) -> None:
    """Run the grid, or with their flags the other two parts; stop at the deadline."""
    if options.heldout:
        parts = [(_held_out_keys(options), held_out, held_out_path)]
    elif options.published:
        parts = [
            (_published_keys(options), measure, lambda key: key.path),
            (_published_networks(options), held_out, held_out_path),
        ]
    else:
        parts = [(_grid_keys(options), measure, lambda key: key.path)]
    for keys, work, place in parts:
        for key in keys:
            if time.monotonic() > deadline:
                print("out of time", file=sys.stderr)
                return
            _once(key, place(key), work, options)


def _keep_all(options: argparse.Namespace, deadline: float) -> int:
    """Keep the evidence that is missing; the cells themselves stay as they were measured."""
    for key in _evidence_keys(options):
        if time.monotonic() > deadline:
            break
        if not key.evidence_path.exists():
            started = time.monotonic()
            try:
                measure(key, options.source)
                what = "done"
            except Exception as error:  # noqa: BLE001  (one cell never stops the others)
                what = told(error)
            print(f"{key.name} {what}, {time.monotonic() - started:.0f} s", file=sys.stderr)
    return 0


def _once(key: Key, path: Path, work: Measure, options: argparse.Namespace) -> None:
    """Measure one cell, unless it is there."""
    if path.exists():
        cell = read_cell(path)
        stale = cell.get("measured_with") != key.measured_with
        if not (stale or (options.retry and "failed" in cell)):
            return
    started = time.monotonic()
    print(f"{key.name} ...", file=sys.stderr, end=" ", flush=True)
    try:
        cell = work(key, options.source)
    except Unavailable as why:
        print(f"skipped: {why}", file=sys.stderr)
        return
    except Exception as error:
        logging.getLogger("benchmark").debug("", exc_info=True)
        cell = key.told() | {"failed": told(error)}
    write_cell(path, cell)
    what = cell.get("failed", "done")
    print(f"{what}, {time.monotonic() - started:.0f} s", file=sys.stderr)


def _current(part: str, names: str = "*.json.gz") -> list[dict[str, Any]]:
    """Return the cells that today's settings and revision gave."""
    return [
        cell
        for cell in read_cells(MEASURED / part, names)
        if Key(*(cell[name] for name in KEY)).measured_with == cell["measured_with"]
    ]


def _wanted(options: argparse.Namespace, name: str, value: object) -> bool:
    chosen = getattr(options, name)
    return not chosen or value in chosen


def _grid_keys(options: argparse.Namespace) -> Iterator[Key]:
    """Yield the cells of the grid, first seeds first."""
    for data, settings in DATA.items():
        for seed in settings.seeds:
            for scenario in settings.scenarios:
                for line in names(SCENARIOS[scenario], data, seed):
                    if (
                        _wanted(options, "data", data)
                        and _wanted(options, "scenario", scenario)
                        and _wanted(options, "seed", seed)
                        and _wanted(options, "method", line)
                    ):
                        yield Key(data, scenario, line, seed)


def _evidence_keys(options: argparse.Namespace) -> Iterator[Key]:
    """Yield the cells whose evidence is kept: by seed, then line, then scenario."""
    data = [name for name in ("hippocampus", "phantom") if _wanted(options, "data", name)]
    for seed, line in product((1, 2), ("uncertainty", "coseg")):
        for scenario, name in product(EVIDENCE_OF, data):
            known = seed in DATA[name].seeds and scenario in DATA[name].scenarios
            wanted = _wanted(options, "scenario", scenario) and _wanted(options, "method", line)
            if known and wanted and _wanted(options, "seed", seed):
                yield Key(name, scenario, line, seed)


def _held_out_keys(options: argparse.Namespace) -> Iterator[Key]:
    """Yield the given and true labels, and those of the best lines by the choosing half."""
    for data, scenario in HELD_OUT:
        if _wanted(options, "data", data) and _wanted(options, "scenario", scenario):
            seed = DATA[data].seeds[0]
            cells = _current("cells", f"{data}.{scenario}.*.json.gz")
            best = [standing.line for standing in ranked(cells)[:BEST]]
            for line in ("given", "truth", *best):
                yield Key(data, scenario, line, seed)


def _published_keys(options: argparse.Namespace) -> Iterator[Key]:
    for repeat in PUBLISHED:
        if _wanted(options, "data", repeat.data):
            seed = DATA[repeat.data].seeds[0]
            for scenario in repeat.scenarios:
                for line in names(SCENARIOS[scenario], repeat.data, seed):
                    if _wanted(options, "scenario", scenario):
                        yield Key(repeat.data, scenario, line, seed)


def _published_networks(options: argparse.Namespace) -> Iterator[Key]:
    for repeat in PUBLISHED:
        if repeat.held_out and _wanted(options, "data", repeat.data):
            seed = DATA[repeat.data].seeds[0]
            for scenario in repeat.scenarios:
                for line in repeat.lines:
                    key = Key(repeat.data, scenario, line, seed)
                    ready = line not in METHODS or key.path.exists()
                    if ready and _wanted(options, "scenario", scenario):
                        yield key


if __name__ == "__main__":
    sys.exit(main())
