"""Lay out the cells of benchmarks/quality.py as docs/results.md, with all definitions."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measures import (
    Row,
    clean_cases,
    dice,
    error_removed_of,
    harm,
    precision,
    recovered_share,
    share_worse,
    told,
)

__all__ = ["write_page", "write_section"]

Cell = Mapping[str, Any]
BEGIN, END = "## By defaults", "<!-- end of what benchmarks/defaults.py writes -->"
ORDER = ("nothing", "argmax", "mean shift", "coseg", "ensemble", "dropout")
DEFINITIONS = """\
# Results

Written by `make bench-quality`; every line is one cell that the command can run alone.

Measured before rough outlines, blending, and offsets that leave out unlabelled objects
([how-it-works.md](how-it-works.md)) were part of the policy; what they bring is on the
[scoreboard](scoreboard.md).

## Measures

- **E**, error removed: 1 - (1 - Dice after) / (1 - Dice given), both means over the noisy cases,
  per class, then averaged over classes; the interval is the mean of the classes' intervals, each a
  95 % paired bootstrap by patient. 0:
  nothing was gained, 1: the label is the truth, negative: worse than doing nothing.
- **NSD**: normalised surface Dice at one voxel, of the output, noisy cases.
- **Share**: (after - given) / (ceiling - given), shown only where ceiling - given exceeds 0.05.
  The ceiling is the Dice of out-of-fold predictions of the same networks trained on the true
  labels.
- **Harm** per case and class: voxels where the given label was right and the output is wrong,
  over the voxels that are that class in the given label or in the truth. Mean over all cases.
- **Clean cases**: Dice of the output to their own given label: mean, worst case, and
  the share of cases that lose more than .01.
- **Worse**: share of the noisy cases whose mean Dice fell.
- **Precision**: share of the changed voxels of noisy cases that became right.

Networks are trained on the noisy labels; every case is judged by networks that never saw its
patient. `argmax` replaces every label by that prediction. `mean shift` moves every outline by the
archive's mean bias, measured on the truth: an oracle that a user does not have.

The default policy was developed on the hippocampus cases: several of its numbers were set after
looking at these very cells. The gates that keep it from editing what the networks have not learnt
were set after looking at the lung cells. Read the figures of both as a fit, not as a forecast.

Dice is averaged over the classes of a case. Times are wall seconds of a cell's first run on 2 cores
that other work shared, so good to a factor of two or three; a cell that trains includes training.
The dropout cell reuses a network of the ensemble cell.
"""


def write_page(cells: Sequence[Cell], path: Path) -> None:
    """Write the page from all cells there are; without any, leave it as it is."""
    if not cells:
        print("no cell has been run: the page stays as it is", file=sys.stderr)
        return
    parts = [DEFINITIONS]
    for data in dict.fromkeys(cell["data"] for cell in cells):
        mine = [cell for cell in cells if cell["data"] == data]
        ceiling = _ceiling(mine)
        for noise in dict.fromkeys(cell["noise"] for cell in mine):
            chosen = [cell for cell in mine if cell["noise"] == noise]
            parts.append(_section(data, noise, chosen, ceiling))
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = _marked(path.read_text()) if path.exists() else ""
    path.write_text("\n".join(parts) + ("\n" + kept if kept else ""))


def write_section(path: Path, lines: Sequence[str]) -> None:
    """Write what other benchmarks measured at the end of the page, in place of what stood there."""
    text = path.read_text()
    section = "\n".join([BEGIN, "", *lines, END, ""])
    kept = _marked(text)
    path.write_text(text.replace(kept, section) if kept else f"{text.rstrip()}\n\n{section}")


def _marked(text: str) -> str:
    start, end = text.find(BEGIN), text.find(END)
    return text[start : end + len(END) + 1] if start >= 0 else ""


def _ceiling(cells: Iterable[Cell]) -> float | None:
    """Return the Dice of predictions of networks trained on true labels, from the clean archive."""
    for cell in cells:
        if cell["noise"] == "none" and cell["method"] == "argmax":
            return float(np.mean([row["dice"] for row in cell["rows"]]))
    return None


def _section(data: str, noise: str, cells: Sequence[Cell], ceiling: float | None) -> str:
    cases = len({row["case"] for row in cells[0]["rows"]})
    noisy = len(cells[0]["noisy"])
    head = (
        f"## {data}, {noise}\n\n{cases} cases, {noisy} of them noisy."
        + (f" Ceiling {ceiling:.3f}." if ceiling is not None else "")
        + "\n\n| method | Dice given | after | E (95 %) | share | NSD | worse | precision | harm | "
        "clean: mean | worst | > .01 | s |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    )
    ranked = sorted(cells, key=lambda cell: ORDER.index(cell["method"]))
    commands = "\n".join(f"- {c['method']}: `{c['command']}`" for c in ranked if "wall_s" in c)
    return "\n".join([head, *(_line(cell, ceiling) for cell in ranked), "", commands, ""])


def _line(cell: Cell, ceiling: float | None) -> str:
    noisy = set(cell["noisy"])
    bad = [row for row in cell["rows"] if row["case"] in noisy]
    good = [row for row in cell["rows"] if row["case"] not in noisy]
    mean_harm, _ = harm(cell["rows"])
    columns = [cell["method"], *_noisy_columns(bad, ceiling), told(mean_harm), *_clean(good)]
    return "| " + " | ".join([*columns, f"{cell['wall_s']:.0f}"]) + " |"


def _noisy_columns(rows: Sequence[Row], ceiling: float | None) -> list[str]:
    if not rows:
        return ["-"] * 7
    before, after, error = dice(rows, given=True), dice(rows), error_removed_of(rows)
    share = float("nan") if ceiling is None else recovered_share(before, after, ceiling)
    return [
        told(before),
        told(after),
        f"{error.value:.2f} ({error.low:.2f} to {error.high:.2f})",
        told(share, ".2f"),
        f"{np.mean([row['nsd'] for row in rows]):.3f}",
        f"{share_worse(rows):.0%}",
        told(precision(rows), ".2f"),
    ]


def _clean(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return ["-"] * 3
    found = clean_cases(rows)
    return [f"{found.mean:.4f}", f"{found.worst:.3f}", f"{found.share_losing:.1%}"]
