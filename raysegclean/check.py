"""Is this archive fit to be cleaned? Integrity and plausibility from the index alone, no network.

Reading the index opens every object that is new or changed, so a damaged shard, a NaN or a missing
label is found here. What is merely odd (a class that almost every other case has, a class ten times
as large as elsewhere, an unusual spacing) is listed as doubtful: people decide. Nothing is written
but the index.

Not found here: errors that look plausible. Those are what cleaning is for.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from raysegclean.core.cases import CaseInfo
from raysegclean.errors import CaseError, InputError
from raysegclean.store.archive import Archive
from raysegclean.store.index import load_index

__all__ = ["CheckReport", "ClassFacts", "Doubt", "check", "doubts"]

USUAL_SHARE = 0.9
"""A class in at least this share of the cases is expected in all."""
ODD_FACTOR = 10.0
"""A volume or a spacing this many times above or below the median is doubtful."""
MIN_CASES = 5
"""With fewer cases nothing is usual, so nothing is odd."""


@dataclass(frozen=True)
class ClassFacts:
    """One value of the label over all usable cases; volumes in millilitres, where it is present."""

    value: int
    cases: int
    median_ml: float
    smallest_ml: float
    largest_ml: float


@dataclass(frozen=True)
class Doubt:
    """Something odd about one case that a person should look at."""

    case: str
    about: str


@dataclass(frozen=True)
class CheckReport:
    """What is in the archive, what cannot be used, and what is odd."""

    archive: str
    label: str
    cases: int
    patients: int
    """Known patients; 0 when no case names one, and then crossfit needs `group: case`."""
    classes: tuple[ClassFacts, ...]
    doubtful: tuple[Doubt, ...]
    failed: tuple[CaseError, ...]

    @property
    def exit_code(self) -> int:
        """0 when every case can be used, 1 when some cannot, 2 when none can."""
        if not self.cases:
            return 2
        return 1 if self.failed else 0


def check(archive_uri: str, label: str) -> CheckReport:
    """Return what is in the archive; raises InputError when it holds no case at all."""
    index = load_index(Archive.open(archive_uri), require_label=label)
    if not index.cases and not index.failed:
        raise InputError(
            f"archive {archive_uri}: no case found, expected <case>.ome.zarr in it. "
            "Make one with `raysegclean ingest`, or mend the path."
        )
    return CheckReport(
        archive=archive_uri,
        label=label,
        cases=len(index.cases),
        patients=len({info.patient for info in index.cases} - {None}),
        classes=tuple(_class_facts(index.cases, label)),
        doubtful=tuple(doubts(index.cases, label)),
        failed=index.failed,
    )


def _volumes_ml(infos: Sequence[CaseInfo], label: str) -> dict[int, dict[str, float]]:
    """Return millilitres per class value and case, where the class is present."""
    found: dict[int, dict[str, float]] = {}
    for info in infos:
        voxel_ml = math.prod(info.spacing_mm) / 1000
        for value, voxels in info.label(label).voxels.items():
            if value:
                found.setdefault(value, {})[info.case] = voxels * voxel_ml
    return dict(sorted(found.items()))


def _class_facts(infos: Sequence[CaseInfo], label: str) -> Iterator[ClassFacts]:
    for value, volumes in _volumes_ml(infos, label).items():
        sizes = sorted(volumes.values())
        yield ClassFacts(value, len(sizes), _median(sizes), sizes[0], sizes[-1])


def doubts(infos: Sequence[CaseInfo], label: str) -> Iterator[Doubt]:
    """Yield what is unlike the other cases: classes, their volumes, spacings, empty labels."""
    for info in infos:
        if not set(info.label(label).voxels) - {0}:
            yield Doubt(info.case, f"label {label} is all background")
    if len(infos) < MIN_CASES:
        return
    for value, volumes in _volumes_ml(infos, label).items():
        if len(volumes) >= USUAL_SHARE * len(infos):
            for info in infos:
                if info.case not in volumes and set(info.label(label).voxels) - {0}:
                    yield Doubt(info.case, f"class {value} is missing; nearly every case has it")
        yield from _far_off(volumes, f"class {value}", "ml")
    for axis, name in enumerate("zyx"):
        spacings = {info.case: info.spacing_mm[axis] for info in infos}
        yield from _far_off(spacings, f"spacing along {name}", "mm")


def _far_off(values: dict[str, float], what: str, unit: str) -> Iterator[Doubt]:
    usual = _median(values.values())
    for case, value in values.items():
        if not usual / ODD_FACTOR <= value <= usual * ODD_FACTOR:
            yield Doubt(case, f"{what}: {value:.4g} {unit}, the median is {usual:.4g} {unit}")


def _median(values: Iterable[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]
