"""From NIfTI pairs to an archive, one case at a time.

An image and its labels belong together when their file names are equal up to the extension, which
is also the case's id. A pair that does not fit is refused with the reason and the other cases go
on. Running the same ingest again writes nothing: a case is known by the SHA-256 of its files. A
case whose files changed is refused, because what came in is never written over.
"""

import logging
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, Literal

import numpy as np

from raysegclean.errors import (
    AlreadyExists,
    CaseError,
    ConfigError,
    InputError,
    UnfitEnvironment,
)
from raysegclean.store.archive import Archive, write_case
from raysegclean.store.arrays import Array
from raysegclean.store.beside import lost_pairs, summary
from raysegclean.store.class_names import NAMES, named_in, read_names
from raysegclean.store.each import CasesReport, for_each_case
from raysegclean.store.fit import Placed, as_label, check_fit
from raysegclean.store.index import load_index
from raysegclean.store.nifti import Nifti, decode_nifti, stem
from raysegclean.store.objects import Store, check_key, check_label_name
from raysegclean.store.table import Facts, read_table

__all__ = ["CaseSource", "Outcome", "Sources", "find_sources", "ingest_case", "ingest_nifti"]

log = logging.getLogger("raysegclean.ingest")

Outcome = Literal["written", "extended", "reused"]
Folder = str | os.PathLike[str]


@dataclass(frozen=True)
class CaseSource:
    """The files of one case: a folder and a file name for the image and for each label."""

    case: str
    image: tuple[Store, str]
    labels: tuple[tuple[str, Store, str], ...]
    facts: Facts = field(default_factory=dict)
    class_names: Mapping[int, str] = field(default_factory=dict)
    """What the values of its labels are called; a name that is known goes before the file's own."""
    renames: bool = False
    """Whether labels that are in the archive take these names too."""


@dataclass(frozen=True)
class _Files:
    """What lies in one folder."""

    store: Store
    taken: dict[str, tuple[Store, str]]
    """NIfTI files directly in it, by case."""
    failed: list[CaseError]
    """Of ids that no archive can hold, and of those that are used twice."""
    others: list[str]
    """What is not taken."""


def ingest_nifti(
    images_dir: Folder,
    labels_dir: Folder,
    archive_uri: Folder,
    label: str,
    *,
    extra_labels: Mapping[str, Folder] | None = None,
    table: str | None = None,
    patient_regex: str | None = None,
    names: str | None = None,
) -> CasesReport:
    """Write all pairs into the archive and refresh its index.

    Cases need a file in `labels_dir`; `extra_labels` (name -> folder) may cover only some. The
    CSV `table` tells patients, sites and annotators; `patient_regex` finds the patient in the id
    (its group `patient`, else its first group, else the whole match). Raises ConfigError when
    nothing can be ingested at all, UnfitEnvironment when the archive cannot be written. A
    `dataset.json` in the folder of the labels, or in the one above, names their classes, else the
    header of each label; the CSV `names` (id, name) goes before both, also in cases that are there.
    """
    archive, more = Archive.open(archive_uri), extra_labels or {}
    if label in more:
        raise ConfigError(f"label {label!r} is given two folders. Give each label another name.")
    found = find_sources(images_dir, {label: labels_dir, **more}, required=label)
    sources, refused = found.cases, found.failed
    facts = read_table(table) if table else {}
    if table:
        known = {source.case for source in sources} | {fault.case for fault in refused}
        _check_rows(table, facts, known)
    sources, unknown = _with_facts(sources, facts, patient_regex)
    named = named_in([Store.open(labels_dir), *_above(labels_dir)])
    named |= read_names(names) if names else {}
    sources = [replace(one, class_names=named, renames=names is not None) for one in sources]
    archive.check_writable()
    by_case = {source.case: source for source in sources}
    done, failed = for_each_case(by_case, lambda case: ingest_case(by_case[case], archive))
    unusable = {fault.case: fault for fault in load_index(archive).failed if fault.case in done}
    return CasesReport(
        {case: outcome for case, outcome in done.items() if case not in unusable},
        tuple(
            sorted([*refused, *unknown, *failed, *unusable.values()], key=lambda fault: fault.case)
        ),
        notes=found.notes,
    )


def _above(folder: Folder) -> list[Store]:
    """Return the folder above, where there is one."""
    above, _, name = Store.open(folder).uri.rstrip("/").rpartition("/")
    return [Store.open(above)] if above and name and not above.endswith("/") else []


@dataclass(frozen=True)
class Sources:
    """What was found in the folders of images and labels."""

    cases: list[CaseSource]
    failed: list[CaseError]
    """An error for each file that has no partner, and for each pair that cannot be taken."""
    notes: tuple[str, ...]
    """What else lies there, a line for each folder."""


def find_sources(images_dir: Folder, label_dirs: Mapping[str, Folder], *, required: str) -> Sources:
    """Pair files by name; raise ConfigError where there is no image at all."""
    images = _files(images_dir)
    if not images.taken and not images.failed:
        held = f" It holds: {said}." if (said := summary("", images.others)) else ""
        raise ConfigError(
            f"{images_dir}: no .nii or .nii.gz file here. Give the images' folder.{held}"
        )
    labels = {check_label_name(name): _files(folder) for name, folder in label_dirs.items()}
    failed = [*images.failed, *_lost(images, labels[required])]
    for files in labels.values():
        failed += files.failed
        failed += [
            CaseError(case, f"{_where(file)} has no image of that name in {images_dir}. Add it.")
            for case, file in files.taken.items()
            if case not in images.taken
        ]
    sources = []
    for case, image in images.taken.items():
        found = tuple((n, *files.taken[case]) for n, files in labels.items() if case in files.taken)
        if any(name == required for name, _, _ in found):
            sources.append(CaseSource(case, image, found))
        else:
            failed.append(_no_label(case, image, labels[required]))
    places = {one.store.uri: one for one in (images, *labels.values())}
    notes = (summary(uri, files.others) for uri, files in places.items())
    return Sources(sources, failed, tuple(note for note in notes if note))


def _lost(images: _Files, labels: _Files) -> list[CaseError]:
    """Return an error for each pair in a form or place that is not read."""
    return [
        CaseError(
            case,
            f"{images.store.uri}/{key} and its label are not taken: only .nii and .nii.gz files "
            "directly in the folder are. Convert or move them.",
        )
        for case, key in lost_pairs(images.others, labels.others).items()
    ]


def _no_label(case: str, image: tuple[Store, str], labels: _Files) -> CaseError:
    remedy = "Add it, or rename the files so that image and label agree."
    if case.endswith("_0000") and case.removesuffix("_0000") in labels.taken:
        remedy = "It is named as nnU-Net names its first channel: rename it without _0000."
    text = f"{_where(image)} has no label of that name in {labels.store.uri}. {remedy}"
    return CaseError(case, text)


def ingest_case(source: CaseSource, archive: Archive) -> Outcome:
    """Write one case, or add the labels that it lacks; return what was done.

    Raises CaseError when files cannot be read or do not fit, or the case exists with others.
    """
    case, store = source.case, archive.at(source.case)
    image_bytes = _bytes(case, *source.image)
    label_bytes = {name: _bytes(case, folder, key) for name, folder, key in source.labels}
    exists = store.head("zarr.json") is not None
    if exists:
        present = archive.attributes(case)
        _check_same(case, "image", present, image_bytes)
        if any(present.get(name) != value for name, value in source.facts.items()):
            archive.set_attributes(case, dict(source.facts))
        if source.renames:
            called = dict.fromkeys(label_bytes, _by_text(source.class_names))
            archive.set_attributes(case, {NAMES: {**present.get(NAMES, {}), **called}})
        for name in set(label_bytes).intersection(archive.label_names(case)):
            own = archive.label_attributes(case, name)
            _check_same(case, f"label {name!r}", own, label_bytes.pop(name))
        if not label_bytes:
            return "reused"
    image = _decode(case, _where(source.image), image_bytes)
    labels, voxels = {}, {}
    for name, folder, key in source.labels:
        if name in label_bytes:
            labels[name] = _decode(case, _where((folder, key)), label_bytes[name])
            voxels[name] = _fitting(case, name, image, labels[name])
    own = {
        name: _kept(label, label_bytes[name]) | _named({**label.class_names, **source.class_names})
        for name, label in labels.items()
    }
    if exists:
        for name, label in voxels.items():
            archive.add_label(case, name, label, own[name])
        return "extended"
    _check_finite(case, image)
    try:
        write_case(
            archive,
            case,
            image.array,
            voxels,
            spacing_mm=image.spacing_mm,
            affine=image.affine,
            attributes={**_kept(image, image_bytes), **source.facts},
            label_attributes=own,
        )
    except AlreadyExists as fault:
        text = "another ingest wrote it meanwhile. Run this one again: it takes what is there."
        raise CaseError(case, text) from fault
    return "written"


def _files(folder: Folder) -> _Files:
    store = Store.open(folder)
    found: dict[str, tuple[Store, str]] = {}
    failed, others = [], []
    for info in store.list():
        case = None if "/" in info.key else stem(info.key)
        if case is None:
            if not info.key.rpartition("/")[2].startswith("."):
                others.append(info.key)
            continue
        try:
            check_key(case)
        except ConfigError as fault:
            failed.append(CaseError(case, f"{store.uri}/{info.key}: {fault} Rename the file."))
            continue
        if case in found:
            text = f"{store.uri} holds {found[case][1]} and {info.key}. Remove one of them."
            failed.append(CaseError(case, text))
        found[case] = (store, info.key)
    refused = {error.case for error in failed}
    taken = {case: file for case, file in found.items() if case not in refused}
    return _Files(store, taken, failed, others)


def _check_rows(table: str, facts: Mapping[str, Facts], known: Collection[str]) -> None:
    """Raise ConfigError when no row is of a case here; name the rows that are not."""
    strangers = [case for case in facts if case not in known]
    if known and len(strangers) == len(facts):
        raise ConfigError(
            f"table {table}: no row is of a case here; its cases are {_some(strangers)}, those of "
            f"the images {_some(sorted(known))}. Write file names without .nii or .nii.gz."
        )
    if strangers:
        log.warning("table %s: no image for %s; these rows are not used", table, _some(strangers))
    absent = sorted(set(known) - set(facts))
    if absent:
        log.warning("table %s: no row for %s; nothing is known of them", table, _some(absent))


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5]) or "none"
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown


def _with_facts(
    sources: Iterable[CaseSource], table: Mapping[str, Facts], patient_regex: str | None
) -> tuple[list[CaseSource], list[CaseError]]:
    try:
        pattern = re.compile(patient_regex) if patient_regex else None
    except re.error as fault:
        raise ConfigError(f"patient pattern {patient_regex!r}: {fault}. Correct it.") from fault
    kept, failed = [], []
    for source in sources:
        facts = dict(table.get(source.case, {}))
        if pattern and "patient" not in facts:
            patient = _patient(pattern, source.case)
            if patient is None:
                text = f"the patient pattern {patient_regex!r} does not match this id. Widen it."
                failed.append(CaseError(source.case, text))
                continue
            facts["patient"] = patient
        kept.append(replace(source, facts=facts))
    return kept, failed


def _patient(pattern: "re.Pattern[str]", case: str) -> str | None:
    match = pattern.search(case)
    if match is None:
        return None
    if "patient" in pattern.groupindex:
        return match["patient"]
    return match[1] if pattern.groups else match[0]


def _bytes(case: str, folder: Store, key: str) -> bytes:
    try:
        return folder.get(key)
    except (FileNotFoundError, UnfitEnvironment) as fault:
        raise CaseError(case, str(fault)) from fault


def _decode(case: str, where: str, data: bytes) -> Nifti:
    try:
        return decode_nifti(data)
    except InputError as fault:
        raise CaseError(case, f"{where}: {fault}") from fault


def _check_same(case: str, what: str, own: Mapping[str, Any], data: bytes) -> None:
    if own.get("derived"):
        raise CaseError(
            case, f"{what} was published by a run. Give the one that is ingested another name."
        )
    if own.get("source_sha256") != sha256(data).hexdigest():
        raise CaseError(
            case,
            f"the archive holds this case with another {what} than the file given now. "
            "Delete the case from the archive, or ingest into another archive.",
        )


def _fitting(case: str, name: str, image: Nifti, label: Nifti) -> Array:
    """Return a label as class numbers; raise CaseError where it does not fit its image."""
    mine, other = (Placed(nifti.array.shape, nifti.affine) for nifti in (label, image))
    check_fit(case, name, mine, other, "copy the image's affine")
    return as_label(case, name, label.array, image.array.shape[-3:], label.scale)


def _check_finite(case: str, image: Nifti) -> None:
    if image.array.dtype.kind == "f" and not np.isfinite(image.array).all():
        raise CaseError(
            case,
            "image holds NaN or infinite voxels. Replace them in the source, for example by the "
            "value of air.",
        )


def _kept(nifti: Nifti, data: bytes) -> dict[str, Any]:
    return {"nifti": nifti.header, "source_sha256": sha256(data).hexdigest()}


def _named(names: Mapping[int, str]) -> dict[str, Any]:
    return {NAMES: _by_text(names)} if names else {}


def _by_text(names: Mapping[int, str]) -> dict[str, str]:
    return {str(value): name for value, name in names.items()}


def _where(file: tuple[Store, str]) -> str:
    return f"{file[0].uri}/{file[1]}"
