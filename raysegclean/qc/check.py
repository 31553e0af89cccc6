"""Check an archive without any network: what cannot be used, and what looks wrong.

The facts of every case are collected in one pass (`qc.collect`) and judged together
(`qc.integrity`). Findings are ranked: grave ones first, then by how far from usual they are. A
case that cannot be read is itself a finding and never stops the others.
"""

import csv
import io
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from raysegclean.errors import ConfigError
from raysegclean.qc.collect import collect_statistics
from raysegclean.qc.findings import Finding, ranked
from raysegclean.qc.integrity import examine
from raysegclean.qc.label_statistics import LabelStatistics
from raysegclean.render import as_text
from raysegclean.store.archive import Archive
from raysegclean.store.class_names import class_names
from raysegclean.store.each import for_each_case
from raysegclean.store.index import load_index
from raysegclean.store.objects import Store
from raysegclean.store.parquet import to_parquet

__all__ = ["CheckReport", "check", "check_table_name", "save_findings"]

UNUSABLE_SCORE = 1000.0
SHOWN = 50


@dataclass(frozen=True)
class CheckReport:
    """Findings, worst first."""

    archive: str
    label: str
    cases: int
    findings: tuple[Finding, ...]
    worst_first: tuple[str, ...]
    """All cases, also those without a finding, by how odd they are at most."""
    notes: tuple[str, ...] = ()
    """What could not be judged, and why."""

    @property
    def exit_code(self) -> int:
        """1 when anything is grave."""
        return int(any(finding.grave for finding in self.findings))

    def text(self) -> str:
        """Return the table, worst first, for people."""
        grave = sum(finding.grave for finding in self.findings)
        odd = len({finding.case for finding in self.findings})
        head = f"{self.cases} cases, {odd} with findings; {grave} of {len(self.findings)} are grave"
        table = [_row(finding) for finding in self.findings[:SHOWN]]
        left = len(self.findings) - len(table)
        return "\n".join(
            [
                head,
                *([as_text(table)] if table else []),
                *([f"and {left} more; --out saves all of them"] if left else []),
                *(f"note: {note}" for note in self.notes),
            ]
        )


def check(
    archive_uri: str,
    label: str,
    *,
    classes: Collection[int] | None = None,
    ignored: int | None = None,
    with_image: bool = True,
) -> CheckReport:
    """Return what is wrong with the cases of an archive for one label.

    `classes` are the values that may occur, `ignored` is one that is no class; `with_image` False
    reads labels alone, which is much less to read and finds less. Raises ConfigError for a label
    that no case has.
    """
    archive = Archive.open(archive_uri)
    archive.wanted_cases()  # raises where there is none
    index = load_index(archive, require_label=label)
    infos = {info.case: info for info in index}
    if not infos:
        _refuse_unknown_label(archive, label)

    def facts(case: str) -> LabelStatistics:
        return collect_statistics(
            archive, infos[case], label, with_image=with_image, ignored=ignored
        )

    done, failed = for_each_case(infos, facts)
    broken = [
        Finding(
            grave=True,
            score=UNUSABLE_SCORE,
            case=fault.case,
            what=fault.reason,
            remedy="repair it or leave it out with `cases:`",
        )
        for fault in (*index.failed, *failed)
    ]
    names = class_names(archive, label, infos)
    found = examine(tuple(done.values()), declared=classes, names=names)
    return CheckReport(
        archive=archive.store.uri,
        label=label,
        cases=len(index) + len(index.failed),
        findings=ranked([*broken, *found.findings]),
        worst_first=(*sorted(finding.case for finding in broken), *found.worst_first()),
        notes=(*_named(names), *found.notes),
    )


def _named(names: Mapping[int, str]) -> tuple[str, ...]:
    """Return the note that says what the classes are called, where that is known."""
    called = ", ".join(f"{value} {name}" for value, name in names.items())
    return (f"the classes are {called}",) if called else ()


def _refuse_unknown_label(archive: Archive, label: str) -> None:
    """Raise ConfigError where no case has the label and some have another."""
    known = sorted({name for case in archive.case_ids() for name in archive.label_names(case)})
    if known and label not in known:
        raise ConfigError(
            f"archive {archive.store.uri}: no case has the label {label!r}. Its cases have "
            f"{', '.join(known)}; name one of these."
        )


def check_table_name(uri: str) -> None:
    """Raise ConfigError unless a table can be saved under this name."""
    if not uri.endswith((".csv", ".parquet")):
        raise ConfigError(f"--out {uri}: expected a name that ends in .csv or .parquet.")


def save_findings(report: CheckReport, uri: str) -> None:
    """Write all findings as a table to a path or URI that ends in .csv or .parquet.

    Raises ConfigError for another ending (`check_table_name`).
    """
    check_table_name(uri)
    rows = [asdict(finding) for finding in report.findings]
    folder, _, name = uri.rpartition("/")
    data = _parquet(rows) if name.endswith(".parquet") else _csv(rows)
    Store.open(folder or ".").put(name, data)


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    columns = {name: [row[name] for row in rows] for name in Finding.__dataclass_fields__}
    return to_parquet(pa.table(columns))


def _csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(Finding.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _row(finding: Finding) -> dict[str, Any]:
    return {
        "": "grave" if finding.grave else "odd",
        "score": finding.score,
        "case": finding.case,
        "what": finding.what,
        "where": finding.where or None,
        "value": finding.value or None,
        "usual": finding.usual or None,
    }
