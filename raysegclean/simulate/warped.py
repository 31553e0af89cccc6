"""One labelled CT, warped into an archive of patients whose truth is known.

A case is the CT turned, scaled and smoothly deformed, with organs brighter or darker than they
were, another voxel size, other noise, and here and there a shorter field of view: what differs
between the patients and scanners of an archive. Labels are warped with the image. What one CT does
not show, as another disease, no case shows.

Guaranteed: case `index` of `seed` is the same whatever other cases exist; the deformation folds
nothing, so that neighbours stay neighbours; a class vanishes only with its part of the field of
view, or where it is thinner than a voxel. Volumes are built in slabs: memory is 8 bytes per voxel
of the CT, those of the case itself, and about 80 bytes per voxel of a slab.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from raysegclean.errors import ConfigError, InputError
from raysegclean.simulate.fields import Field, scanner_noise, spline
from raysegclean.simulate.made_archive import Scan, write_made_archive
from raysegclean.store.each import CasesReport
from raysegclean.store.fit import as_label
from raysegclean.store.nifti import decode_nifti
from raysegclean.store.objects import Store
from raysegclean.voxels.boxes import IntLabel
from raysegclean.voxels.geometry import Index3, triple
from raysegclean.voxels.surface import Spacing

__all__ = ["Variety", "grouped", "read_scan", "warped_case", "write_warped_archive"]

SLAB_VOXELS = 1 << 20
NODE_MM = 70.0
"""Distance of the nodes of a deformation."""
MAX_WARP = 0.3
"""No node is displaced by more than this share of the distance of nodes. Cubic B-splines fold
nothing below 0.4 (Choi & Lee 2000), which the scale takes a tenth of."""
MIN_EDGE_VOX = 8


@dataclass(frozen=True)
class Variety:
    """How much cases differ. Voxel sizes are factors of the CT's own."""

    pixels: tuple[float, ...] = (0.87, 1.0, 1.2)
    """Factors of the voxel's edge in plane, one of which a case has."""
    slices: tuple[float, ...] = (1.0, 1.33, 1.67, 2.0)
    """Factors of the distance of slices."""
    rotation_deg: float = 8.0
    scale: float = 0.12
    warp_mm: float = 10.0
    """Spread of the displacement of a node."""
    contrast: float = 12.0
    """Spread of what is added to the image in a class, as HU."""
    noise: tuple[float, float] = (8.0, 25.0)
    cut: float = 0.25
    """At most this share of the slices is missing at an end, in half of the cases at each."""


@dataclass(frozen=True)
class _Case:
    """All that is random in one case but its noise, drawn once."""

    spacing_mm: Spacing
    shape_zyx: Index3
    slices: tuple[int, int]
    """First slice of the field of view, and the one after the last."""
    turned: NDArray[np.float64]
    """From millimetres of the case to those of the CT, both from the centre, z, y, x."""
    warp_mm: Field
    """Displacement at the nodes (axis, nodes z, y, x)."""
    contrast: Mapping[int, float]
    noise: float


def warped_case(scan: Scan, seed: int, index: int, variety: Variety = Variety()) -> Scan:
    """Return one case: image int16, labels of the CT's names and dtypes.

    The first label is the one whose classes get a contrast of their own. Raises ConfigError for a
    CT that is too small for the voxel sizes asked for.
    """
    case = _draw(np.random.default_rng([seed, index]), scan, variety)
    bright = _brightened(scan, case)
    first, last = case.slices
    shape: Index3 = (last - first, *case.shape_zyx[1:])
    image = np.empty(shape, np.int16)
    labels = {name: np.empty(shape, one.dtype) for name, one in scan.labels_zyx.items()}
    outside, depth = float(bright.min()), max(1, SLAB_VOXELS // (shape[1] * shape[2]))
    for start, stop in pairwise([*range(first, last, depth), last]):
        here = slice(start - first, stop - first)
        where = _where(case, scan, start, stop)
        hu = ndimage.map_coordinates(bright, where, order=1, mode="constant", cval=outside)
        for z in range(start, stop):
            rng = np.random.default_rng([seed, index, z])
            hu[z - start] += np.float32(case.noise) * scanner_noise(rng, shape[1:])
        image[here] = np.clip(np.rint(hu), -32768, 32767)
        nearest = np.rint(where).astype(np.intp)
        for name, given in scan.labels_zyx.items():
            labels[name][here] = _at(given, nearest)
    return Scan(image, labels, case.spacing_mm, _affine(scan, case))


def write_warped_archive(
    dst_uri: str | os.PathLike[str],
    scan: Scan,
    cases: int,
    *,
    seed: int = 0,
    variety: Variety = Variety(),
) -> CasesReport:
    """Write `cases` warped cases, `warped-0000` and on; what is there is reused.

    Raises ConfigError for less than one case or too small a CT, UnfitEnvironment when nothing can
    be written.
    """
    told = {name: [*v] if isinstance(v, tuple) else v for name, v in asdict(variety).items()}
    recipe = {"seed": seed, "source": _digest(scan), **told}
    _draw(np.random.default_rng(seed), scan, variety)
    return write_made_archive(
        dst_uri, "warped", cases, recipe, lambda index: warped_case(scan, seed, index, variety)
    )


def read_scan(image: str, labels: Mapping[str, str]) -> Scan:
    """Read a CT and its labels (name -> file) from NIfTI files, paths or URIs.

    Raises InputError for a file that cannot be read or does not lie on the image.
    """
    own = decode_nifti(_bytes(image))
    if own.array.ndim != 3:
        raise InputError(f"{image}: expected one volume, got axes {own.array.shape}.")
    found = {}
    for name, file in labels.items():
        label = decode_nifti(_bytes(file))
        near = label.array.shape == own.array.shape and np.allclose(
            label.affine, own.affine, atol=1e-3 * min(own.spacing_mm)
        )
        if not near:
            raise InputError(f"{file} does not lie on {image}: resample it to the image first.")
        found[name] = as_label(file, name, label.array, own.array.shape)
    return Scan(own.array, found, own.spacing_mm, own.affine)


def grouped(scan: Scan, groups: Mapping[str, Sequence[int]]) -> Scan:
    """Return the scan with classes 1, 2, ...: one for each group of values, in their order.

    Values of no group become background. Raises ConfigError for a value of two groups.
    """
    values = [value for members in groups.values() for value in members]
    if doubled := {value for value in values if values.count(value) > 1}:
        raise ConfigError(f"Groups of classes: {sorted(doubled)} are in more than one group.")

    def merged(label_zyx: IntLabel) -> IntLabel:
        out = np.zeros(label_zyx.shape, np.uint8 if len(groups) < 256 else np.uint16)
        for number, members in enumerate(groups.values(), 1):
            out[np.isin(label_zyx, members)] = number
        return out

    labels = {name: merged(one) for name, one in scan.labels_zyx.items()}
    return Scan(scan.image_zyx, labels, scan.spacing_mm, scan.affine)


def _draw(rng: np.random.Generator, scan: Scan, variety: Variety) -> _Case:
    pixel, depth = float(rng.choice(variety.pixels)), float(rng.choice(variety.slices))
    spacing_mm = triple(
        edge * factor for edge, factor in zip(scan.spacing_mm, (depth, pixel, pixel), strict=True)
    )
    size_mm = np.multiply(scan.image_zyx.shape, scan.spacing_mm)
    shape_zyx = triple(int(n) for n in np.rint(size_mm / spacing_mm))
    if min(shape_zyx) < MIN_EDGE_VOX:
        raise ConfigError(
            f"A CT of {scan.image_zyx.shape} voxels (z, y, x) becomes {shape_zyx} with voxels "
            f"{spacing_mm} mm, fewer than {MIN_EDGE_VOX} along an axis. Give a larger one."
        )
    ends = [int(rng.uniform(0, variety.cut) * shape_zyx[0] * (rng.random() < 0.5)) for _ in "ab"]
    angle = np.deg2rad(rng.uniform(-variety.rotation_deg, variety.rotation_deg))
    turn = np.array(
        [[1, 0, 0], [0, np.cos(angle), np.sin(angle)], [0, -np.sin(angle), np.cos(angle)]]
    )
    scale = rng.uniform(1 - variety.scale, 1 + variety.scale, 3)
    nodes = np.maximum(4, np.ceil(size_mm / NODE_MM).astype(int) + 3)
    most = MAX_WARP * size_mm / (nodes - 3)
    warp = rng.normal(0, variety.warp_mm, (3, *nodes)).clip(-most.min(), most.min())
    classes = np.unique(next(iter(scan.labels_zyx.values())))
    return _Case(
        spacing_mm=spacing_mm,
        shape_zyx=shape_zyx,
        slices=(ends[0], shape_zyx[0] - ends[1]),
        turned=turn / scale[:, None],
        warp_mm=warp.astype(np.float32),
        contrast={int(v): float(rng.normal(0, variety.contrast)) for v in classes if v},
        noise=float(rng.uniform(*variety.noise)),
    )


def _brightened(scan: Scan, case: _Case) -> Field:
    """Return the CT with the contrast of the case, as sharp as its voxels can show.

    Done before it is warped, so that a voxel on a border has some of both sides.
    """
    image = scan.image_zyx.astype(np.float32)
    label = next(iter(scan.labels_zyx.values()))
    values = np.array([0, *case.contrast], np.int64)
    added = np.array([0, *case.contrast.values()], np.float32)
    for z, slice_yx in enumerate(label):
        image[z] += added[np.searchsorted(values, slice_yx)]
    coarser = np.divide(case.spacing_mm, scan.spacing_mm)
    sigma = 0.5 * np.sqrt(np.maximum(0, coarser**2 - 1))
    return np.asarray(ndimage.gaussian_filter(image, sigma, mode="nearest"), np.float32)


def _where(case: _Case, scan: Scan, start: int, stop: int) -> Field:
    """Return where in the CT (axis, z, y, x), in its voxels, the slices start..stop lie."""
    axes = [((np.arange(n) + 0.5) * 2 / n - 1).astype(np.float32) for n in case.shape_zyx]
    axes[0] = axes[0][start:stop]
    size_mm = np.multiply(scan.image_zyx.shape, scan.spacing_mm)
    from_centre = np.meshgrid(
        *(axis * np.float32(size / 2) for axis, size in zip(axes, size_mm, strict=True)),
        indexing="ij",
        sparse=True,
    )
    where = np.stack([spline(nodes, axes) for nodes in case.warp_mm])
    for axis, row in enumerate(case.turned):
        for factor, x in zip(row, from_centre, strict=True):
            where[axis] += np.float32(factor) * x
        where[axis] = (where[axis] + size_mm[axis] / 2) / scan.spacing_mm[axis] - 0.5
    return where


def _at(label_zyx: IntLabel, nearest: NDArray[np.intp]) -> IntLabel:
    """Return the label at whole voxels (axis, z, y, x); background outside."""
    edges = np.array(label_zyx.shape).reshape(3, 1, 1, 1)
    inside = ((nearest >= 0) & (nearest < edges)).all(axis=0)
    found: IntLabel = label_zyx[tuple(np.clip(nearest, 0, edges - 1))]
    return np.where(inside, found, np.zeros((), label_zyx.dtype))


def _affine(scan: Scan, case: _Case) -> NDArray[np.float64] | None:
    """Return the affine of the case: the CT's axes, its own voxels and field of view."""
    if scan.affine is None:
        return None
    affine = scan.affine.copy()
    affine[:3, :3] *= np.divide(case.spacing_mm, scan.spacing_mm)[::-1]
    affine[:3, 3] += affine[:3, 2] * case.slices[0]
    return affine


def _bytes(file: str) -> bytes:
    folder, _, name = file.rpartition("/")
    try:
        return Store.open(folder or ".").get(name)
    except FileNotFoundError as fault:
        raise InputError(f"{file}: no such file.") from fault


def _digest(scan: Scan) -> str:
    """Return what tells one CT and its labels from another."""
    told = sha256(repr((scan.image_zyx.shape, scan.spacing_mm)).encode())
    told.update(scan.image_zyx.tobytes())
    for name, label in sorted(scan.labels_zyx.items()):
        told.update(name.encode())
        told.update(label.tobytes())
    return told.hexdigest()
