"""What became of each kind of error: the figures of a cleaned archive, case by case.

A case's Dice is the mean over the classes that the truth or the label has. E, error removed, is
1 - (sum of 1 - Dice after) / (sum of 1 - Dice given). Definitions: docs/results.md.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from raysegclean.evaluate.metrics import dice
from raysegclean.simulate.noisy_archive import load_simulated, truth_name
from raysegclean.store.archive import Archive

__all__ = ["CLEAN", "GROSS_DICE", "case_rows", "figures"]

CLEAN = "clean"
GROSS_DICE = 0.85
"""A gross error is repaired where the classes that it left below this have it, in the mean."""
WORSE = 0.001
GROSS = frozenset({"drop", "cut", "leak", "shift", "mirror", "swap", "merge", "another_case"})
"""Noises that nobody should publish without a word."""

Row = Mapping[str, Any]


def case_rows(
    archive: Archive, label: str, cleaned: str, table: Iterable[Row]
) -> list[dict[str, Any]]:
    """Return one row per case: its kind of error, its Dice, and what the run says of it.

    `table` is the run's `cases.parquet`: a row per case and class, with action and why.
    """
    told = load_simulated(archive)
    said: dict[str, list[Row]] = {}
    for row in table:
        said.setdefault(row["case"], []).append(row)
    rows = []
    for case in archive.case_ids():
        given, after, truth = (
            archive.label(case, name).read_all() for name in (label, cleaned, truth_name(label))
        )
        error, before, now = told.get(case, {}), dice(given, truth), dice(after, truth)
        hurt = {value: now.get(value, 1.0) for value, one in before.items() if one < GROSS_DICE}
        mine = said.get(case, [])
        rows.append(
            {
                "case": case,
                "kind": error.get("kind") or error.get("noise") or CLEAN,
                "gross": error.get("noise") in GROSS,
                "given": _mean(before),
                "after": _mean(now),
                "hurt_after": _mean(hurt),
                "kept": _mean(dice(after, given)),
                "actions": dict(Counter(row["action"] for row in mine)),
                "review": dict(Counter(row["why"] for row in mine if row["action"] == "review")),
            }
        )
    return rows


def figures(rows: Sequence[Row]) -> dict[str, Any]:
    """Return E over all wrong cases, what became of clean ones and of each kind of error."""
    wrong = [row for row in rows if row["kind"] != CLEAN]
    kept = [row["kept"] for row in rows if row["kind"] == CLEAN]
    kinds = sorted({row["kind"] for row in wrong})
    silent = [
        row["case"]
        for row in wrong
        if row["gross"] and row["hurt_after"] < GROSS_DICE and not row["review"]
    ]
    return {
        "error_removed": _error_removed(wrong),
        "wrong": len(wrong),
        "clean": len(kept),
        "clean_mean": _mean(dict(enumerate(kept))),
        "clean_worst": min(kept, default=1.0),
        "clean_in_review": sum(bool(r["review"]) for r in rows if r["kind"] == CLEAN),
        "gross": sum(row["gross"] for row in wrong),
        "gross_kept_silently": silent,
        "kinds": {kind: _of_kind([row for row in wrong if row["kind"] == kind]) for kind in kinds},
    }


def _of_kind(rows: Sequence[Row]) -> dict[str, Any]:
    why: Counter[str] = Counter()
    for row in rows:
        why.update(row["review"])
    return {
        "cases": len(rows),
        "given": float(np.mean([row["given"] for row in rows])),
        "after": float(np.mean([row["after"] for row in rows])),
        "worst_after": min(row["after"] for row in rows),
        "error_removed": _error_removed(rows),
        "worse": sum(row["after"] < row["given"] - WORSE for row in rows),
        "in_review": sum(bool(row["review"]) for row in rows),
        "review_because": dict(why.most_common(3)),
    }


def _error_removed(rows: Sequence[Row]) -> float:
    before = sum(1 - row["given"] for row in rows)
    return float(1 - sum(1 - row["after"] for row in rows) / before) if before else 1.0


def _mean(values: Mapping[int, float]) -> float:
    return float(np.mean([*values.values()])) if values else 1.0
