"""The values that a policy decides on: the scores of each case and class.

What a policy read stays with the run as rows of a table, so that it can be asked again with other
thresholds, without a network and without a voxel.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from math import log
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "FOREGROUND",
    "NEVER",
    "CaseScore",
    "ClassScore",
    "Counts",
    "Kind",
    "classes_of",
    "evidence_rows",
    "of_key",
    "scores_of",
]

Counts = NDArray[np.int32 | np.int64]

NEVER = 1.0
"""A confidence that no candidate has, because levels end below it."""


class Kind(StrEnum):
    """How a candidate would change the label."""

    ADDED = "added"
    """Background becomes the class."""
    REMOVED = "removed"
    """The class becomes background."""
    SWAPPED = "swapped"
    """Another class becomes the class."""


@dataclass(frozen=True)
class ClassScore:
    """What the voters say about one class of one case, or about its whole foreground."""

    offset_vox: float
    """Mean offset of the given boundary outside the predicted one (`OffsetSums.mean_vox`)."""
    boundary_vox: int
    """Number of predicted boundary voxels, near the given label or not: the measure of size by
    which disagreements are divided."""
    nats: float
    """Sum of -log p(given label), p clipped at 1e-4; for the foreground, over all voxels."""
    union_vox: int
    """Voxels that are this class (this foreground) in the given label or in the prediction."""
    given_vox: int
    predicted_vox: int
    both_vox: int
    spread_vox: float = float("nan")
    """Standard deviation of the offset along the boundary; NaN where it was not measured."""
    roughness_vox: float = float("nan")
    """The part of it that changes from voxel to voxel (`OffsetSums.roughness_vox`)."""
    candidates: Mapping[Kind, Counts] = field(default_factory=dict)
    """Per kind of change, candidates by level of confidence: n counts, level i standing for
    confidences in [i / n, (i + 1) / n). Level 0 (no agreement of the voters) is not used. Without
    them the policy judges by offset and corruption score alone."""

    @property
    def log_corruption(self) -> float:
        """Log of the nats per voxel of the union; NaN where it is empty or perfect."""
        return log(self.nats / self.union_vox) if self.union_vox and self.nats > 0 else float("nan")

    @property
    def agreement(self) -> float:
        """Dice of the given label with the prediction; NaN when both are empty."""
        voxels = self.given_vox + self.predicted_vox
        return 2 * self.both_vox / voxels if voxels else float("nan")


@dataclass(frozen=True)
class CaseScore:
    """The scores of one case: of its foreground as a whole and of each class."""

    case: str
    foreground: ClassScore
    classes: Mapping[int, ClassScore]
    fold: int = 0
    """Which networks judged it: each fold's networks have a bias of their own."""


FOREGROUND = 0
"""Key of the foreground as a whole, beside the class values."""


def classes_of(scores: Iterable[CaseScore]) -> list[int]:
    """Return the classes that any case has a score of, ascending."""
    return sorted({value for score in scores for value in score.classes})


def of_key(scores: Sequence[CaseScore], key: int) -> list[ClassScore]:
    """Return each case's score of one class, or of the foreground; empty where it has none."""
    if key == FOREGROUND:
        return [s.foreground for s in scores]
    return [s.classes.get(key, _NOTHING) for s in scores]


_NOTHING = ClassScore(float("nan"), 0, 0.0, 0, 0, 0, 0)


_PLAIN = tuple(item.name for item in fields(ClassScore) if item.name != "candidates")


def evidence_rows(
    scores: Iterable[CaseScore], trusted: Iterable[CaseScore]
) -> list[dict[str, Any]]:
    """Return the scores of given and of trusted labels as plain rows, from which they come back.

    One row per case and class, class 0 for the foreground as a whole; nothing is lost, to the bit.
    """
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
