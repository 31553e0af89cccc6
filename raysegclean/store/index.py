"""The index of an archive: one `CaseInfo` per case, kept as `cases.parquet`.

A row is read again only when the versions of its objects changed, label by label, so loading an
archive that stayed as it was costs one listing per case. A case that cannot be used is reported
with its remedy and never stops the others. The index is a cache: deleting it loses nothing.
"""

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any, TypeVar

import pyarrow as pa

from raysegclean.errors import (
    CaseError,
    MissingObject,
    RaysegcleanError,
    UnfitEnvironment,
    told,
)
from raysegclean.evidence.cases import BlockCounts, CaseInfo, Intensity, LabelSummary
from raysegclean.store.archive import SUFFIX, Archive
from raysegclean.store.arrays import Volume
from raysegclean.store.fit import check_fit
from raysegclean.store.objects import ObjectInfo, Store
from raysegclean.store.parquet import from_parquet, to_parquet
from raysegclean.store.presence import check_shards
from raysegclean.store.scan import scan_intensity, scan_values

__all__ = [
    "CaseIndex",
    "build_index",
    "load_index",
    "save_index",
    "scan_case",
    "source_versions",
]

log = logging.getLogger("raysegclean.index")

TABLE = "cases.parquet"

T = TypeVar("T")

_FORMAT = 1
_DAMAGE = (
    pa.ArrowException,
    *(OSError, KeyError, ValueError, OverflowError, TypeError, AttributeError),
)
"""What reading a damaged table raises, by where the damage is."""
_CORRECT = "correct its coordinateTransformations in zarr.json"
_THREADS = 8
_ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class CaseIndex:
    """The usable cases, sorted by id, and an error for each of the others."""

    cases: tuple[CaseInfo, ...]
    failed: tuple[CaseError, ...] = ()

    def __len__(self) -> int:
        """Return the number of usable cases."""
        return len(self.cases)

    def __iter__(self) -> Iterator[CaseInfo]:
        """Yield the usable cases."""
        return iter(self.cases)

    def requiring(self, label: str) -> "CaseIndex":
        """Return the index with every case that lacks `label` moved to `failed`."""
        kept, failed = [], list(self.failed)
        for info in self.cases:
            try:
                info.label(label)
            except CaseError as fault:
                failed.append(fault)
            else:
                kept.append(info)
        return CaseIndex(tuple(kept), tuple(failed))


def build_index(
    archive: Archive, cases: Iterable[str] | None = None, *, require_label: str | None = None
) -> CaseIndex:
    """Read the cases (default: all) and return what is in them."""
    index = _build(archive, cases, (), require_label)
    return index.requiring(require_label) if require_label else index


def load_index(
    archive: Archive,
    index_uri: str | os.PathLike[str] | None = None,
    *,
    require_label: str | None = None,
) -> CaseIndex:
    """Return the index, reading only what is new or changed, and keep it for the next time.

    It is kept in the folder `index_uri`, else in the archive; an archive that cannot be written
    is no error then.
    """
    place = Store.open(index_uri) if index_uri is not None else archive.store
    known = _saved(place)
    index = _build(archive, None, known, require_label)
    rows = {info.case: info for info in known} | {info.case: info for info in index}
    present = set(archive.case_ids())
    kept = tuple(rows[case] for case in sorted(rows) if case in present)
    if kept != known:
        try:
            save_index(place, kept)
        except UnfitEnvironment as fault:
            if index_uri is not None:
                raise
            log.warning(
                "the index of %s cannot be kept (%s), so every start reads all cases again; name "
                "a folder that can be written as `index:`",
                archive.store.uri,
                fault,
            )
    return index.requiring(require_label) if require_label else index


def save_index(place: Store, cases: Iterable[CaseInfo]) -> None:
    """Write `cases.parquet` into the folder `place`."""
    table = pa.Table.from_pylist([_row(info) for info in cases])
    table = table.replace_schema_metadata({"raysegclean": str(_FORMAT)})
    place.put(TABLE, to_parquet(table, checksums=True))


def scan_case(
    archive: Archive,
    case: str,
    known: CaseInfo | None = None,
    require_label: str | None = None,
) -> CaseInfo:
    """Return what is in one case, reading only what differs from `known`.

    Raises CaseError when the image or a label cannot be used. A faulty label that was made here
    is only left out, unless it is `require_label`: making it again must stay possible.
    """
    objects = tuple(archive.at(case).list())
    image = archive.image(case)
    if 0 in image.shape:
        raise CaseError(case, f"image has {image.shape} voxels. Leave it out or ingest it again.")
    about = archive.attributes(case)
    check_shards(case, image, about, objects)
    spacing_mm = archive.spacing_mm(case)
    version = _version(objects, f"{image.path}/", spacing_mm)
    unchanged = known is not None and known.image_version == version
    labels = _scan_labels(archive, case, objects, known, require_label)
    return CaseInfo(
        case=case,
        patient=about.get("patient"),
        site=about.get("site"),
        annotator=about.get("annotator"),
        shape_zyx=image.shape_zyx,
        channels=image.channels,
        image_dtype=str(image.dtype),
        spacing_mm=spacing_mm,
        intensity=known.intensity if known and unchanged else _scan(case, scan_intensity, image),
        labels=labels,
        image_version=version,
    )


def source_versions(archive: Archive, case: str, label: str) -> dict[str, str]:
    """Return the versions of a case's image and of one label: other objects, another version.

    They come from a listing, no voxel is read. Raises CaseError when there is no such case.
    """
    objects, image = tuple(archive.at(case).list()), archive.image(case)
    return {
        "image": _version(objects, f"{image.path}/", archive.spacing_mm(case)),
        "label": _version(objects, f"labels/{label}/"),
    }


def _build(
    archive: Archive,
    cases: Iterable[str] | None,
    known: tuple[CaseInfo, ...],
    require_label: str | None,
) -> CaseIndex:
    rows = {info.case: info for info in known}
    wanted = sorted(set(cases)) if cases is not None else archive.case_ids()
    lost = archive.lost_cases() if cases is None else {}

    def one(case: str) -> CaseInfo | CaseError:
        try:
            return scan_case(archive, case, rows.get(case), require_label)
        except CaseError as fault:
            return fault
        except Exception as fault:  # noqa: BLE001  (one odd case must not stop the others)
            return CaseError(case, told(fault))

    with ThreadPoolExecutor(_THREADS) as threads:
        found = list(threads.map(one, wanted))
    good = tuple(info for info in found if isinstance(info, CaseInfo))
    failed = [fault for fault in found if isinstance(fault, CaseError)]
    failed += [
        CaseError(case, f"its folder is called {name}, not {case}{SUFFIX}. Rename it.")
        for case, name in lost.items()
    ]
    return CaseIndex(good, tuple(failed))


def _scan_labels(
    archive: Archive,
    case: str,
    objects: tuple[ObjectInfo, ...],
    known: CaseInfo | None,
    require_label: str | None,
) -> tuple[LabelSummary, ...]:
    before = {s.name: s for s in known.labels} if known else {}
    image, labels, names = archive.placed(case), [], archive.label_names(case)
    if require_label is not None and require_label not in names:
        archive.published_label(case, require_label)  # raises, saying why it is not among them
    for name in names:
        version = _version(objects, f"labels/{name}/")
        try:
            label = archive.label(case, name)
            check_fit(case, name, archive.placed(case, name), image, _CORRECT)
            kept = before.get(name)
            if kept is None or kept.version != version:
                kept = LabelSummary(
                    name, str(label.dtype), *_scan(case, scan_values, label), version
                )
            check_shards(case, label, archive.label_attributes(case, name), objects)
            labels.append(kept)
        except RaysegcleanError:
            if name == require_label or not archive.is_derived(case, name):
                raise
    return tuple(labels)


def _scan(case: str, scan: Callable[[Volume], T], volume: Volume) -> T:
    """Run a scan; say which case and array a fault is about."""
    try:
        return scan(volume)
    except RaysegcleanError as fault:
        text = str(fault)
        raise CaseError(case, text if volume.uri in text else f"{volume.uri}: {text}") from fault


def _version(objects: Iterable[ObjectInfo], folder: str, *more: object) -> str:
    digest = blake2b(repr(more).encode(), digest_size=16)
    for info in objects:
        if info.key.startswith(folder):
            digest.update(f"{info.key}\0{info.etag}\0{info.size_bytes}\n".encode())
    return digest.hexdigest()


def _row(info: CaseInfo) -> dict[str, Any]:
    return {
        **vars(info),
        "intensity": asdict(info.intensity),
        "label_names": [summary.name for summary in info.labels],
        # JSON: nested, and as deep as there are values and blocks.
        "labels": json.dumps([_plain(summary) for summary in info.labels]),
    }


def _plain(label: LabelSummary) -> dict[str, Any]:
    blocks = {value: counts.rows().tolist() for value, counts in label.blocks.items()}
    return {**vars(label), "blocks": blocks}


def _saved(place: Store) -> tuple[CaseInfo, ...]:
    """Return the rows kept earlier; none when they are missing, damaged or of another format."""
    try:
        data = place.get(TABLE)
    except MissingObject:
        return ()
    try:
        table = from_parquet(data, checksums=True)
        if (table.schema.metadata or {}).get(b"raysegclean") != str(_FORMAT).encode():
            return ()
        batches = table.to_batches(max_chunksize=_ROWS_AT_ONCE)
        return tuple(_info(row) for batch in batches for row in batch.to_pylist())
    except _DAMAGE:
        return ()


def _info(row: dict[str, Any]) -> CaseInfo:
    values = {**row, "intensity": Intensity(**row["intensity"])}
    del values["label_names"]
    values["shape_zyx"] = tuple(row["shape_zyx"])
    values["spacing_mm"] = tuple(row["spacing_mm"])
    values["labels"] = tuple(_summary(label) for label in json.loads(row["labels"]))
    return CaseInfo(**values)


def _summary(label: dict[str, Any]) -> LabelSummary:
    voxels = {int(value): count for value, count in label["voxels"].items()}
    blocks = {int(value): BlockCounts.of(pairs) for value, pairs in label["blocks"].items()}
    return LabelSummary(label["name"], label["dtype"], voxels, blocks, label["version"])
