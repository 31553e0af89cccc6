"""From an archive back to NIfTI files.

A label that came from NIfTI, and every label made from it, is written with the dtype, affine,
voxel sizes and codes of the file that came in. Files appear whole or not at all.
"""

import os
from collections.abc import Iterable
from hashlib import sha256

import numpy as np

from raysegclean.errors import CaseError
from raysegclean.store.archive import Archive
from raysegclean.store.each import CasesReport, for_each_case
from raysegclean.store.nifti import encode_nifti
from raysegclean.store.objects import Store
from raysegclean.store.presence import check_shards

__all__ = ["export_nifti"]


def export_nifti(
    archive: Archive,
    label: str | None,
    out_dir: str | os.PathLike[str],
    cases: Iterable[str] | None = None,
) -> CasesReport:
    """Write `<case>.nii.gz` for each case into `out_dir`: the label, or the image for None.

    A label that was begun and not published is an error of its case, and so is a file that came
    into the archive: it is never written over. Raises InputError when there is no case at all,
    UnfitEnvironment when `out_dir` cannot be written.
    """
    wanted, place = archive.wanted_cases(cases), Store.open(out_dir)
    place.check_writable()
    done, failed = for_each_case(wanted, lambda case: _export(archive, case, label, place))
    return CasesReport(dict.fromkeys(done, "written"), failed)


def _export(archive: Archive, case: str, label: str | None, place: Store) -> None:
    key = f"{case}.nii.gz"
    if place.head(key) is not None and _came_in(archive, case, place.get(key)):
        raise CaseError(
            case,
            f"{place.uri}/{key} is a file that was ingested, and would be written over. Choose "
            "another folder.",
        )
    place.put(key, _encoded(archive, case, label))


def _came_in(archive: Archive, case: str, data: bytes) -> bool:
    own = [archive.label_attributes(case, name) for name in archive.label_names(case)]
    known = {one.get("source_sha256") for one in (archive.attributes(case), *own)}
    return sha256(data).hexdigest() in known


def _encoded(archive: Archive, case: str, label: str | None) -> bytes:
    if label is None:
        volume, own = archive.image(case), archive.attributes(case)
        check_shards(case, volume, own)
    else:
        volume, own = archive.published_label(case, label), archive.label_attributes(case, label)
    header = own.get("nifti") or archive.attributes(case).get("nifti")
    if header is not None and "nifti" not in own:
        header = {name: value for name, value in header.items() if name not in ("dtype", "shape")}
    affine = archive.affine(case)
    if affine is None:  # the right voxel sizes and no rotation
        affine = np.diag([*archive.spacing_mm(case)[::-1], 1.0])
    return encode_nifti(volume.read_all(), header, affine)
