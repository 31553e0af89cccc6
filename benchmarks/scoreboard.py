"""Lay out the cells of benchmarks/methods.py as docs/scoreboard.md; any subset of cells will do.

Pure: from cells to text. What has not been run is listed as such, and nothing is guessed from it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from bootstrap import Interval
from grid import AIMS, BASELINES, DATA, METHODS, RANKING, SCENARIOS, is_default, names
from measures import (
    clean_cases,
    dice,
    error_removed_of,
    harm,
    precision,
    share_worse,
    told,
    worst_error_removed,
)
from published import held_out_section, published_section, unfinished
from winners import Cell, Standing, chooses, pooled, ranked, split

__all__ = [
    "KEEPS",
    "auc",
    "cells_of",
    "found_in_worst_tenth",
    "methods_run",
    "page",
    "rank_scores",
]

INTRO = """\
# Scoreboard

Every method on every noise, written by `make bench-methods`. One line of a table is made, alone, by
`python benchmarks/methods.py --data DATA --scenario SCENARIO --method LINE --seed SEED`; the page
alone by `python benchmarks/methods.py --page-only`. E, NSD, harm, precision and what counts as a
clean case are defined in [results.md](results.md#measures). Cells are of
several days and commits; `git log benchmarks/measured` tells which. New here:

- **Scenario**: a noise on half of the cases (`boundary`), on all of them with 8 trusted cases that
  no score counts (`boundary-all`), on half of them with one (`bias-one`), or on a twentieth
  (`drop-few`). `crowd`: every given label is one real annotator's outline, another annotator's
  from image to image.
- **lung**: one nodule each of 160 patients, because every line sees all cases; all 806 nodules are
  in [results.md](results.md).
- **E, worst**: E of the case that fares worst. **Harm, worst**: of one class of one case.
- **Seeds**: E of each seed by itself; other columns take all seeds together, by patient.
- **s**: wall seconds of a run without its training; **training**: of the networks, which the lines
  of one family share and so pay for once. Two workers on 2 cores.
- **Wins**: patients are dealt to two halves by a hash of their id. The line with the largest E on
  one half, among those that keep clean cases at a Dice of .99 (worst .95) there, wins; its figures
  are from the other half, of the seeds that all defaults were run with. Baselines, lines that are
  told the share of noisy cases, and lines that lost a case cannot win. Of lines that tie, as
  defaults that decide alike from the same networks (`uncertainty`, `confident`), the one listed
  first is named.
- The default policy was developed on hippocampus: its rules for two ways of drawing and for
  forgotten structures were set after looking at `bias` and `drop` there, its thresholds for noisy
  groups after `boundary`, `polygon` and `markov`; how it finds the archive's centre, after
  `boundary` on phantoms too; what counts as rough, and how outlines are blended, after `markov`
  and `polygon` on both; how clearly one of two ways of drawing must fit worse, after Co-Seg had
  moved the right half of `bias` on hippocampus; that objects far from the label have no offset,
  after `crowd`; how well a moved outline must fit, after `bias-one`; that networks which have
  learnt no more than half of the classes replace nothing, after `swap`. Read those as a fit.
- Lines named `-published` are the papers' own rules, run with the first seed only, and
  `spatial-shift` moves all cases alike, without a network; all others decide by the default rule.
"""
HEAD = (
    "| line | Dice given | after | E (95 %) | seeds | E, worst | NSD | worse | precision | harm "
    "| worst | clean: mean | worst | > .01 | s | training |\n|" + "---|" * 16
)
WIN_HEAD = (
    "| data | scenario | wins | E (95 %) | aim | Dice given | after | clean: mean | worst | > .01 "
    "| second |\n|" + "---|" * 11
)
KEEPS = 0.995
"""What a default is to keep of labels without noise."""
SLACK = 0.005
"""A loss of E up to this is none."""


def page(cells: Sequence[Cell], held_out: Sequence[Cell] = ()) -> str:
    """Return the page from all cells there are."""
    grid = [data for data in DATA if any(cell["data"] == data for cell in cells)]
    parts = [INTRO, _winners(cells), _bounds(cells), _ranking(cells)]
    for data in grid:
        for name in DATA[data].scenarios:
            mine = cells_of(cells, data, name)
            if pooled(mine):
                parts.append(_scenario(data, name, mine))
    parts += [held_out_section(held_out), published_section(cells, held_out)]
    parts += [_open_ends(cells, held_out), _times(cells)]
    return "\n".join(part for part in parts if part)


def cells_of(cells: Iterable[Cell], data: str, scenario: str) -> list[Cell]:
    """Return the cells of one scenario, those that failed too."""
    return [c for c in cells if c["data"] == data and c["scenario"] == scenario]


def _winners(cells: Sequence[Cell]) -> str:
    lines = []
    for data, settings in DATA.items():
        for name in settings.scenarios:
            mine = [] if SCENARIOS[name].ranks_only else cells_of(cells, data, name)
            if any(cell["noisy"] for found in pooled(mine).values() for cell in found):
                lines.append(_winner_line(data, name, mine))
    body = "\n".join([WIN_HEAD, *lines]) if lines else "No cell has been run."
    return f"## Which method wins\n\n{body}\n"


def _winner_line(data: str, name: str, cells: Sequence[Cell]) -> str:
    aim, standings = AIMS.get((data, name)), ranked(cells)
    if not standings:
        none = f"none of {methods_run(cells)}"
        return f"| {data} | {name} | {none} | - | {_aim(aim, None)} | - | - | - | - | - | - |"
    best = standings[0]
    second = f"{standings[1].line} {standings[1].error.value:.2f}" if standings[1:] else "-"
    columns = [
        data,
        name,
        f"**{best.line}**",
        _interval(best.error),
        _aim(aim, best.error.value),
        told(best.before),
        told(best.after),
        told(best.clean.mean, ".4f"),
        told(best.clean.worst),
        told(best.clean.share_losing, ".1%"),
        second,
    ]
    return "| " + " | ".join(columns) + " |"


def methods_run(cells: Iterable[Cell]) -> int:
    """Return how many lines of methods were run."""
    return len(set(pooled(cells)) - set(BASELINES))


def _aim(aim: float | None, reached: float | None) -> str:
    if aim is None:
        return "-"
    met = reached is not None and reached >= aim
    return f"{aim:.2f}, {'met' if met else 'not met'}"


def _bounds(cells: Sequence[Cell]) -> str:
    """Say where a default does harm: to labels without noise, or on any noise."""
    harmed, worse = [], []
    ran = edited = met_clean = met_noisy = met_worse = 0
    for data, settings in DATA.items():
        for name in settings.scenarios:
            for line, mine in pooled(cells_of(cells, data, name)).items():
                if not is_default(line):
                    continue
                noisy, clean = split(mine)
                ran += 1
                edited += any(row["change"]["dice_to_given"] < 1 for row in [*noisy, *clean])
                met_clean += bool(clean)
                met_noisy += bool(noisy)
                met_worse += bool(noisy) and share_worse(noisy) > 0
                kept = clean_cases(clean)
                floor = KEEPS if name == "none" else 0.99
                if clean and (kept.mean < floor or kept.worst < 0.95 or kept.share_losing > 0.02):
                    harmed.append(
                        f"- {data}, {name}, {line}: mean {kept.mean:.4f}, worst {kept.worst:.3f}, "
                        f"{kept.share_losing:.1%} lose more than .01"
                    )
                error = error_removed_of(noisy)
                if noisy and error.value < -SLACK:
                    worse.append(f"- {data}, {name}, {line}: E {_interval(error)}")
    if not ran:
        return ""
    return (
        "## Do no harm\n\n"
        f"Of {ran} lines of defaults in all tables below, {edited} changed a voxel. {met_clean} "
        f"met clean cases, and {met_clean - len(harmed)} of these keep them at a mean Dice of .99 "
        "(.995 where no case is noisy), the worst at .95, while no more than 2 % lose more than "
        f".01. {met_noisy} met noisy cases, and for {met_noisy - len(worse)} of these E is not "
        f"below 0; {met_worse} of them left some noisy case worse than it was (column *worse*)."
        + _list("\n\nClean cases harmed:\n\n", harmed)
        + _list("\n\nWorse than doing nothing:\n\n", worse)
        + "\n"
    )


def _list(head: str, lines: Sequence[str]) -> str:
    return head + "\n".join(lines) if lines else ""


def _scenario(data: str, name: str, cells: Sequence[Cell]) -> str:
    found = pooled(cells)
    about = "; ".join(_counts(seed, found) for seed in _seeds(found))
    lines = names(SCENARIOS[name], data, DATA[data].seeds[0])
    order = [line for line in lines if line in found]
    parts = [
        f"## {data}, {name}",
        "",
        f"{about}. {_sentence(found, cells)}",
        "",
        HEAD,
        *(_line(line, found[line]) for line in order),
        "",
    ]
    return "\n".join(parts)


def _seeds(found: Mapping[str, Sequence[Cell]]) -> list[int]:
    return sorted({cell["seed"] for mine in found.values() for cell in mine})


def _counts(seed: int, found: Mapping[str, Sequence[Cell]]) -> str:
    """Say how many cases a seed has, and how many lines were run with it."""
    mine = [cell for cells in found.values() for cell in cells if cell["seed"] == seed]
    cases = len({row["case"] for row in mine[0]["rows"]})
    run = methods_run(mine)
    return f"Seed {seed}: {cases} cases, {len(mine[0]['noisy'])} of them noisy, {run} lines"


def _sentence(found: Mapping[str, Sequence[Cell]], cells: Sequence[Cell]) -> str:
    if not any(cell["noisy"] for mine in found.values() for cell in mine):
        kept = {n: clean_cases(split(m)[1]).mean for n, m in found.items() if n not in BASELINES}
        lower = [f"{line} ({mean:.4f})" for line, mean in kept.items() if mean < KEEPS]
        said = f"below it: {', '.join(lower)}" if lower else "none is below"
        count = len(kept) - len(lower)
        return f"{count} of {len(kept)} lines keep a mean Dice of {KEEPS} to the labels; {said}."
    if SCENARIOS[cells[0]["scenario"]].ranks_only:
        return "Only lines that may rank; see [Ranking](#ranking)."
    standings = ranked(cells)
    if not standings:
        return "No line removes error without harm to clean cases."
    best = standings[0]
    text = f"**{best.line} wins**: E {_interval(best.error)} on the patients that did not choose it"
    if best.clean.cases:
        text += (
            f", clean cases kept at {best.clean.mean:.4f} (worst {best.clean.worst:.3f}, "
            f"{best.clean.share_losing:.1%} lose more than .01)"
        )
    if standings[1:]:
        text += f"; second: {standings[1].line}, {standings[1].error.value:.2f}"
    return f"{text}.{_against_majority(found, best)}"


def _against_majority(found: Mapping[str, Sequence[Cell]], best: Standing) -> str:
    if "majority" not in found:
        return ""
    rows = [row for row in split(found["majority"])[0] if not chooses(row["patient"])]
    return (
        f" On the same patients the majority of seven annotators has Dice {dice(rows):.3f}, one "
        f"annotator {best.before:.3f}, and one annotator cleaned {best.after:.3f}."
    )


def _line(line: str, cells: Sequence[Cell]) -> str:
    noisy, clean = split(cells)
    harm_mean, harm_worst = harm([*noisy, *clean])
    kept = clean_cases(clean)
    columns = [
        line,
        *_noisy_columns(noisy, cells),
        told(harm_mean),
        told(harm_worst),
        told(kept.mean, ".4f"),
        told(kept.worst),
        told(kept.share_losing, ".1%"),
        told(_mean(cells, "wall_s"), ".0f"),
        told(_mean(cells, "train_s"), ".0f"),
    ]
    return "| " + " | ".join(columns) + " |"


def _noisy_columns(rows: Sequence[Mapping[str, Any]], cells: Sequence[Cell]) -> list[str]:
    if not rows:
        return ["-"] * 8
    each = [error_removed_of(split([cell])[0]).value for cell in cells]
    return [
        told(dice(rows, given=True)),
        told(dice(rows)),
        _interval(error_removed_of(rows)),
        ", ".join(told(value, ".2f") for value in each),
        told(worst_error_removed(rows), ".2f"),
        told(float(np.mean([row["nsd"] for row in rows]))),
        told(share_worse(rows), ".0%"),
        told(precision(rows), ".2f"),
    ]


def _interval(found: Interval) -> str:
    if np.isnan(found.value):
        return "-"
    return f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"


def _mean(cells: Sequence[Cell], name: str) -> float:
    values = [cell[name] for cell in cells if cell.get(name) is not None]
    return float(np.mean(values)) if values else float("nan")


def _ranking(cells: Sequence[Cell]) -> str:
    """Say how well methods find the noisy cases, whether or not they edit them."""
    lines = []
    for data, settings in DATA.items():
        for name in settings.scenarios:
            for line, mine in pooled(cells_of(cells, data, name)).items():
                scores = rank_scores(mine)
                if scores and line in (*RANKING, "uncertainty"):
                    area, share = scores
                    lines.append(f"| {data} | {name} | {line} | {area:.3f} | {share:.0%} |")
    if not lines:
        return ""
    head = "| data | scenario | line | AUC | in the worst tenth |\n|---|---|---|---|---|"
    text = (
        "How cases are ranked by those methods that may rank instead of edit, and by the default "
        "of `uncertainty`. AUC: chance that a noisy case ranks before a clean one. In the worst "
        "tenth: noisy cases among the tenth of the cases ranked first, over as many as could be "
        "there."
    )
    return "\n".join(["## Ranking", "", text, "", head, *lines, ""])


def rank_scores(cells: Sequence[Cell]) -> tuple[float, float] | None:
    """Return AUC and share in the worst tenth, means over the cells; None where none can tell."""
    ranks = [(c["ranks"], c["noisy"]) for c in cells if c.get("ranks")]
    ranks = [(r, n) for r, n in ranks if 0 < len(set(r) & set(n)) < len(r)]
    if not ranks:
        return None
    area, share = np.mean([(auc(*r), found_in_worst_tenth(*r)) for r in ranks], 0)
    return float(area), float(share)


def auc(suspicion: Mapping[str, float], noisy: Sequence[str]) -> float:
    """Return the chance that a noisy case has more suspicion than a clean one; ties count half."""
    wrong = np.array([value for case, value in suspicion.items() if case in set(noisy)])
    right = np.array([value for case, value in suspicion.items() if case not in set(noisy)])
    above = wrong[:, None] > right[None]
    equal = wrong[:, None] == right[None]
    return float((above + 0.5 * equal).mean())


def found_in_worst_tenth(suspicion: Mapping[str, float], noisy: Sequence[str]) -> float:
    """Return the noisy share of the worst tenth, over the largest that it could be.

    Where ties cross the cut, the mean over all ways to break them.
    """
    wrong = set(noisy) & set(suspicion)
    places = int(np.ceil(len(suspicion) / 10))
    cut = sorted(suspicion.values(), reverse=True)[places - 1]
    above = [case for case, value in suspicion.items() if value > cut]
    tied = [case for case, value in suspicion.items() if value == cut]
    from_ties = (places - len(above)) * len(wrong & set(tied)) / len(tied)
    return (len(wrong & set(above)) + from_ties) / min(len(wrong), places)


def _open_ends(cells: Sequence[Cell], held_out: Sequence[Cell]) -> str:
    """List what failed and what has not been run."""
    failed = [
        f"- {c['data']}, {c['scenario']}, {c['line']}, seed {c['seed']}: {_fault(c)}"
        for c in [*cells, *held_out]
        if _fault(c)
    ]
    missing = [line for data in DATA for line in _missing(data, cells)]
    missing += unfinished(held_out, cells)
    parts = []
    if failed:
        parts += ["## Failed", "", *failed, ""]
    if missing:
        parts += ["## Not run", "", *missing, ""]
    return "\n".join(parts)


def _fault(cell: Cell) -> str:
    """Say what is wrong with a cell; empty where nothing is."""
    lost = cell.get("failed_cases")
    return cell.get("failed") or (f"{lost} cases failed and do not count" if lost else "")


def _missing(data: str, cells: Sequence[Cell]) -> list[str]:
    """Return what has not been run of one data set, a line per scenario; whole scenarios in one."""
    there = {(c["scenario"], c["line"], c["seed"]) for c in cells if c["data"] == data}
    seeds, whole, parts = DATA[data].seeds, [], []
    for name in DATA[data].scenarios:
        wanted = {s: names(SCENARIOS[name], data, s) for s in seeds}
        lacking = {
            line: [s for s in seeds if line in wanted[s] and (name, line, s) not in there]
            for line in wanted[seeds[0]]
        }
        if not any(scenario == name for scenario, _, _ in there):
            whole.append(name)
        elif any(lacking.values()):
            begun = {line for scenario, line, _ in there if scenario == name}
            words = [
                f"{line} (seed {_and(map(str, found))})" if line in begun else line
                for line, found in lacking.items()
                if found
            ]
            parts.append(f"- {data}, {name}: {', '.join(words)}")
    return ([f"- {data}: {', '.join(whole)}"] if whole else []) + parts


def _and(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def _times(cells: Sequence[Cell]) -> str:
    lines = []
    for data in DATA:
        mine = [c for c in cells if c["data"] == data and "rows" in c]
        # Lines of one family, and scenarios of one archive, tell the same training: it counts once.
        trained = {
            (SCENARIOS[c["scenario"]].place, c["seed"], METHODS[c["line"]].family): c["train_s"]
            for c in mine
            if c.get("train_s") is not None and c["line"] in METHODS
        }
        if mine:
            alone, training = sum(c["wall_s"] for c in mine), sum(trained.values())
            lines.append(
                f"| {data} | {len(mine)} | {alone / 60:.0f} | {training / 60:.0f} "
                f"| {(alone + training) / 60:.0f} |"
            )
    if not lines:
        return ""
    head = "| data | cells | runs, min | training, min | together |\n|---|---|---|---|---|"
    return "\n".join(["## Times", "", head, *lines, ""])
