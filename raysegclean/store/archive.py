"""An archive of cases: `ARCHIVE/<case>.ome.zarr`, OME-Zarr 0.5 on Zarr v3.

The image is at `0`, labels are at `labels/<name>/0`. A case becomes visible with its root
`zarr.json`, a label with its entry in the `labels` list; both are written last. The list is
changed by compare-and-swap, so labels published at the same time all land. Labels that came in
are never written again: only labels begun here can be replaced, withdrawn or deleted.
"""

import json
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from raysegclean.errors import (
    AlreadyExists,
    CaseError,
    Conflict,
    InputError,
    MissingObject,
    RunConflict,
)
from raysegclean.store import ome
from raysegclean.store.arrays import Array, Volume
from raysegclean.store.beside import lost_cases
from raysegclean.store.fit import Placed, as_label
from raysegclean.store.lock import RunLock
from raysegclean.store.objects import ObjectInfo, Store, as_json
from raysegclean.store.presence import SHARDS, check_shards
from raysegclean.store.shards import ArraySpec, ImageArraySpec, create_array, put_shard
from raysegclean.voxels.geometry import Index3, output_shard_zyx
from raysegclean.voxels.placement import affine_of

__all__ = ["SUFFIX", "Archive", "write_case"]

SUFFIX = ".ome.zarr"

_OURS = "raysegclean"
_CLAIM = "ingest.json"
"""Of the process that writes a case or a label into it; gone when it has."""
_COPIED = {"layout", "nifti"}
"""What a label that is begun takes over from the given one."""
_SWAP_ATTEMPTS = 40


@dataclass(frozen=True)
class Archive:
    """All cases below one store. Nothing is cached, so it never shows what is gone."""

    store: Store

    @classmethod
    def open(cls, uri: "str | os.PathLike[str] | Store | Archive") -> "Archive":
        """Return the archive at a path or URI; touch nothing."""
        return uri if isinstance(uri, Archive) else cls(Store.open(uri))

    def case_ids(self) -> list[str]:
        """Return the sorted ids of all cases, by listing folders; half-written ones included."""
        names = self.store.folders()
        return [name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX)]

    def lost_cases(self) -> dict[str, str]:
        """Return id -> name of folders that are cases by another name, as `<case>.zarr`."""
        return lost_cases(self.store.folders(), self.case_ids())

    def wanted_cases(self, cases: Iterable[str] | None = None) -> list[str]:
        """Return the sorted ids of `cases` (default: all); raise InputError when there is none."""
        wanted = sorted(set(cases)) if cases is not None else self.case_ids()
        if not wanted:
            raise InputError(
                f"{self.store.uri}: no case here. Give a folder or prefix of <case>{SUFFIX}, or "
                "make one with `raysegclean ingest`."
            )
        return wanted

    def check_writable(self) -> None:
        """Raise UnfitEnvironment unless cases can be written here, and read again."""
        self.store.kvstore("0")
        self.store.check_writable()

    def at(self, case: str) -> Store:
        """Return the store of one case."""
        return self.store.at(f"{case}{SUFFIX}")

    def image(self, case: str) -> Volume:
        """Return the finest level of the image; raise CaseError."""
        return self._volume(case, "")

    def label(self, case: str, name: str) -> Volume:
        """Return a label, published or only begun; raise CaseError when it is missing."""
        if "ome" in self._group(case, f"labels/{name}"):
            return self._volume(case, f"labels/{name}")
        return Volume(self.at(case), f"labels/{name}/0")

    def published_label(self, case: str, name: str) -> Volume:
        """Return a published label; raise CaseError when it is missing or was only begun."""
        label = self.label(case, name)
        own = self.label_attributes(case, name)
        if name not in self.label_names(case):
            if not self.is_derived(case, name):
                raise CaseError(
                    case,
                    f"label {name!r} is there, but labels/zarr.json does not list it. Add its "
                    "name to the list `labels` there, if it is whole.",
                )
            run = own.get("run", "RUN")
            raise CaseError(
                case,
                f"label {name!r} was begun but not published: its case failed, or its run has "
                f"not finished. Look at `raysegclean status {run}`.",
            )
        check_shards(case, label, own)
        return label

    def label_names(self, case: str) -> tuple[str, ...]:
        """Return the published labels, sorted."""
        listing = (self._attributes(case, "labels") or {}).get("ome", {})
        return tuple(sorted(listing.get("labels", [])))

    def spacing_mm(self, case: str) -> tuple[float, float, float]:
        """Return the voxel edges z, y, x in millimetres."""
        return self._spacing_mm(case, "")

    def placed(self, case: str, name: str = "") -> Placed:
        """Return the voxels of the image, or of the published label `name`, and where they lie."""
        path = f"labels/{name}" if name else ""
        multiscale, _ = self._level(case, path)
        with self._faults_of(case):
            origin_mm = ome.origin(multiscale, self._where(case, path))
        affine = affine_of(self._spacing_mm(case, path), origin_mm)
        return Placed(self._volume(case, path).shape, affine)

    def affine(self, case: str) -> npt.NDArray[np.float64] | None:
        """Return the source's 4 x 4 matrix from voxels x, y, z to RAS millimetres, if kept."""
        kept = self.attributes(case).get("affine")
        return None if kept is None else np.array(kept, np.float64)

    def attributes(self, case: str) -> dict[str, Any]:
        """Return what this package keeps about a case."""
        return dict(self._group(case, "").get(_OURS, {}))

    def label_attributes(self, case: str, name: str) -> dict[str, Any]:
        """Return what this package keeps about a label, published or only begun."""
        return dict(self._group(case, f"labels/{name}").get(_OURS, {}))

    def is_derived(self, case: str, name: str) -> bool:
        """Return whether a label was begun here; one that came with the case was not."""
        return bool(self.label_attributes(case, name).get("derived"))

    def begin_label(
        self,
        case: str,
        name: str,
        *,
        like: str | None = None,
        dtype: str | None = None,
        shard_zyx: Index3 | None = None,
        attributes: dict[str, Any] | None = None,
    ) -> ArraySpec:
        """Prepare a label that is not listed yet and return its layout; repeatable.

        The shape is the image's, the dtype that of the label `like` unless given. `attributes`
        say whose it is: a label begun with others is refused with RunConflict, naming what
        differs. A label of the same run is withdrawn and emptied when the given one has got
        another dtype or geometry.
        """
        shape_zyx = self.image(case).shape_zyx
        kind = dtype or (str(self.label(case, like).dtype) if like else "uint8")
        spec = ArraySpec(shape_zyx, kind, shard_zyx or output_shard_zyx(shape_zyx))
        own: dict[str, Any] = {"derived": True, "layout": asdict(spec), **(attributes or {})}
        if like and "nifti" not in own:
            own["nifti"] = self.label_attributes(case, like).get("nifti")
        key = f"labels/{name}/zarr.json"
        store, data = self.at(case), as_json(ome.group({_OURS: own}))
        try:
            store.create(key, data)
        except AlreadyExists:
            if not self._is_same(case, name, own):
                self.delete_label(case, name)
                store.create(key, data)
        create_array(store, f"labels/{name}/0", spec)
        return spec

    def publish_label(self, case: str, name: str, shards: int | None = None) -> None:
        """Make a label visible, when all its shards are there; repeatable.

        shards: objects that it has, if that is known; whoever reads it expects as many.
        """
        store = self.at(case)
        store.sweep(f"labels/{name}")
        image, _ = self._level(case, "")
        own = self.label_attributes(case, name)
        if shards is not None:
            own[SHARDS] = shards
        store.put_json(f"labels/{name}/zarr.json", ome.label_group(name, image, own))
        self._list(case, name, visible=True)
        self._renew_consolidated(case)

    def withdraw_label(self, case: str, name: str) -> None:
        """Take a label that was begun here out of the list; its voxels stay. Repeatable."""
        self._check_derived(case, name)
        self._list(case, name, visible=False)
        self._renew_consolidated(case)

    def delete_label(self, case: str, name: str) -> None:
        """Withdraw a label that was begun here and delete its objects."""
        if self._attributes(case, f"labels/{name}") is not None:
            self.withdraw_label(case, name)
        self.at(case).delete_all(f"labels/{name}")
        self._renew_consolidated(case)

    def add_label(self, case: str, name: str, label: Array, attributes: dict[str, Any]) -> None:
        """Add a given label, ZYX, to a case that exists; raise CaseError when it has that one."""
        begun = self._attributes(case, f"labels/{name}") is not None
        if begun and self.is_derived(case, name):
            raise CaseError(case, f"label {name!r} was begun by a run. Choose another name.")
        store = self.at(case)
        multiscale, _ = self._level(case, "")
        fitting = as_label(case, name, label, self.image(case).shape_zyx)
        with _claimed(store, case) as claim:
            if name in self.label_names(case):
                raise CaseError(case, f"label {name!r} exists already and is never written again.")
            store.delete_all(f"labels/{name}")
            _write_label(store, name, fitting, multiscale, attributes)
            claim.check()
            self._list(case, name, visible=True)
        self._renew_consolidated(case)

    def set_attributes(self, case: str, attributes: dict[str, Any]) -> None:
        """Change what this package keeps about a case, such as its patient; raise CaseError."""
        self.attributes(case)

        def change(document: dict[str, Any]) -> None:
            document["attributes"].setdefault(_OURS, {}).update(attributes)

        _change_group(self.at(case), "zarr.json", change)

    def _list(self, case: str, name: str, *, visible: bool) -> None:
        """Add or remove one name in the list of labels, whoever else changes it meanwhile."""

        def change(document: dict[str, Any]) -> None:
            listing = document["attributes"].setdefault("ome", {"version": ome.VERSION})
            names = set(listing.get("labels", []))
            listing["labels"] = sorted(names | {name} if visible else names - {name})

        _change_group(self.at(case), "labels/zarr.json", change)

    def _renew_consolidated(self, case: str) -> None:
        """Renew the copy of all metadata that zarr-python keeps in the root, where there is one.

        It believes that copy, and would not see what was published since.
        """
        store = self.at(case)
        if "consolidated_metadata" not in store.get_json("zarr.json"):
            return

        def change(document: dict[str, Any]) -> None:
            below = (info.key for info in store.list() if info.key.endswith("/zarr.json"))
            copies = {key.removesuffix("/zarr.json"): store.get_json(key) for key in below}
            document["consolidated_metadata"]["metadata"] = copies

        _change_group(store, "zarr.json", change)

    def _is_same(self, case: str, name: str, own: dict[str, Any]) -> bool:
        """Return whether a label is `own` already; raise RunConflict when it may not become it."""
        present = _with_whole_run(self.label_attributes(case, name))
        present.pop(SHARDS, None)  # of what was published last
        wanted = _with_whole_run(json.loads(as_json(own)))
        differing = sorted(k for k in {*present, *wanted} if present.get(k) != wanted.get(k))
        if not differing:
            return True
        self._check_derived(case, name)
        if "run" not in wanted or not _COPIED.issuperset(differing):
            raise RunConflict(
                f"case {case}: label {name!r} belongs to another run, {present.get('run')}; these "
                f"differ: {', '.join(differing)}. Choose another `output.label`."
            )
        return False

    def _check_derived(self, case: str, name: str) -> None:
        if not self.is_derived(case, name):
            raise RunConflict(
                f"case {case}: label {name!r} came with the case and is never written. "
                "Choose another output label."
            )

    def _attributes(self, case: str, path: str) -> dict[str, Any] | None:
        """Return a group's attributes, or None when there is no such group."""
        key = f"{path}/zarr.json" if path else "zarr.json"
        try:
            document = self.at(case).get_json(key)
        except MissingObject:
            return None
        except InputError as fault:
            raise CaseError(case, str(fault)) from fault
        if not isinstance(document, dict) or document.get("node_type") != "group":
            raise CaseError(case, f"{key} is no Zarr v3 group. Ingest the case again.")
        attributes: dict[str, Any] = document.get("attributes", {})
        return attributes

    def _group(self, case: str, path: str) -> dict[str, Any]:
        """Return the attributes of a case (`path` empty) or of a label; raise CaseError."""
        attributes = self._attributes(case, path)
        if attributes is None:
            name = path.removeprefix("labels/")
            raise CaseError(case, self._no_label(case, name) if path else self._no_case(case))
        return attributes

    def _level(self, case: str, path: str) -> tuple[dict[str, Any], str]:
        """Return the multiscale of an image or label and the path of its finest level."""
        with self._faults_of(case):
            return ome.first_level(self._group(case, path), self._where(case, path))

    def _volume(self, case: str, path: str) -> Volume:
        """Return the finest level of an image or label."""
        multiscale, level = self._level(case, path)
        return Volume(self.at(case), f"{path}/{level}".lstrip("/"), ome.axes_of(multiscale))

    def _spacing_mm(self, case: str, path: str) -> tuple[float, float, float]:
        multiscale, _ = self._level(case, path)
        with self._faults_of(case):
            return ome.spacing(multiscale, self._where(case, path))

    @contextmanager
    def _faults_of(self, case: str) -> Iterator[None]:
        """Say of what is wrong in metadata which case it is in."""
        try:
            yield
        except CaseError:
            raise
        except InputError as fault:
            raise CaseError(case, str(fault)) from fault

    def _where(self, case: str, path: str) -> str:
        return f"{self.at(case).uri}/{path}".rstrip("/")

    def _no_case(self, case: str) -> str:
        if any(self.at(case).head(name) is not None for name in (".zgroup", ".zattrs")):
            return (
                f"{self.at(case).uri} is OME-Zarr 0.4 (Zarr v2), expected 0.5 (Zarr v3). Convert "
                "it, or ingest its NIfTI files."
            )
        return (
            f"no zarr.json at {self.at(case).uri}: the id is wrong, or an ingest was cut short. "
            "Run that ingest again."
        )

    def _no_label(self, case: str, name: str) -> str:
        if self._attributes(case, "") is None:
            return self._no_case(case)
        present = ", ".join(self.label_names(case)) or "no label"
        return (
            f"label {name!r} is missing; the case has {present}. "
            "Ingest that label too, or leave the case out with `cases:`."
        )


def _with_whole_run(own: dict[str, Any]) -> dict[str, Any]:
    """Return a label's attributes with one spelling of its run: relative paths are made whole."""
    return {**own, "run": Store.open(own["run"]).uri} if "run" in own else own


def _change_group(store: Store, key: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Apply `change` to a group's metadata by compare-and-swap, however often others do."""
    for attempt in range(_SWAP_ATTEMPTS):
        document, info = _read_or_new(store, key)
        before = as_json(document)
        change(document)
        if info is not None and as_json(document) == before:
            return
        try:
            store.swap(key, as_json(document), info)
        except Conflict:
            time.sleep(random.uniform(0, 0.01 * min(attempt + 1, 10)))
        else:
            return
    raise RunConflict(
        f"{store.uri}/{key}: changed by others {_SWAP_ATTEMPTS} times in a row. Run again."
    )


def _read_or_new(store: Store, key: str) -> tuple[dict[str, Any], ObjectInfo | None]:
    try:
        document, info = store.read_json(key)
    except MissingObject:
        return ome.group({}), None
    document.setdefault("attributes", {})
    return document, info


def write_case(
    archive: Archive,
    case: str,
    image: Array,
    labels: dict[str, Array],
    *,
    spacing_mm: tuple[float, float, float],
    affine: npt.NDArray[np.float64] | None = None,
    attributes: dict[str, Any] | None = None,
    label_attributes: dict[str, dict[str, Any]] | None = None,
) -> None:
    """Write a new case: `image` CZYX or ZYX, `labels` ZYX on the same voxels.

    The root `zarr.json` is written last, so a case that was cut short is not taken for whole and
    can be written again. Raises CaseError when the case exists, or a label does not fit.
    """
    store = archive.at(case)
    given = {name: as_label(case, name, label, image.shape[-3:]) for name, label in labels.items()}
    multiscale = ome.image_multiscale(case, spacing_mm, with_channels=image.ndim == 4)
    kept = dict(attributes or {})
    if affine is not None:
        kept["affine"] = np.asarray(affine, np.float64).tolist()
    root = {"ome": {"version": ome.VERSION, "multiscales": [multiscale]}, _OURS: kept}
    with _claimed(store, case) as claim:
        if store.head("zarr.json") is not None:
            raise CaseError(case, f"exists already in {archive.store.uri}. Choose another archive.")
        for leftover in ("0", "labels"):
            store.delete_all(leftover)
        kept[SHARDS] = _write_image(store, image)
        for name, label in given.items():
            _write_label(store, name, label, multiscale, (label_attributes or {}).get(name, {}))
        if given:
            listing = {"version": ome.VERSION, "labels": sorted(given)}
            store.put_json("labels/zarr.json", ome.group({"ome": listing}))
        claim.check()
        store.create("zarr.json", as_json(ome.group(root)))


@contextmanager
def _claimed(store: Store, case: str) -> Iterator[RunLock]:
    """Let one process alone write what comes into a case; raise CaseError where another does.

    A holder that died is replaced, and one elsewhere whose claim stands still. Shards are only
    created meanwhile: one that wakes up later writes over nothing.
    """
    claim = RunLock(store, f"ingest of {case}", key=_CLAIM, waits=False)
    try:
        claim.acquire()
        try:
            yield claim
            store.delete(_CLAIM)
        finally:
            claim.release()
    except RunConflict as fault:
        text = "another ingest writes it now. Run this one again after that: it takes what is there"
        raise CaseError(case, f"{text}.") from fault


def _write_image(store: Store, image: Array) -> int:
    """Write the array and return how many objects it has; a shard of zeros has none."""
    channels = image.shape[0] if image.ndim == 4 else None
    z, y, x = image.shape[-3:]
    spec = ImageArraySpec(
        (z, y, x), str(image.dtype), output_shard_zyx((z, y, x)), channels=channels
    )
    numbers: Iterable[int | None] = [None] if channels is None else range(channels)
    shards = 0
    for channel in numbers:
        volume = image if channel is None else image[channel]
        for index in spec.grid.indices():
            block = volume[spec.grid.box(index).slices]
            put = put_shard(store, "0", index, block, spec, channel=channel)
            shards += not put.empty
    create_array(store, "0", spec)
    return shards


def _write_label(
    store: Store,
    name: str,
    label: Array,
    image: dict[str, Any],
    attributes: Mapping[str, Any],
) -> None:
    """Write a label that came in; `image` is the multiscale that it lies on."""
    z, y, x = label.shape
    spec = ArraySpec((z, y, x), str(label.dtype), output_shard_zyx((z, y, x)))
    path, shards = f"labels/{name}/0", 0
    for index in spec.grid.indices():
        block = label[spec.grid.box(index).slices]
        shards += not put_shard(store, path, index, block, spec).empty
    create_array(store, path, spec)
    document = ome.label_group(name, image, {**attributes, SHARDS: shards})
    store.put_json(f"labels/{name}/zarr.json", document)
