"""From the cells of the scoreboard to docs/which-method.md: which method for which error.

Pure: from cells to text. Every recommendation is a row of the scoreboard's own table of winners.
"""

from collections.abc import Mapping, Sequence

from grid import BASELINES, DATA, SCENARIOS
from measures import clean_cases
from scoreboard import KEEPS, cells_of, methods_run, rank_scores
from winners import Cell, pooled, ranked, split

__all__ = ["advice"]

INTRO = """\
# Which method when

Written by `make bench-methods` from the cells of the [scoreboard](scoreboard.md), which says how
they were measured; what a method does is in [methods.md](methods.md).

1. Run `raysegclean check` first. It trains nothing and finds gross errors that few cases have:
   structures that are missing, elsewhere, confused or cut. What half of the cases lack looks normal
   to it; `method: multisa` ranks those.
2. If you do not know how your labels are wrong, take `method: uncertainty` with its defaults. The
   policy decides by case and class, whatever the method, and keeps what it cannot tell apart.
3. If you know what is wrong, see below.
4. Have eight cases drawn with care if you can (`trusted`). An error that all cases share cannot be
   seen without them. Where people drew in two ways, one such case tells which is right.
5. Corrupt a copy of your own archive (`raysegclean simulate`) and score what the method makes of it
   (`raysegclean score`) before you trust it with the rest.

Names below are lines of the scoreboard. Most are methods with nothing set; the others are

| line | config |
|---|---|
| `dropout` | `method: uncertainty`, `params: {voters: dropout, members: 1}` |
| `tta` | `method: uncertainty`, `params: {voters: tta, members: 1}` |
| `relabelling` | `method: uncertainty`, `params: {relabel_from: auto}` |
| `spatial-shift` | `method: spatial`, `params: {rule: shift}` |
| `combine` | the labels of `uncertainty`, `coseg` and `coteaching`, where two agree |
| `forward-published` | `method: transition`, `params: {rule: published, loss: forward}` |
| other `-published` | the published form of [methods.md](methods.md) |
"""
ERRORS: Mapping[str, str] = {
    "boundary": "outlines too wide in some cases, too narrow in others",
    "bias": "of two people one draws all outlines wider",
    "markov": "outlines that wander: too wide, and rough",
    "polygon": "outlines clicked with a few points",
    "smooth": "outlines smoothed away",
    "drop": "structures forgotten",
    "shift": "labels in the wrong place",
    "swap": "structures confused",
    "crowd": "one outline each by many untrained people",
}
ONE: Mapping[str, str] = {"bias-one": ERRORS["bias"]}
ALL = "-all"
GROSS: Mapping[str, str] = {
    "drop-few": "a structure forgotten in a few cases",
    "shift-few": "a few labels in the wrong place",
    "swap-few": "structures confused in a few cases",
}
TOP = 2
"""Lines named per data set and error."""


def advice(cells: Sequence[Cell]) -> str:
    """Return the page from all cells there are."""
    some = {name: text for name, text in ERRORS.items() if name in SCENARIOS}
    shared = {f"{n}{ALL}": text for n, text in ERRORS.items() if f"{n}{ALL}" in SCENARIOS}
    shared["crowd-trusted"] = ERRORS["crowd"]
    parts = [
        INTRO,
        _table("No case is trusted, and half of them are wrong (`crowd`: all)", some, cells),
        _table("One case is trusted, and half of the others are wrong", ONE, cells),
        _table("Eight cases are trusted, and all others are wrong", shared, cells),
        _found(cells),
        _kept(cells),
    ]
    return "\n".join(part for part in parts if part)


def _table(title: str, errors: Mapping[str, str], cells: Sequence[Cell]) -> str:
    """Say which lines are best, by the patients that chose nothing; a row per error."""
    names = [name for name in DATA if any(cells_of(cells, name, error) for error in errors)]
    if not names:
        return ""
    head = f"| error | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}"
    text = (
        f"The best {TOP} lines that leave clean cases alone, with the share of the error that "
        "they\nremove; lines whose defaults decide alike tie. none of n: of n lines that were run, "
        "none removes\nany without harm. -: not run."
    )
    rows = []
    for error, said in errors.items():
        best = [_best(cells_of(cells, name, error)) for name in names]
        if any(one != "-" for one in best):
            rows.append(f"| {said} (`{error}`) | {' | '.join(best)} |")
    return "\n".join([f"## {title}", "", text, "", head, *rows, ""])


def _best(cells: Sequence[Cell]) -> str:
    if set(pooled(cells)) <= set(BASELINES):
        return "-"
    told = ", ".join(f"{one.line} {one.error.value:.2f}" for one in ranked(cells)[:TOP])
    return told or f"none of {methods_run(cells)}"


def _found(cells: Sequence[Cell]) -> str:
    """Say which lines put gross errors first."""
    rows = []
    for scenario, said in GROSS.items():
        for data in DATA:
            told = []
            for line, mine in sorted(pooled(cells_of(cells, data, scenario)).items()):
                if scores := rank_scores(mine):
                    area, share = scores
                    told.append(f"{line} {share:.0%} (AUC {area:.2f})")
            if told:
                rows.append(f"| {said} | {data} | {', '.join(told)} |")
    if not rows:
        return ""
    head = "| error | data | of the wrong cases, in the worst tenth |\n|---|---|---|"
    return "\n".join(["## A few gross errors: rank, then look", "", head, *rows, ""])


def _kept(cells: Sequence[Cell]) -> str:
    """Say what the lines do to labels that are right."""
    rows = []
    for data in DATA:
        found = pooled(cells_of(cells, data, "none"))
        kept = {
            line: clean_cases(split(mine)[1]).mean
            for line, mine in found.items()
            if line not in BASELINES
        }
        edits = [f"{line} {mean:.3f}" for line, mean in sorted(kept.items()) if mean < KEEPS]
        if kept:
            rows.append(f"| {data} | {len(kept) - len(edits)} | {', '.join(edits) or 'none'} |")
    if not rows:
        return ""
    head = f"| data | lines that keep a Dice of {KEEPS} | lines that do not |\n|---|---|---|"
    return "\n".join(["## Labels without errors", "", head, *rows, ""])
