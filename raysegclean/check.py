"""Check an archive without any network: what cannot be used, and what looks implausible.

Everything comes from the index, so no voxel is read that the index has seen. Findings are ranked:
grave ones (a case that cannot be used, a class that most cases have and this one lacks) first.
A volume is judged against the archive's own robust distribution, never against anatomy books.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import log

import numpy as np

from raysegclean.core.cases import CaseInfo
from raysegclean.errors import InputError
from raysegclean.store.archive import Archive
from raysegclean.store.index import load_index

__all__ = ["CheckReport", "Finding", "check", "find_implausible"]

FEW_CASES = 8
USUAL_SHARE = 0.8
ODD_SDS = 5.0
LEAST_SD = 0.1
"""Robust sd of log volumes below which differences are ordinary anatomy."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or odd with one case."""

    grave: bool
    case: str
    what: str
    remedy: str


@dataclass(frozen=True)
class CheckReport:
    """Findings, grave ones first."""

    archive: str
    cases: int
    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        """1 when anything is grave."""
        return int(any(finding.grave for finding in self.findings))


def check(archive_uri: str, label: str) -> CheckReport:
    """Return what is wrong with the cases of an archive for one label."""
    archive = Archive.open(archive_uri)
    index = load_index(archive, require_label=label)
    if not len(index) + len(index.failed):
        raise InputError(
            f"{archive.store.uri}: no case here. Give a folder or prefix of <case>.ome.zarr, or "
            "make one with `raysegclean ingest`."
        )
    broken = [
        Finding(True, fault.case, fault.reason, "repair it or leave it out with `cases:`")
        for fault in index.failed
    ]
    found = broken + find_implausible(index.cases, label)
    found.sort(key=lambda finding: (not finding.grave, finding.case, finding.what))
    return CheckReport(archive.store.uri, len(index) + len(index.failed), tuple(found))


def find_implausible(cases: Sequence[CaseInfo], label: str) -> list[Finding]:
    """Return empty labels, missing classes, odd volumes and duplicates among usable cases."""
    return [*_empty(cases, label), *_missing(cases, label), *_volumes(cases, label), *_twins(cases)]


def _empty(cases: Sequence[CaseInfo], label: str) -> Iterable[Finding]:
    for info in cases:
        if not any(info.label(label).voxels.get(c) for c in info.label(label).voxels if c):
            yield Finding(True, info.case, "the label is empty", "draw it or leave the case out")


def _missing(cases: Sequence[CaseInfo], label: str) -> Iterable[Finding]:
    holders: dict[int, int] = defaultdict(int)
    for info in cases:
        for value in info.label(label).voxels:
            holders[value] += 1
    usual = {v for v, count in holders.items() if v and count >= USUAL_SHARE * len(cases)}
    for info in cases:
        present = {value for value in info.label(label).voxels if value}
        for value in sorted(usual - present) if present else ():
            share = holders[value] / len(cases)
            what = f"class {value} is missing; {share:.0%} of the cases have it"
            yield Finding(True, info.case, what, "is the structure outside the scan? Else draw it")


def _volumes(cases: Sequence[CaseInfo], label: str) -> Iterable[Finding]:
    ml: dict[int, dict[str, float]] = defaultdict(dict)
    for info in cases:
        voxel_ml = float(np.prod(info.spacing_mm)) / 1000
        for value, count in info.label(label).voxels.items():
            if value and count:
                ml[value][info.case] = count * voxel_ml
    for value, volumes in sorted(ml.items()):
        if len(volumes) < FEW_CASES:
            continue
        logs = np.log(list(volumes.values()))
        middle = float(np.median(logs))
        spread = max(LEAST_SD, 1.4826 * float(np.median(np.abs(logs - middle))))
        for case, volume in volumes.items():
            sds = (log(volume) - middle) / spread
            if abs(sds) > ODD_SDS:
                what = (
                    f"class {value} has {volume:.1f} ml, the median case {np.exp(middle):.1f} ml "
                    f"({sds:+.1f} robust sd)"
                )
                yield Finding(False, case, what, "look at this structure first")


def _twins(cases: Sequence[CaseInfo]) -> Iterable[Finding]:
    seen: dict[object, str] = {}
    for info in cases:
        key = (info.shape_zyx, info.spacing_mm, info.intensity)
        if key in seen:
            what = f"same shape, spacing and intensities as case {seen[key]}"
            yield Finding(False, info.case, what, "if it is the same scan, keep one of the two")
        seen.setdefault(key, info.case)
