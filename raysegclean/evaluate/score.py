"""Scores of one label of an archive against another, per case and class.

The measures are those of `evaluate.metrics`; this module only reads, in parallel, and puts them
into rows that are plain JSON. With the given label at hand the rows also say what the cleaning did.
Memory is that of the labels of two cases.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from raysegclean.errors import CaseError
from raysegclean.evaluate.metrics import Changes, changes, dice
from raysegclean.evaluate.reference import TruthScore, truth_scores
from raysegclean.store.archive import Archive
from raysegclean.store.each import for_each_case
from raysegclean.voxels.boxes import IntLabel
from raysegclean.voxels.surface import Spacing

__all__ = [
    "ChangeScore",
    "ClassSummary",
    "ScoreReport",
    "ScoreRow",
    "score_archive",
    "score_labels",
    "summarise",
]


@dataclass(frozen=True)
class ChangeScore:
    """What a cleaning did to one class of one case (definitions: `evaluate.metrics`)."""

    dice_given: float
    """Dice of the given label to the truth."""
    dice_to_given: float
    """Dice of the output to the given label: 1 where nothing changed."""
    fixed: int
    harmed: int
    extent: int
    harm: float | None
    """None where the class was invented."""
    precision: float | None
    """Share of the changed voxels that became right; None where nothing changed."""


@dataclass(frozen=True)
class ScoreRow:
    """One class of one case."""

    case: str
    patient: str | None
    label_value: int
    label_voxels: int
    truth_voxels: int
    dice: float
    hd95_mm: float | None
    """None where the class is in one of the two labels only."""
    nsd: float
    """Normalised surface Dice at one voxel."""
    change: ChangeScore | None = None


@dataclass(frozen=True)
class ClassSummary:
    """One class over cases; means over cases that have it in label or truth."""

    label_value: int
    cases: int
    dice: float
    hd95_mm: float | None
    hd95_missing: int
    """Cases left out of `hd95_mm`: class in one of the two labels only."""
    nsd: float


@dataclass(frozen=True)
class ScoreReport:
    """Means per class, rows of all cases, and an error for each case that cannot be scored."""

    label: str
    truth: str
    classes: tuple[ClassSummary, ...]
    rows: tuple[ScoreRow, ...]
    failed: tuple[CaseError, ...]

    @property
    def exit_code(self) -> int:
        """1 when some cases cannot be scored, 2 when there is no score at all because of that."""
        return (1 if self.rows else 2) if self.failed else 0

    def as_json(self) -> str:
        """Return everything, with the summary per class, as JSON."""
        document = {
            "label": self.label,
            "truth": self.truth,
            "classes": [asdict(one) for one in self.classes],
            "rows": [asdict(row) for row in self.rows],
            "failed": [{"case": fault.case, "reason": fault.reason} for fault in self.failed],
        }
        return json.dumps(document, indent=2, allow_nan=False)


def score_archive(
    archive: Archive,
    label: str,
    truth: str,
    *,
    given: str | None = None,
    cases: Iterable[str] | None = None,
    classes: Sequence[int] | None = None,
) -> ScoreReport:
    """Score `label` against `truth` in all cases (default), for every class in either of them.

    With `given`, the label before cleaning, rows tell harm and precision too. Cases that lack a
    label, or have one that was not published, are reported, not raised. Raises InputError when
    there is no case at all.
    """
    names = archive.wanted_cases(cases)

    def one(case: str) -> list[ScoreRow]:
        voxels = [
            archive.published_label(case, name).read_all()
            for name in (label, truth, given)
            if name is not None
        ]
        _check_shapes(case, voxels)
        patient = archive.attributes(case).get("patient")
        before = voxels[2] if given is not None else None
        return score_labels(
            voxels[0],
            voxels[1],
            archive.spacing_mm(case),
            case=case,
            patient=patient,
            given_zyx=before,
            classes=classes,
        )

    done, failed = for_each_case(names, one)
    rows = tuple(row for found in done.values() for row in found)
    return ScoreReport(label, truth, tuple(summarise(rows)), rows, failed)


def score_labels(
    label_zyx: IntLabel,
    truth_zyx: IntLabel,
    spacing_mm: Spacing,
    *,
    case: str = "",
    patient: str | None = None,
    given_zyx: IntLabel | None = None,
    classes: Sequence[int] | None = None,
) -> list[ScoreRow]:
    """Return the rows of one case; pure. Arrays z, y, x of one shape, else InputError."""
    if classes is None and given_zyx is not None:
        present = (np.unique(array) for array in (label_zyx, truth_zyx, given_zyx))
        classes = sorted({int(value) for values in present for value in values} - {0})
    scores = truth_scores(label_zyx, truth_zyx, spacing_mm, classes=classes)
    done: dict[int, ChangeScore] = {}
    if given_zyx is not None:
        done = _change_scores(given_zyx, label_zyx, truth_zyx, [one.label_value for one in scores])
    return [_row(case, patient, score, done.get(score.label_value)) for score in scores]


def summarise(rows: Iterable[ScoreRow]) -> list[ClassSummary]:
    """Return the means over cases per class, sorted by class."""
    by_class: dict[int, list[ScoreRow]] = {}
    for row in rows:
        if row.label_voxels or row.truth_voxels:
            by_class.setdefault(row.label_value, []).append(row)
    return [_summary(value, by_class[value]) for value in sorted(by_class)]


def _summary(value: int, rows: list[ScoreRow]) -> ClassSummary:
    known = [row.hd95_mm for row in rows if row.hd95_mm is not None]
    return ClassSummary(
        label_value=value,
        cases=len(rows),
        dice=math.fsum(row.dice for row in rows) / len(rows),
        hd95_mm=math.fsum(known) / len(known) if known else None,
        hd95_missing=len(rows) - len(known),
        nsd=math.fsum(row.nsd for row in rows) / len(rows),
    )


def _change_scores(
    given_zyx: IntLabel, output_zyx: IntLabel, truth_zyx: IntLabel, classes: Sequence[int]
) -> dict[int, ChangeScore]:
    before = dice(given_zyx, truth_zyx, classes)
    kept = dice(output_zyx, given_zyx, classes)
    counts = changes(given_zyx, output_zyx, truth_zyx, classes)
    return {value: _change(before[value], kept[value], counts[value]) for value in classes}


def _change(dice_given: float, dice_to_given: float, counts: Changes) -> ChangeScore:
    return ChangeScore(
        dice_given=dice_given,
        dice_to_given=dice_to_given,
        **asdict(counts),
        harm=_finite(counts.harm),
        precision=_finite(counts.precision),
    )


def _row(case: str, patient: str | None, score: TruthScore, change: ChangeScore | None) -> ScoreRow:
    values: dict[str, Any] = asdict(score) | {"hd95_mm": _finite(score.hd95_mm)}
    return ScoreRow(case=case, patient=patient, **values, change=change)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _check_shapes(case: str, voxels: Sequence[IntLabel]) -> None:
    shapes = {array.shape for array in voxels}
    if len(shapes) > 1:
        raise CaseError(
            case, f"its labels have different shapes {sorted(shapes)}. Resample them to one grid."
        )
