"""The archives of the scoreboard: made once per data set, scenario and seed, under bench/methods.

Every archive has the labels `given` and `given_truth`. In scenarios with trusted cases some also
have `expert`, a copy of the truth: methods may learn from it, and no score counts those cases.
"""

from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

import numpy as np
from cells import LABEL, NIFTI, SCOREBOARD, TRUTH, ingest
from grid import DATA, PHANTOM, TRUSTED, Scenario

from raysegclean.errors import MissingObject, RaysegcleanError
from raysegclean.simulate.noise import NOISES
from raysegclean.simulate.noisy_archive import load_simulated, simulate
from raysegclean.simulate.phantom import write_phantom_archive
from raysegclean.store.archive import Archive, write_case
from raysegclean.store.index import load_index

__all__ = ["EXPERT", "MAJORITY", "Unavailable", "noisy_cases", "open_archive", "trusted_cases"]

EXPERT, MAJORITY = "expert", "majority"
CROWD = "cells_crowd"
MANIFEST = "scoreboard.json"


class Unavailable(Exception):
    """A scenario cannot be made here; the message says why."""


def open_archive(source: Path, data: str, scenario: Scenario, seed: int) -> Archive:
    """Return the archive of a scenario, making what of it is missing.

    Raises Unavailable where the noise or the real data is not there.
    """
    if scenario.noise not in ("", "annotator", *NOISES):
        raise Unavailable(f"there is no noise {scenario.noise!r} yet")
    place = SCOREBOARD / data / f"{scenario.place}-s{seed}" / "archive"
    archive = Archive.open(str(place))
    wanted = {"data": data, "scenario": scenario.place, "seed": seed, "params": {**scenario.params}}
    try:
        made = archive.store.get_json(MANIFEST)
    except MissingObject:
        made = None
    if made is None:
        _make(source, data, scenario, archive, seed)
        archive.store.put_json(MANIFEST, wanted)
    elif made != wanted:
        raise Unavailable(f"{place} was made as {made}, wanted {wanted}. Delete it")
    return archive


def _make(source: Path, data: str, scenario: Scenario, archive: Archive, seed: int) -> None:
    if scenario.noise == "annotator":
        _write_crowd(source, archive, seed)
    else:
        made = simulate(
            _clean(source, data),
            archive.store.uri,
            LABEL,
            noise=scenario.noise or "boundary",
            fraction=scenario.share,
            seed=seed,
            params=scenario.params,
        )
        if made.failed:
            raise made.failed[0]
    if scenario.trusted or scenario.noise == "annotator":
        for case in sorted(_first_cases(archive, seed, scenario.trusted or TRUSTED)):
            truth = archive.label(case, TRUTH).read_all()
            if EXPERT not in archive.label_names(case):
                archive.add_label(case, EXPERT, truth, {})
    load_index(archive)


def _clean(source: Path, data: str) -> Archive:
    place = SCOREBOARD / data / "clean"
    if data == "phantom":
        write_phantom_archive(
            str(place),
            PHANTOM.cases,
            shape_zyx=PHANTOM.shape_zyx,
            spacing_mm=PHANTOM.spacing_mm,
            label=LABEL,
        )
        return Archive.open(str(place))
    if data in NIFTI:
        try:
            return ingest(source, data, place, patients=DATA[data].patients)
        except (RaysegcleanError, FileNotFoundError) as error:
            raise Unavailable(f"{data} is not in {source} ({error})") from error
    archive = Archive.open(str(place))
    for file in _crowd_files(source):
        if archive.at(file.stem).head("zarr.json") is None:
            with np.load(file, allow_pickle=False) as arrays:
                _write_image(archive, file.stem, arrays["image"], {LABEL: arrays["gold"]})
    return archive


def _crowd_files(source: Path) -> list[Path]:
    files = sorted((source / CROWD).glob("*.npz"))
    if not files:
        raise Unavailable(f"{CROWD} is not in {source}")
    return files


def _write_crowd(source: Path, archive: Archive, seed: int) -> None:
    """Give every image one annotator's outline, another annotator from image to image."""
    for file in _crowd_files(source):
        if archive.at(file.stem).head("zarr.json") is not None:
            continue
        with np.load(file, allow_pickle=False) as arrays:
            crowd = arrays["crowd"]
            chosen = _hash(seed, "annotator", file.stem) % len(crowd)
            majority = 2 * crowd.sum(axis=0) > len(crowd)
            labels = {LABEL: crowd[chosen], TRUTH: arrays["gold"], MAJORITY: majority}
            _write_image(archive, file.stem, arrays["image"], labels)


def _write_image(
    archive: Archive, case: str, image_yx: np.ndarray, labels_yx: dict[str, np.ndarray]
) -> None:
    """Write an image as a case of one slice and its own patient."""
    write_case(
        archive,
        case,
        image_yx[None].astype(np.int16),
        {name: label[None].astype(np.uint8) for name, label in labels_yx.items()},
        spacing_mm=(1.0, 1.0, 1.0),
        attributes={"patient": case},
    )


def trusted_cases(archive: Archive, scenario: Scenario) -> frozenset[str]:
    """Return the cases that no score counts, because a method may have learnt from their truth."""
    if not scenario.trusted and scenario.noise != "annotator":
        return frozenset()
    cases = archive.case_ids()
    return frozenset(case for case in cases if EXPERT in archive.label_names(case))


def noisy_cases(archive: Archive, scenario: Scenario, cases: Iterable[str]) -> list[str]:
    """Return which of the cases have a label that is not the truth."""
    wrong = archive.case_ids() if scenario.noise == "annotator" else load_simulated(archive)
    return sorted(set(wrong) & set(cases))


def _first_cases(archive: Archive, seed: int, count: int) -> list[str]:
    """Return so many cases, of different patients, in an order set by the seed."""
    patients: dict[str, str] = {}
    for case in sorted(archive.case_ids(), key=lambda name: _hash(seed, "trusted", name)):
        patients.setdefault(archive.attributes(case).get("patient") or case, case)
    return list(patients.values())[:count]


def _hash(*parts: object) -> int:
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=8).digest(), "big")
