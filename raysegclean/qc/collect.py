"""Collecting the facts of a case for the integrity checks: one pass over its label and image.

Memory is that of two regions of 256^3 voxels, whatever the case.
"""

from collections.abc import Iterator
from hashlib import blake2b

from raysegclean.evidence.cases import CaseImage
from raysegclean.qc.label_statistics import (
    BlockStatistics,
    LabelStatistics,
    block_statistics,
    label_statistics,
)
from raysegclean.store.archive import Archive
from raysegclean.store.arrays import Volume
from raysegclean.voxels.geometry import Box, Grid, Index3, triple

__all__ = ["about_case", "collect_statistics", "read_affine", "read_block_statistics"]

_REGION_ZYX: Index3 = (256, 256, 256)


def about_case(case: CaseImage, affine: tuple[tuple[float, ...], ...] | None) -> LabelStatistics:
    """Return what is known of a case without its voxels."""
    image = (case.shape_zyx, case.spacing_mm, case.intensity)
    return LabelStatistics(
        case=case.case,
        shape_zyx=case.shape_zyx,
        spacing_mm=case.spacing_mm,
        affine=affine,
        image_key=blake2b(repr(image).encode(), digest_size=16).hexdigest(),
        label_key="",
        intensity=case.intensity,
    )


def read_affine(archive: Archive, case: str) -> tuple[tuple[float, ...], ...] | None:
    """Return the affine of a case as plain values, None where it has none."""
    affine = archive.affine(case)
    return None if affine is None else tuple(map(tuple, affine.tolist()))


def collect_statistics(
    archive: Archive,
    case: CaseImage,
    label: str,
    *,
    with_image: bool = True,
    ignored: int | None = None,
) -> LabelStatistics:
    """Return the facts of one case; without `with_image` intensities stay unknown.

    Raises CaseError or InputError when label or image cannot be read.
    """
    about = about_case(case, read_affine(archive, case.case))
    return label_statistics(_blocks(archive, case, label, with_image=with_image), about, ignored)


def read_block_statistics(
    label: Volume, image: Volume | None, case: CaseImage, core: Box
) -> BlockStatistics:
    """Return the facts of one block of a case."""
    stop = triple(min(b + 1, n) for b, n in zip(core.stop_zyx, case.shape_zyx, strict=True))
    window = Box(core.start_zyx, stop)
    coming = label.start(window)
    grey = None if image is None else image.read(window)
    if grey is not None and grey.ndim == 4:
        grey = grey[0]
    return block_statistics(coming.result(), window, core, case.shape_zyx, grey, case.intensity)


def _blocks(
    archive: Archive, case: CaseImage, label: str, *, with_image: bool
) -> Iterator[BlockStatistics]:
    grid = Grid(case.shape_zyx, _REGION_ZYX)
    labels = archive.label(case.case, label)
    image = archive.image(case.case) if with_image else None
    for index in grid.indices():
        yield read_block_statistics(labels, image, case, grid.box(index))
