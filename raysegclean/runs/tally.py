"""What became of the cases of a run and of their classes: rows of cases.parquet, counted."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["STATES", "Tally", "states_of", "tally"]

STATES = ("kept", "changed", "review", "not judged")
SHOWN = 10

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Tally:
    """How many cases, and classes of cases, are in each of `STATES`, or in two (`states_of`)."""

    cases: Mapping[str, int]
    classes: Mapping[str, int]
    look_at: tuple[str, ...]
    """Of at most `SHOWN` cases in review the worst class and why, the worst label first."""


def states_of(rows: Iterable[Row]) -> set[str]:
    """Return what became of one class of one case, or of all classes of one case.

    Changed and in review, where anything is, and both where both is; else kept, where anything was
    judged and found right; else not judged.
    """
    rows = list(rows)
    found = {
        "changed": any(row["changed_vox"] for row in rows),
        "review": any(row["action"] == "review" for row in rows),
    }
    if any(found.values()):
        return {state for state, is_so in found.items() if is_so}
    return {"not judged" if all(row["action"] == "not judged" for row in rows) else "kept"}


def tally(rows: Sequence[Row]) -> Tally:
    """Count the rows of cases.parquet."""
    by_case: dict[str, list[Row]] = {}
    for row in rows:
        by_case.setdefault(row["case"], []).append(row)
    return Tally(
        cases=_counted(by_case.values()),
        classes=_counted([row] for row in rows),
        look_at=tuple(_look_at([row for row in rows if row["action"] == "review"])),
    )


def _counted(groups: Iterable[Sequence[Row]]) -> dict[str, int]:
    counts = Counter(state for rows in groups for state in states_of(rows))
    return {state: counts[state] for state in STATES}


def _look_at(rows: Sequence[Row]) -> Iterable[str]:
    # By one line a case: its other classes are found beside it.
    first: dict[str, Row] = {}
    for row in sorted(rows, key=_quality):
        first.setdefault(row["case"], row)
    for row in list(first.values())[:SHOWN]:
        called = f"{row['class']} {row.get('name', '')}".strip()
        yield f"{row['case']}, class {called}: {row['why']}"
    if len(first) > SHOWN:
        yield f"and {len(first) - SHOWN} more cases: action is review in cases.parquet"


def _quality(row: Row) -> float:
    """Return how good a given label is, for sorting; above all others where nothing is known."""
    known = row.get("quality")
    return 2.0 if known is None or known != known else known  # noqa: PLR0124  (NaN)
