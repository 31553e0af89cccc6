"""At which spacing networks see the archive, in millimetres.

A network that reads native voxels sees some 2 cm of a fine CT, which does not tell a kidney from
the other one. So the voxels of one window are spread over the body: the working spacing is, per
axis, max(m, t), where m is the archive's median spacing and t >= 0 the smallest length for which
the median field of view, of which 400 mm count along each axis, fits into `budget_vox` voxels:

    prod over axes of  min(f, 400 mm) / max(m, t)  <=  budget_vox

It is never finer than the archive. A CT of 366 x 303 x 300 mm is seen at 8 mm by networks that
read 65,536 voxels, at 2.6 mm by those that read 2,000,000.

Where a window holds half of a case at its own spacing (hippocampi, cells, nodules), little is to be
gained and detail would be lost; so such archives stay native, even where their spacings differ.
Pure: spacings and shapes in, a spacing out.
"""

import math
from collections.abc import Sequence
from statistics import median_high

from raysegclean.evidence.cases import CaseImage
from raysegclean.voxels.geometry import triple
from raysegclean.voxels.resampling import Spacing, WorkingGrid

__all__ = ["plan_spacing", "spacing_notes"]

FIELD_MM = 400.0
ENOUGH = 0.5
"""Share of a case in one window that leaves an archive native."""
_DIGITS = 2


def plan_spacing(images: Sequence[CaseImage], budget_vox: int, *, dims: int = 3) -> Spacing | None:
    """Return the working spacing (z, y, x) for an archive; None where its own voxels are best.

    With `dims` 2 networks read slices one by one: only their field counts, and z is 0, which
    leaves it native.
    """
    spacings = zip(*(image.spacing_mm for image in images), strict=True)
    spacing = triple(map(median_high, spacings))
    fields = zip(*(_field_mm(image) for image in images), strict=True)
    field = triple(min(median_high(along), FIELD_MM) for along in fields)
    axes = [(f, m) for f, m in zip(field, spacing, strict=True)][3 - dims :]

    def voxels(t: float) -> float:
        return math.prod(max(1.0, f / max(m, t)) for f, m in axes)

    if budget_vox >= ENOUGH * voxels(0.0):
        return None
    low, high = 0.0, max(field)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if voxels(middle) <= budget_vox else (middle, high)
    t = _rounded_up(high)
    z, y, x = (max(m, t) for m in spacing)
    return (0.0 if dims == 2 else z, y, x)


def spacing_notes(images: Sequence[CaseImage], spacing_mm: Spacing | None) -> tuple[str, ...]:
    """Return at which spacing networks see the cases, in a sentence; nothing where all are native.

    An edge of 0 mm stays native.
    """
    if spacing_mm is None:
        return ()
    grids = [WorkingGrid(image.shape_zyx, image.spacing_mm, spacing_mm) for image in images]
    resampled = sum(not grid.is_native for grid in grids)
    edges = " x ".join(f"{edge:g}" if edge else "native" for edge in spacing_mm)
    note = (
        f"Networks see voxels of {edges} mm (z, y, x): {resampled} of {len(grids)} cases are "
        "resampled as they are read. Labels stay on their own voxels."
    )
    return (note,)


def _field_mm(image: CaseImage) -> Spacing:
    return triple(n * s for n, s in zip(image.shape_zyx, image.spacing_mm, strict=True))


def _rounded_up(length: float) -> float:
    """Return the next length of two digits that is no shorter."""
    unit = 10.0 ** (math.floor(math.log10(length)) + 1 - _DIGITS)
    return float(f"{math.ceil(length / unit - 1e-9) * unit:.6g}")
