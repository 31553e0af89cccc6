"""Which method wins a scenario, judged on patients that had no say in it.

Patients are dealt to two halves by a hash of their id. On the *choosing* half methods are ranked by
E, among those that leave clean cases alone; every figure of the winner is from the *judging* half.
Lines are compared on the seeds that all of them have been run with.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from bootstrap import Interval
from grid import AS_PUBLISHED, BASELINES, METHODS
from measures import CleanSummary, Row, clean_cases, dice, error_removed_of

__all__ = ["Cell", "Standing", "chooses", "pooled", "ranked", "split"]

Cell = Mapping[str, Any]

LEAST_MEAN, LEAST_WORST = 0.99, 0.95
"""Dice that clean cases must keep to their own given label, for a method to be chosen."""
LEAST_WIN = 0.005
"""E above which a method removes error; below it rounds to none."""


@dataclass(frozen=True)
class Standing:
    """What one method reaches on one half of the patients."""

    line: str
    error: Interval
    before: float
    after: float
    clean: CleanSummary

    @property
    def harmless(self) -> bool:
        """Whether clean cases, where there are any, are left alone."""
        kept = self.clean.mean >= LEAST_MEAN and self.clean.worst >= LEAST_WORST
        return self.clean.cases == 0 or kept


def chooses(patient: str) -> bool:
    """Return whether a patient belongs to the half on which the winner is chosen."""
    return blake2b(patient.encode(), digest_size=1).digest()[0] % 2 == 0


def split(cells: Iterable[Cell]) -> tuple[list[Row], list[Row]]:
    """Return the rows of noisy and of clean cases; a case of another seed is another case."""
    noisy: list[Row] = []
    clean: list[Row] = []
    for cell in cells:
        wrong = set(cell["noisy"])
        for row in cell["rows"]:
            named = {**row, "case": f"{row['case']}#{cell['seed']}"}
            (noisy if row["case"] in wrong else clean).append(named)
    return noisy, clean


def pooled(cells: Iterable[Cell]) -> dict[str, list[Cell]]:
    """Return the finished cells of each line, all seeds together."""
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        if "rows" in cell:
            found.setdefault(cell["line"], []).append(cell)
    return found


def ranked(cells: Iterable[Cell]) -> list[Standing]:
    """Return the methods that may win, best first by the choosing half, as the judging half is.

    Only methods that left clean cases alone and removed some error where they were chosen, that
    were told nothing a user does not know, and that lost no case; of those that tie, as defaults
    that decide alike, the one that the grid names first. Empty without noisy cases in both halves.
    """
    order = list(METHODS)
    found = []
    for line, mine in _comparable(cells).items():
        noisy, clean = split(mine)
        sides = [standing(line, noisy, clean, choosing=side) for side in (True, False)]
        if None not in sides and sides[0].harmless and sides[0].error.value > LEAST_WIN:
            place = order.index(line) if line in order else len(order)
            found.append((-round(sides[0].error.value, 6), place, line, sides[1]))
    return [judged for *_, judged in sorted(found, key=lambda one: one[:3])]


def _comparable(cells: Iterable[Cell]) -> dict[str, list[Cell]]:
    """Return the cells of the lines that may win, of the seeds that all defaults have.

    Published rules run with the first seed only, so they compete as long as the others do too.
    """
    found = {
        line: mine
        for line, mine in pooled(cells).items()
        if line not in BASELINES
        and not (line in METHODS and METHODS[line].knows_share)
        and not any(cell.get("failed_cases") for cell in mine)
    }
    have = {line: {cell["seed"] for cell in mine} for line, mine in found.items()}
    defaults = [seeds for line, seeds in have.items() if not line.endswith(AS_PUBLISHED)]
    shared = set.intersection(*(defaults or list(have.values()) or [set()]))
    return {
        line: [cell for cell in mine if cell["seed"] in shared]
        for line, mine in found.items()
        if shared and shared <= have[line]
    }


def standing(
    line: str, noisy: Sequence[Row], clean: Sequence[Row], *, choosing: bool
) -> Standing | None:
    """Return the figures of one half; None where it has no noisy case."""
    bad, good = ([r for r in rows if _side(r) == choosing] for rows in (noisy, clean))
    if not bad:
        return None
    return Standing(
        line=line,
        error=error_removed_of(bad),
        before=dice(bad, given=True),
        after=dice(bad),
        clean=clean_cases(good),
    )


def _side(row: Row) -> bool:
    return chooses(row["patient"] or row["case"].partition("#")[0])
