"""Archives of phantoms (`simulate.phantom`), of any number and size, for demos and scale tests."""

import os
from typing import Any

from raysegclean.errors import CaseError, ConfigError
from raysegclean.simulate.phantom import phantom_case
from raysegclean.store.archive import Archive, write_case
from raysegclean.store.each import CasesReport, for_each_case
from raysegclean.store.index import load_index
from raysegclean.voxels.geometry import Index3
from raysegclean.voxels.surface import Spacing

__all__ = ["write_phantom_archive"]


def write_phantom_archive(
    dst_uri: str | os.PathLike[str],
    cases: int,
    *,
    shape_zyx: Index3 = (32, 96, 96),
    spacing_mm: Spacing = (2.5, 1.5, 1.5),
    seed: int = 0,
    label: str = "organs",
) -> CasesReport:
    """Write `cases` phantoms, each its own patient and the same whatever their number.

    Case ids are `phantom-0000` and on. Cases that are there are reused, so a larger number adds to
    an archive; a case made otherwise is refused. Raises ConfigError for less than one case or too
    small a shape, UnfitEnvironment when nothing can be written.
    """
    if cases < 1:
        raise ConfigError(f"An archive of phantoms needs at least one case, got {cases}.")
    archive = Archive.open(dst_uri)
    archive.check_writable()
    numbers = {f"phantom-{number:04d}": number for number in range(cases)}

    def one(case: str) -> str:
        recipe: dict[str, Any] = {"seed": seed, "index": numbers[case], "shape_zyx": [*shape_zyx]}
        recipe |= {"spacing_mm": [*spacing_mm], "label": label}
        if archive.at(case).head("zarr.json") is not None:
            _check_recipe(archive, case, recipe)
            return "reused"
        image, organs = phantom_case(seed, numbers[case], shape_zyx, spacing_mm)
        about = {"patient": case, "phantom": recipe}
        write_case(archive, case, image, {label: organs}, spacing_mm=spacing_mm, attributes=about)
        return "written"

    done, failed = for_each_case(numbers, one)
    load_index(archive)
    return CasesReport(done, failed)


def _check_recipe(archive: Archive, case: str, recipe: dict[str, Any]) -> None:
    present = archive.attributes(case).get("phantom")
    if present != recipe:
        raise CaseError(
            case,
            f"exists in {archive.store.uri} as {present or 'no phantom'}, wanted {recipe}. "
            "Choose another place.",
        )
