"""Scores of one label of an archive against another, per case and class.

The measures are those of `evaluate.metrics` and `voxels.surface`; this module only reads, in
parallel, and puts them into rows that are plain JSON. With the given label at hand the rows also
say what the cleaning did. Memory is that of the labels of two cases.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from raysegclean.errors import CaseError
from raysegclean.evaluate.metrics import changes, class_masks, dice, dice_of_masks
from raysegclean.store.archive import Archive
from raysegclean.store.each import for_each_case
from raysegclean.voxels.boxes import IntLabel
from raysegclean.voxels.surface import Spacing, surface_distances

__all__ = ["ScoreReport", "ScoreRow", "score_archive", "score_labels"]


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
    """Normalised surface Dice at a tolerance of one voxel along any axis."""
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
        return score_labels(
            voxels[0],
            voxels[1],
            archive.spacing_mm(case),
            case=case,
            patient=archive.attributes(case).get("patient"),
            given_zyx=voxels[2] if given is not None else None,
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
) -> list[ScoreRow]:
    """Return the rows of one case; pure. Arrays z, y, x of one shape, else InputError."""
    done: dict[int, ChangeScore] = {}
    if given_zyx is not None:
        done = _change_scores(given_zyx, label_zyx, truth_zyx)
    rows = []
    for value, label, truth in class_masks(label_zyx, truth_zyx, [*done] or None):
        hd95_mm, near = _surface_scores(label, truth, spacing_mm, flat=label_zyx.shape[0] == 1)
        rows.append(
            ScoreRow(
                case=case,
                patient=patient,
                label_value=value,
                label_voxels=int(np.count_nonzero(label)),
                truth_voxels=int(np.count_nonzero(truth)),
                dice=dice_of_masks(label, truth),
                hd95_mm=_finite(hd95_mm),
                nsd=near,
                change=done.get(value),
            )
        )
    return rows


def _surface_scores(
    label: NDArray[np.bool_], truth: NDArray[np.bool_], spacing_mm: Spacing, *, flat: bool
) -> tuple[float, float]:
    """Return HD95 in mm, and the surface Dice at a tolerance of one voxel along any axis."""
    in_mm = surface_distances(label, truth, spacing_mm, flat=flat)
    if len(set(spacing_mm)) == 1:  # then no other surface has to be built
        return in_mm.hausdorff(0.95), in_mm.overlap(spacing_mm[0])
    in_voxels = surface_distances(label, truth, (1.0, 1.0, 1.0), flat=flat)
    return in_mm.hausdorff(0.95), in_voxels.overlap(1.0)


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
    given_zyx: IntLabel, output_zyx: IntLabel, truth_zyx: IntLabel
) -> dict[int, ChangeScore]:
    """Return what the cleaning did, for every class in any of the three labels, sorted."""
    counts = changes(given_zyx, output_zyx, truth_zyx)
    before, kept = (dice(given_zyx, one, [*counts]) for one in (truth_zyx, output_zyx))
    return {
        value: ChangeScore(
            dice_given=before[value],
            dice_to_given=kept[value],
            **asdict(one),
            harm=_finite(one.harm),
            precision=_finite(one.precision),
        )
        for value, one in counts.items()
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
