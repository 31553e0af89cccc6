"""Collecting the facts of a case for the integrity checks: one pass over its label and image.

Memory is that of two regions of 256^3 voxels, whatever the case.
"""

from collections.abc import Iterator
from hashlib import blake2b

from raysegclean.core.cases import CaseInfo
from raysegclean.core.facts import BlockFacts, LabelFacts, block_facts, label_facts
from raysegclean.core.geometry import Box, Grid, Index3
from raysegclean.store.archive import Archive
from raysegclean.store.arrays import Volume

__all__ = ["about_case", "collect_facts", "read_block_facts"]

_REGION_ZYX: Index3 = (256, 256, 256)


def about_case(archive: Archive, info: CaseInfo, label: str) -> LabelFacts:
    """Return what is known of a case without its voxels."""
    affine = archive.affine(info.case)
    image = (info.shape_zyx, info.channels, info.spacing_mm, info.intensity)
    return LabelFacts(
        case=info.case,
        shape_zyx=info.shape_zyx,
        spacing_mm=info.spacing_mm,
        affine=None if affine is None else tuple(tuple(row) for row in affine.tolist()),
        label_spacing_mm=archive.label_spacing_mm(info.case, label),
        image_key=blake2b(repr(image).encode(), digest_size=16).hexdigest(),
        label_key="",
        intensity=info.intensity,
    )


def collect_facts(
    archive: Archive, info: CaseInfo, label: str, *, with_image: bool = True
) -> LabelFacts:
    """Return the facts of one case; without `with_image` intensities stay unknown.

    Raises CaseError or InputError when label or image cannot be read.
    """
    about = about_case(archive, info, label)
    return label_facts(_blocks(archive, info, label, with_image=with_image), about)


def read_block_facts(label: Volume, image: Volume | None, info: CaseInfo, core: Box) -> BlockFacts:
    """Return the facts of one block of a case."""
    z, y, x = (min(b + 1, n) for b, n in zip(core.stop_zyx, info.shape_zyx, strict=True))
    window = Box(core.start_zyx, (z, y, x))
    coming = label.start(window)
    grey = None if image is None else image.read(window)
    if grey is not None and grey.ndim == 4:
        grey = grey[0]
    return block_facts(coming.result(), window, core, info.shape_zyx, grey, info.intensity)


def _blocks(
    archive: Archive, info: CaseInfo, label: str, *, with_image: bool
) -> Iterator[BlockFacts]:
    grid = Grid(info.shape_zyx, _REGION_ZYX)
    labels = archive.label(info.case, label)
    image = archive.image(info.case) if with_image else None
    for index in grid.indices():
        yield read_block_facts(labels, image, info, grid.box(index))
