"""The scores of an archive as rows of a table, and back, to the bit.

One row per case and class, class 0 for the foreground as a whole, for given labels and for trusted
ones. What a policy read stays with the run, so that it can be asked again with other thresholds,
without a network and without a voxel.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from raysegclean.evidence.case_scores import FOREGROUND, CaseScore, ClassScore, Kind

__all__ = ["evidence_rows", "scores_of"]

_PLAIN = tuple(item.name for item in fields(ClassScore) if item.name != "candidates")


def evidence_rows(
    scores: Iterable[CaseScore], trusted: Iterable[CaseScore]
) -> list[dict[str, Any]]:
    """Return the scores of given and of trusted labels as plain rows."""
    return [
        {"label": label, "case": score.case, "fold": score.fold, "class": key} | _plain(one)
        for label, part in (("given", scores), ("trusted", trusted))
        for score in part
        for key, one in {FOREGROUND: score.foreground, **score.classes}.items()
    ]


def _plain(score: ClassScore) -> dict[str, Any]:
    counts = {kind.value: score.candidates.get(kind) for kind in Kind}
    return {name: getattr(score, name) for name in _PLAIN} | {
        kind: None if one is None else one.tolist() for kind, one in counts.items()
    }


def scores_of(rows: Sequence[Mapping[str, Any]], label: str = "given") -> list[CaseScore]:
    """Return the scores of the `given` or the `trusted` labels, in the order of the rows."""
    classes: dict[str, dict[int, ClassScore]] = {}
    folds: dict[str, int] = {}
    for row in rows:
        if row["label"] == label:
            folds[row["case"]] = row["fold"]
            classes.setdefault(row["case"], {})[row["class"]] = _score(row)
    return [
        CaseScore(case, mine.pop(FOREGROUND), mine, folds[case]) for case, mine in classes.items()
    ]


def _score(row: Mapping[str, Any]) -> ClassScore:
    plain: dict[str, Any] = {name: row[name] for name in _PLAIN}
    counts = {kind: row[kind.value] for kind in Kind if row[kind.value] is not None}
    return ClassScore(**plain, candidates={k: np.asarray(v, np.int64) for k, v in counts.items()})
