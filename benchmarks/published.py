"""Two sections of the scoreboard: networks on held-out patients, and the papers' settings."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from bootstrap import difference, paired_bootstrap
from grid import HELD_OUT, PUBLISHED, Repeat
from measures import dice, per_case, told
from winners import Cell, pooled, split

__all__ = ["held_out_section", "published_section", "unfinished"]

LABELS = {
    "given": "the given labels",
    "truth": "the true labels",
}


def held_out_section(cells: Sequence[Cell]) -> str:
    """Return the tables of networks trained on cleaned labels; empty where there is no cell."""
    parts = []
    for data, scenario in HELD_OUT:
        mine = _by_line(cells, data, scenario)
        if mine:
            parts += [f"### {data}, {scenario}", "", *_held_out_table(mine), ""]
    if not parts:
        return ""
    head = (
        "## Networks trained on cleaned labels\n\n"
        "One network is trained on the labels of one half of the patients, as the lines that were "
        "the best three (by those patients) when this was run cleaned them, and judged by the true "
        "labels of the other half, which it never saw. Beside it: the same network trained on the "
        "given and on the true labels. The difference to the given labels has a 95 % paired "
        "bootstrap interval by patient; what another training on the same labels would give is not "
        "in it. Lung nodules are barely learnt by networks of this size: those trained on true "
        "labels of other cases differ by more than lines do (here and in the next part), so their "
        "rows tell nothing finer. Made by `python benchmarks/methods.py --heldout`.\n"
    )
    return "\n".join([head, *parts])


def _by_line(cells: Iterable[Cell], data: str, scenario: str) -> dict[str, Cell]:
    return {
        cell["line"]: cell
        for cell in cells
        if cell["data"] == data and cell["scenario"] == scenario and "rows" in cell
    }


def _held_out_table(cells: Mapping[str, Cell]) -> list[str]:
    order = ["given", *(n for n in cells if n not in LABELS), "truth"]
    lines = ["| trained on labels | Dice, held out | difference to given (95 %) |", "|---|---|---|"]
    for line in (name for name in order if name in cells):
        rows = cells[line]["rows"]
        against = _gain(cells["given"], cells[line]) if "given" in cells else "-"
        lines.append(f"| {_what(line)} | {told(_network_dice(rows))} | {against} |")
    return lines


def _what(line: str) -> str:
    return LABELS.get(line, f"cleaned by {line}")


def _network_dice(rows: Sequence[Mapping[str, object]]) -> float:
    return float(np.mean(list(per_case(rows, lambda row: row["dice"]).values())))


def _gain(given: Cell, cell: Cell) -> str:
    before, after = (per_case(one["rows"], lambda row: row["dice"]) for one in (given, cell))
    patients = {row["case"]: row["patient"] or row["case"] for row in cell["rows"]}
    cases = sorted(set(before) & set(after))
    found = paired_bootstrap(
        [before[case] for case in cases],
        [after[case] for case in cases],
        [patients[case] for case in cases],
        statistic=difference,
    )
    return f"{found.value:+.3f} ({found.low:+.3f} to {found.high:+.3f})"


def published_section(cells: Sequence[Cell], held_out: Sequence[Cell]) -> str:
    """Return the papers' settings as far as they were repeated; empty where none was."""
    parts = []
    for repeat in PUBLISHED:
        by_network = repeat.held_out
        table = _network_table(repeat, held_out) if by_network else _label_table(repeat, cells)
        if len(table) > 2:
            parts += [f"### {repeat.title}, on {repeat.data}", "", repeat.paper, "", *table, ""]
    if not parts:
        return ""
    head = (
        "## Published settings, in shape\n\n"
        "The papers' data is not at hand, so their settings are repeated on other data, and what "
        "can be compared is the shape of a row, not its figures. Made by "
        "`python benchmarks/methods.py --published`.\n"
    )
    return "\n".join([head, *parts])


def _network_table(repeat: Repeat, held_out: Sequence[Cell]) -> list[str]:
    """Return the Dice of held-out networks, a scenario a column."""
    columns = [_by_line(held_out, repeat.data, name) for name in repeat.scenarios]
    lines = [
        f"| network trained on | {' | '.join(repeat.scenarios)} |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for line in repeat.lines:
        if any(line in column for column in columns):
            figures = [_network_dice(c[line]["rows"]) if line in c else np.nan for c in columns]
            lines.append(f"| {_what(line)} | {' | '.join(told(f) for f in figures)} |")
    return lines


def unfinished(held_out: Sequence[Cell], cells: Sequence[Cell]) -> list[str]:
    """Return which held-out networks and published settings have not been run, a line each."""
    found = [
        f"- networks on held-out patients: {data}, {scenario}"
        for data, scenario in HELD_OUT
        if not _by_line(held_out, data, scenario)
    ]
    for repeat in PUBLISHED:
        there = held_out if repeat.held_out else cells
        lacking = []
        for scenario in repeat.scenarios:
            have = _by_line(there, repeat.data, scenario)
            if lines := [line for line in repeat.lines if line not in have]:
                lacking.append(f"{scenario} ({', '.join(lines)})")
        if lacking:
            found.append(f"- {repeat.title}, on {repeat.data}: {', '.join(lacking)}")
    return found


def _label_table(repeat: Repeat, cells: Sequence[Cell]) -> list[str]:
    """Return the Dice of labels, overall and per class, a scenario and line a row."""
    lines = ["| scenario | line | Dice of the labels | per class |", "|---|---|---|---|"]
    for name in repeat.scenarios:
        mine = [c for c in cells if c["data"] == repeat.data and c["scenario"] == name]
        for line in repeat.lines:
            if line in (found := pooled(mine)):
                rows, _ = split(found[line])
                classes = sorted({row["label_value"] for row in rows})
                each = [dice([r for r in rows if r["label_value"] == v]) for v in classes]
                shown = ", ".join(told(value) for value in each)
                lines.append(f"| {name} | {line} | {told(dice(rows))} | {shown} |")
    return lines
