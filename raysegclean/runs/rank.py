"""Rank: the cases of a run by how good their given labels are, worst first."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raysegclean.errors import InputError
from raysegclean.render import as_text
from raysegclean.store.run import existing_run

__all__ = ["RankReport", "RankedCase", "rank"]

Row = Mapping[str, Any]


@dataclass(frozen=True)
class RankedCase:
    """One case; qualities are expected Dice of the given label to the truth (`policy.quality`)."""

    case: str
    quality: float
    """The mean of its classes; NaN where none was judged."""
    low: float
    high: float
    worst_class: int
    name: str
    worst_quality: float
    action: str
    """What was done with the worst class."""
    why: str


@dataclass(frozen=True)
class RankReport:
    """All cases of a run, the worst given label first; those that nothing is known of come last."""

    run: str
    cases: tuple[RankedCase, ...]

    def text(self) -> str:
        """Return the table."""
        return as_text(list(self.cases))


def rank(run_uri: str) -> RankReport:
    """Return the cases of a run that has judged, worst first; ties by name.

    Raises InputError for a run that has not come so far.
    """
    run = existing_run(run_uri)
    by_case: dict[str, list[Row]] = {}
    for row in run.read_table("cases.parquet"):
        by_case.setdefault(row["case"], []).append(row)
    if not by_case:
        raise InputError(f"{run.uri}: cases.parquet is missing; it is written once a run judged.")
    cases = [_ranked(case, rows) for case, rows in by_case.items()]
    return RankReport(run.uri, tuple(sorted(cases, key=lambda one: (_last(one.quality), one.case))))


def _ranked(case: str, rows: Sequence[Row]) -> RankedCase:
    worst = min(rows, key=lambda row: (_last(row["quality"]), row["class"]))
    return RankedCase(
        case=case,
        quality=_mean(row["quality"] for row in rows),
        low=_mean(row["quality_low"] for row in rows),
        high=_mean(row["quality_high"] for row in rows),
        worst_class=worst["class"],
        name=worst.get("name", ""),
        worst_quality=_number(worst["quality"]),
        action=worst["action"],
        why=worst["why"],
    )


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _last(value: float | None) -> float:
    return math.inf if value is None or math.isnan(value) else value


def _mean(values: Iterable[float | None]) -> float:
    known = [value for value in values if not math.isnan(_number(value)) and value is not None]
    return sum(known) / len(known) if known else float("nan")
