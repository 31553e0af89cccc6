"""Into an archive, a look at it, and out again: ingest, check, export."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

import click

from raysegclean.errors import ConfigError
from raysegclean.interface.verbs import ARCHIVE, Section, label_option

if TYPE_CHECKING:
    from raysegclean.qc.check import CheckReport
    from raysegclean.store.each import CasesReport

__all__ = ["ARCHIVES", "check", "export", "ingest"]

ARCHIVES = Section("Archives")


def _whole_numbers(_: click.Context, __: click.Parameter, text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"--classes {text}: expected whole numbers, as in --classes 1,2,3"
        ) from None


def _folders(
    _: click.Context, __: click.Parameter, pairs: tuple[tuple[str, str], ...]
) -> dict[str, str]:
    folders: dict[str, str] = {}
    for name, folder in pairs:
        if name in folders:
            raise ConfigError(f"--add-label {name} is given twice. Give each label one folder.")
        folders[name] = folder
    return folders


@ARCHIVES.verb(
    click.Argument(["images"], metavar="IMAGES_DIR", help="folder or URI of NIfTI images"),
    click.Argument(["labels"], metavar="LABELS_DIR", help="their labels, of the same names"),
    click.Argument(["archive"], help="path or URI of the new archive"),
    label_option("name of the label inside the archive"),
    click.Option(
        ["--add-label", "more_labels"],
        multiple=True,
        type=(str, str),
        callback=_folders,
        metavar="NAME DIR",
        help="one more label, as an expert's; may be given many times",
    ),
    click.Option(["--table"], metavar="CSV", help="columns case, patient, site, annotator"),
    click.Option(
        ["--class-names"], metavar="CSV", help="columns id, name: what label values are called"
    ),
    click.Option(
        ["--patient-regex"],
        metavar="RE",
        help="finds the patient in the case id: its first group; not with --table",
    ),
)
def ingest(
    images: str,
    labels: str,
    archive: str,
    label: str,
    *,
    more_labels: Mapping[str, str] | None = None,
    table: str | None = None,
    class_names: str | None = None,
    patient_regex: str | None = None,
) -> CasesReport:
    """Turn NIfTI images and labels into an archive.

    `more_labels` (name -> folder) may cover some of the cases only. What label values are
    called comes from the table `class_names`, a `dataset.json` beside the labels, or their headers.
    """
    from raysegclean.store.ingest import ingest_nifti

    if table and patient_regex:
        raise ConfigError("--table and --patient-regex both name the patients. Keep one of them.")
    return ingest_nifti(
        images,
        labels,
        archive,
        label,
        extra_labels=more_labels,
        table=table,
        names=class_names,
        patient_regex=patient_regex,
    )


@ARCHIVES.verb(
    ARCHIVE,
    label_option("the given label"),
    click.Option(
        ["--classes"],
        metavar="K,K,...",
        callback=_whole_numbers,
        help="label values that may occur; others are strays",
    ),
    click.Option(
        ["--label-ignore", "label_ignore"],
        type=int,
        metavar="K",
        help="label value that is no class, as in the config",
    ),
    click.Option(["--labels-only"], is_flag=True, help="read no image: faster, and finds less"),
    click.Option(["--out"], metavar="FILE", help="save all findings as .csv or .parquet"),
)
def check(
    archive: str,
    label: str,
    *,
    classes: Collection[int] | None = None,
    label_ignore: int | None = None,
    labels_only: bool = False,
    out: str | None = None,
) -> CheckReport:
    """Check an archive's integrity and plausibility.

    `classes` are the label values that may occur, `label_ignore` is one that is no class; all
    findings are saved as `out`.
    """
    from raysegclean.qc import check as qc

    if out is not None:
        qc.check_table_name(out)
    report = qc.check(
        archive, label, classes=classes, ignored=label_ignore, with_image=not labels_only
    )
    if out is not None:
        qc.save_findings(report, out)
    return report


@ARCHIVES.verb(
    ARCHIVE,
    click.Argument(["out"], metavar="OUT_DIR", help="folder or URI for the NIfTI files"),
    label_option("label to export"),
    click.Option(
        ["--case", "cases"], multiple=True, metavar="CASE", help="only this one; repeatable"
    ),
)
def export(archive: str, out: str, label: str, *, cases: Iterable[str] = ()) -> CasesReport:
    """Write a label as NIfTI with the source affine.

    All cases are written where `cases` names none.
    """
    from raysegclean.store.archive import Archive
    from raysegclean.store.export import export_nifti

    return export_nifti(Archive.open(archive), label, out, tuple(cases) or None)
