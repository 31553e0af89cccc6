"""Archives of cases that are made rather than scanned, each the same whatever others there are."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysegclean.errors import CaseError, ConfigError
from raysegclean.store.archive import Archive, write_case
from raysegclean.store.each import CasesReport, for_each_case
from raysegclean.store.index import load_index
from raysegclean.voxels.boxes import IntLabel
from raysegclean.voxels.surface import Spacing

__all__ = ["Scan", "write_made_archive"]


@dataclass(frozen=True)
class Scan:
    """An image and its labels by name, all of one shape z, y, x."""

    image_zyx: NDArray[Any]
    labels_zyx: Mapping[str, IntLabel]
    spacing_mm: Spacing
    affine: NDArray[np.float64] | None = None
    """From voxels x, y, z to RAS millimetres, if known."""


def write_made_archive(
    dst_uri: str | os.PathLike[str],
    kind: str,
    cases: int,
    recipe: Mapping[str, Any],
    make: Callable[[int], Scan],
) -> CasesReport:
    """Write the cases `<kind>-0000` and on, each its own patient; `make` makes one of a number.

    Cases that are there are reused, so a larger number adds to an archive; one that was made by
    another `recipe` (JSON values) is refused. Two cases are in memory at once. Raises ConfigError
    for less than one case, UnfitEnvironment when nothing can be written.
    """
    if cases < 1:
        raise ConfigError(f"An archive of {kind} cases needs at least one case, got {cases}.")
    archive = Archive.open(dst_uri)
    archive.check_writable()
    numbers = {f"{kind}-{number:04d}": number for number in range(cases)}

    def one(case: str) -> str:
        wanted = {**recipe, "index": numbers[case]}
        if archive.at(case).head("zarr.json") is not None:
            present = archive.attributes(case).get(kind)
            if present != wanted:
                raise CaseError(
                    case,
                    f"exists in {archive.store.uri} as {present or f'no {kind}'}, wanted {wanted}. "
                    "Choose another place.",
                )
            return "reused"
        scan = make(numbers[case])
        write_case(
            archive,
            case,
            scan.image_zyx,
            {**scan.labels_zyx},
            spacing_mm=scan.spacing_mm,
            affine=scan.affine,
            attributes={"patient": case, kind: wanted},
        )
        return "written"

    done, failed = for_each_case(numbers, one)
    load_index(archive)
    return CasesReport(done, failed)
