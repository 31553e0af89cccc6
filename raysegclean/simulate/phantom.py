"""CT-like cases with a known truth, of any number and size, and archives of them.

A case is one trunk from mid chest to kidneys, drawn in coordinates of the field of view: it fills
the volume whatever its shape and spacing, so organs scale with the volume and are always present.
Intensities are in HU: organs of contrast-enhanced CT with case-wise mean, texture, partial volume,
scanner blur and noise. Heart, spleen, aorta and stomach look much like labelled organs and carry no
label, so intensity alone does not segment. Liver touches lung, and in many cases kidney.

Bodies (`bodies`) need context to be told: left and right organs look alike and are classes of their
own, vertebrae are counted from below, and cases differ in voxel size and field of view.

Guaranteed: case `index` of `seed` is the same whatever other cases exist, and volumes are built in
slabs, so memory is about 60 bytes per voxel of a slab plus 3 bytes per voxel of the case. Not
guaranteed: anatomy beyond what is written here; scores on it say nothing about patients.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from raysegclean.errors import ConfigError
from raysegclean.simulate.fields import Field, scanner_noise, spline
from raysegclean.simulate.made_archive import Scan, write_made_archive
from raysegclean.store.each import CasesReport
from raysegclean.voxels.geometry import Index3, triple
from raysegclean.voxels.surface import Spacing

__all__ = ["BODY_CLASSES", "PHANTOM_CLASSES", "body_case", "phantom_case", "write_phantom_archive"]

PHANTOM_CLASSES = {1: "lungs", 2: "liver", 3: "kidneys", 4: "spine"}
"""Label values; both kidneys, and both lungs, are one class."""

VERTEBRAE = 6
"""Vertebrae of a body that are counted; what lies above belongs to the last."""
_ORGANS = ("lung right", "lung left", "liver", "kidney right", "kidney left", "spleen", "stomach")
BODY_CLASSES = dict(enumerate(_ORGANS, 1)) | {
    8 + number: f"vertebra {number + 1}" for number in range(VERTEBRAE)
}
"""Label values of bodies."""
_FIRST_VERTEBRA = 8

MIN_SHAPE_ZYX = (8, 32, 32)
SLAB_VOXELS = 1 << 21
BLUR_SLICES = 3
AIR_HU = -1000.0
GRAIN_MM = 8.0
MAX_WARP = 0.25
"""No voxel is displaced by more than this share of half the volume."""


@dataclass(frozen=True)
class _Part:
    """An ellipsoid; z up, y to the back, x to the left, each from -1 to 1 over the volume."""

    name: str
    centre_zyx: tuple[float, float, float]
    radius_zyx: tuple[float, float, float]
    hu: float
    sd_hu: float
    """Spread of the mean HU over cases."""
    value: int = 0
    """Label value; 0 for what carries no label."""
    of_body: int = 0
    """The same in a body, that of the lowest vertebra for the spine."""
    wander: float = 0.03
    """Spread of the centre over cases; the radii vary by 7 %."""


# Later parts are painted over earlier ones.
_PARTS = (
    _Part("fat", (0.0, 0.0, 0.0), (9.0, 0.74, 0.92), -100, 8, wander=0.01),
    _Part("muscle", (0.0, 0.02, 0.0), (9.0, 0.64, 0.84), 50, 6, wander=0.01),
    _Part("lung", (0.95, -0.04, -0.42), (0.95, 0.46, 0.32), -820, 30, 1, 1),
    _Part("lung", (0.95, -0.04, 0.42), (0.95, 0.46, 0.32), -820, 30, 1, 2),
    _Part("heart", (0.70, -0.14, 0.10), (0.40, 0.26, 0.27), 130, 15, wander=0.04),
    _Part("stomach", (-0.05, -0.22, 0.40), (0.32, 0.20, 0.24), 35, 12, of_body=7, wander=0.05),
    _Part("spleen", (-0.08, 0.18, 0.58), (0.30, 0.20, 0.15), 105, 8, of_body=6),
    _Part("liver", (-0.02, -0.06, -0.36), (0.46, 0.42, 0.40), 105, 8, 2, 3),
    _Part("kidney", (-0.60, 0.34, -0.43), (0.30, 0.13, 0.13), 165, 12, 3, 4),
    _Part("kidney", (-0.54, 0.34, 0.43), (0.30, 0.13, 0.13), 165, 12, 3, 5),
    _Part("aorta", (0.0, 0.24, 0.07), (9.0, 0.06, 0.06), 180, 15, wander=0.01),
    _Part("spine", (0.0, 0.42, 0.0), (9.0, 0.15, 0.16), 210, 20, 4, _FIRST_VERTEBRA, wander=0.01),
)


@dataclass(frozen=True)
class _Placed:
    """A part as it is in one case."""

    part: _Part
    centre_zyx: Field
    radius_zyx: Field
    hu: float


@dataclass(frozen=True)
class _Anatomy:
    """All that is random in one case but its noise, drawn once; slabs only evaluate it."""

    parts: tuple[_Placed, ...]
    warp: Field
    """Displacement at the nodes of a coarse grid (axis, nodes z, y, x)."""
    texture: Field
    """HU offset at the nodes of a fine grid (nodes z, y, x)."""
    vertebrae: tuple[float, float]
    """Radians of the row of vertebrae per half height, and its phase."""
    noise_hu: float
    is_body: bool = False


def phantom_case(
    seed: int, index: int, shape_zyx: Index3, spacing_mm: Spacing
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Return image (HU, int16) and label (uint8, PHANTOM_CLASSES) of one case, axes z, y, x.

    The spacing sets the scanner's blur (sigma 0.9 mm in plane) and the grain of the texture (8 mm).
    Raises ConfigError for a volume below 8 x 32 x 32 voxels.
    """
    if any(n < least for n, least in zip(shape_zyx, MIN_SHAPE_ZYX, strict=True)):
        raise ConfigError(
            f"A phantom needs at least {MIN_SHAPE_ZYX} voxels (z, y, x) to hold all organs, "
            f"got {shape_zyx}."
        )
    anatomy = _draw(np.random.default_rng([seed, index]), shape_zyx, spacing_mm)
    return _scanned(anatomy, (seed, index), shape_zyx, spacing_mm)


def body_case(
    seed: int, index: int, shape_zyx: Index3, spacing_mm: Spacing
) -> tuple[NDArray[np.int16], NDArray[np.uint8], Spacing]:
    """Return image, label (BODY_CLASSES) and voxel size of one body, axes z, y, x.

    `shape_zyx` and `spacing_mm` are those of a whole body; a case has coarser or finer voxels, and
    in half of the cases up to a fifth of the slices is missing, at each end. Raises ConfigError as
    `phantom_case`.
    """
    rng = np.random.default_rng([seed, index, 1])
    pixel, depth = float(rng.choice((0.85, 1.0, 1.2))), float(rng.choice((1.0, 1.5, 2.0)))
    edges = triple(e * f for e, f in zip(spacing_mm, (depth, pixel, pixel), strict=True))
    size_mm = np.multiply(shape_zyx, spacing_mm)
    shape = triple(int(n) for n in np.maximum(np.rint(size_mm / edges), MIN_SHAPE_ZYX))
    first, last = (int(rng.uniform(0, 0.2) * shape[0] * (rng.random() < 0.5)) for _ in "ab")
    anatomy = _draw(np.random.default_rng([seed, index]), shape, edges)
    turns, phase = anatomy.vertebrae
    row = (np.pi * (4.4 + 0.2 * (turns - 9)), 0.3 * phase)  # some five, of which the lowest is cut
    body = replace(anatomy, vertebrae=row, is_body=True)
    image, label = _scanned(body, (seed, index), shape, edges)
    seen = slice(first, shape[0] - last)
    return image[seen], label[seen], edges


def _scanned(
    anatomy: _Anatomy, key: tuple[int, int], shape_zyx: Index3, spacing_mm: Spacing
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    sigma = (0.4, *(float(np.clip(0.9 / edge, 0.5, 2.0)) for edge in spacing_mm[1:]))
    image = np.empty(shape_zyx, np.int16)
    label = np.empty(shape_zyx, np.uint8)
    depth = max(1, SLAB_VOXELS // (shape_zyx[1] * shape_zyx[2]))
    for start, stop in pairwise([*range(0, shape_zyx[0], depth), shape_zyx[0]]):
        # Slices around the slab make its blur that of the whole volume.
        low, high = max(0, start - BLUR_SLICES), min(shape_zyx[0], stop + BLUR_SLICES)
        hu, classes = _paint(anatomy, shape_zyx, low, high)
        blurred = ndimage.gaussian_filter(hu, sigma, mode="nearest", truncate=3.0)
        for z in range(start, stop):
            rng = np.random.default_rng([*key, z])
            noisy = blurred[z - low] + anatomy.noise_hu * scanner_noise(rng, shape_zyx[1:])
            image[z] = np.clip(np.rint(noisy), -1024, 3071)
        label[start:stop] = classes[start - low : stop - low]
    return image, label


def _draw(rng: np.random.Generator, shape_zyx: Index3, spacing_mm: Spacing) -> _Anatomy:
    parts = tuple(_place(part, rng) for part in _PARTS)
    size_mm = np.multiply(shape_zyx, spacing_mm)
    grain = np.clip(np.ceil(size_mm / GRAIN_MM).astype(int) + 3, 4, 64)
    return _Anatomy(
        parts=parts,
        warp=rng.normal(0, 0.11, (3, 6, 7, 7)).clip(-MAX_WARP, MAX_WARP).astype(np.float32),
        texture=rng.normal(0, 35, grain).astype(np.float32),
        vertebrae=(float(rng.uniform(9, 12)), float(rng.uniform(0, 2 * np.pi))),
        noise_hu=float(rng.uniform(14, 24)),
    )


def _place(part: _Part, rng: np.random.Generator) -> _Placed:
    moved = np.add(part.centre_zyx, rng.normal(0, part.wander, 3).clip(-0.06, 0.06))
    scaled = np.multiply(part.radius_zyx, 1 + rng.normal(0, 0.07, 3).clip(-0.14, 0.14))
    hu = float(rng.normal(part.hu, part.sd_hu))
    return _Placed(part, moved.astype(np.float32), scaled.astype(np.float32), hu)


def _paint(
    anatomy: _Anatomy, shape_zyx: Index3, low: int, high: int
) -> tuple[Field, NDArray[np.uint8]]:
    """Return HU, without blur and noise, and classes of the slices low..high."""
    axes = [((np.arange(n) + 0.5) * 2 / n - 1).astype(np.float32) for n in shape_zyx]
    axes[0] = axes[0][low:high]
    straight = np.meshgrid(*axes, indexing="ij", sparse=True)
    where = [spline(nodes, axes) + x for nodes, x in zip(anatomy.warp, straight, strict=True)]
    hu = np.full(where[0].shape, AIR_HU, np.float32)
    classes = np.zeros(where[0].shape, np.uint8)
    in_trunk = np.ones(where[0].shape, np.bool_)
    for placed in anatomy.parts:
        near = _near(placed, axes)
        here = [x[near] for x in where]
        square = _square(placed, here)
        inside = (square < 1) & in_trunk[near]
        if placed.part.name == "muscle":  # no organ leaves it
            in_trunk = inside
        inner = [x[inside] for x in here]
        hu[near][inside] = placed.hu + _detail(placed, anatomy, inner, square[inside])
        classes[near][inside] = _value(placed.part, anatomy, inner[0])
    hu += spline(anatomy.texture, axes) * (hu > AIR_HU)
    return hu, classes


def _value(part: _Part, anatomy: _Anatomy, z: Field) -> NDArray[np.uint8] | int:
    """Return the label value of a part at the heights z."""
    if not anatomy.is_body:
        return part.value
    if part.name != "spine":
        return part.of_body
    turns, phase = anatomy.vertebrae
    number = np.floor((turns * (z + 1) + phase) / (2 * np.pi))
    return np.asarray(part.of_body + number.clip(0, VERTEBRAE - 1), np.uint8)


def _near(placed: _Placed, axes: Sequence[Field]) -> tuple[slice, ...]:
    """Return the voxels that could lie in a part, however they are displaced; all for `muscle`."""
    if placed.part.name == "muscle":
        return tuple(slice(None) for _ in axes)
    reach = placed.radius_zyx + MAX_WARP
    low, high = placed.centre_zyx - reach, placed.centre_zyx + reach
    return tuple(
        slice(int(np.searchsorted(axis, a)), int(np.searchsorted(axis, b)))
        for axis, a, b in zip(axes, low, high, strict=True)
    )


def _square(placed: _Placed, where: Sequence[Field]) -> Field:
    """Return the squared distance from the centre in units of the radii."""
    square = np.zeros_like(where[0])
    for x, centre, radius in zip(where, placed.centre_zyx, placed.radius_zyx, strict=True):
        square += ((x - centre) / radius) ** 2
    return square


def _detail(
    placed: _Placed, anatomy: _Anatomy, where: Sequence[Field], square: Field
) -> Field | float:
    """Return what a part's HU adds inside; `square` is the squared distance from centre to rim."""
    z, y, x = where
    if placed.part.name == "spine":
        vertebrae, phase = anatomy.vertebrae
        start = vertebrae + np.pi if anatomy.is_body else 0.0  # discs lie between numbers
        disc = np.where(
            np.cos(vertebrae * z + phase + start) < -0.75, np.float32(-110), np.float32(0)
        )
        rim = np.where(square > 0.7, np.float32(120), np.float32(0))
        canal_y = placed.centre_zyx[1] + 0.45 * placed.radius_zyx[1]
        radius = 0.35 * placed.radius_zyx[1]
        canal = (y - canal_y) ** 2 + (x - placed.centre_zyx[2]) ** 2 < radius**2
        return np.where(canal, np.float32(30 - placed.hu), disc + rim)
    if placed.part.name == "kidney":  # the renal pelvis is darker
        return np.where(square < 0.12, np.float32(-90), np.float32(0))
    if placed.part.name == "stomach":  # gas floats to the front
        return np.where(y < placed.centre_zyx[1] - 0.08, np.float32(-700), np.float32(0))
    return 0.0


def write_phantom_archive(
    dst_uri: str | os.PathLike[str],
    cases: int,
    *,
    shape_zyx: Index3 = (32, 96, 96),
    spacing_mm: Spacing = (2.5, 1.5, 1.5),
    seed: int = 0,
    label: str = "organs",
    bodies: bool = False,
) -> CasesReport:
    """Write `cases` phantoms, each its own patient and the same whatever their number.

    With `bodies` they are those of `body_case`.

    As `simulate.made_archive` says. Raises ConfigError for less than one case or too small a shape,
    UnfitEnvironment when nothing can be written.
    """
    recipe = {"seed": seed, "shape_zyx": [*shape_zyx], "spacing_mm": [*spacing_mm], "label": label}
    recipe |= {"bodies": True} if bodies else {}

    def make(index: int) -> Scan:
        if bodies:
            image, organs, edges = body_case(seed, index, shape_zyx, spacing_mm)
            return Scan(image, {label: organs}, edges)
        image, organs = phantom_case(seed, index, shape_zyx, spacing_mm)
        return Scan(image, {label: organs}, spacing_mm)

    return write_made_archive(dst_uri, "phantom", cases, recipe, make)
