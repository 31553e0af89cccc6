"""The OME-Zarr 0.5 metadata that archives are written with, and what is read of others'.

Pure functions between JSON documents and values. Reading accepts axes that end in z, y, x with an
optional leading c and one time point before it, and length units that are multiples of the metre; a
missing unit counts as millimetre, a missing scale is an error. See https://ngff.openmicroscopy.org/0.5/.
"""

from typing import Any

from raysegclean.errors import InputError

__all__ = [
    "axes_of",
    "first_level",
    "group",
    "image_multiscale",
    "label_group",
    "label_multiscale",
    "origin",
    "spacing",
]

VERSION = "0.5"

_AXES = ("zyx", "czyx", "tzyx", "tczyx")
_MM = {
    "millimeter": 1.0,
    "centimeter": 10.0,
    "meter": 1000.0,
    "micrometer": 1e-3,
    "nanometer": 1e-6,
}


def group(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return the Zarr v3 metadata document of a group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def image_multiscale(
    name: str, spacing_mm: tuple[float, float, float], *, with_channels: bool
) -> dict[str, Any]:
    """Return the multiscale of an image with one level, `0`."""
    axes = [{"name": a, "type": "space", "unit": "millimeter"} for a in "zyx"]
    scale = [float(s) for s in spacing_mm]
    if with_channels:
        axes.insert(0, {"name": "c", "type": "channel"})
        scale.insert(0, 1.0)
    level = {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}
    return {"name": name, "axes": axes, "datasets": [level]}


def label_multiscale(name: str, image: dict[str, Any]) -> dict[str, Any]:
    """Return the multiscale of a label with one level on the voxels of `image`'s first level.

    `image` is a multiscale that `first_level` returned.
    """
    lead = len(image["axes"]) - 3
    steps = image["datasets"][0].get("coordinateTransformations", [])
    level = {"path": "0", "coordinateTransformations": _without_lead(steps, lead)}
    multiscale = {"name": name, "axes": image["axes"][lead:], "datasets": [level]}
    if "coordinateTransformations" in image:
        shared = _without_lead(image["coordinateTransformations"], lead)
        multiscale["coordinateTransformations"] = shared
    return multiscale


def label_group(name: str, image: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Return the group document of a published label; `own` is kept under our attribute."""
    ome = {
        "version": VERSION,
        "multiscales": [label_multiscale(name, image)],
        "image-label": {"version": VERSION, "source": {"image": "../../"}},
    }
    return group({"ome": ome, "raysegclean": own})


def first_level(attributes: dict[str, Any], where: str) -> tuple[dict[str, Any], str]:
    """Return the first multiscale of a group and the path of its finest level.

    Raises InputError, naming `where`, when the group is no OME-Zarr 0.5 image over z, y, x with a
    scale.
    """
    try:
        multiscale = attributes["ome"]["multiscales"][0]
        names = axes_of(multiscale)
        path = str(multiscale["datasets"][0]["path"])
    except (KeyError, IndexError, TypeError) as fault:
        raise InputError(
            f"{where}: no OME-Zarr 0.5 multiscale in zarr.json ({fault!r} is missing). Convert it "
            "to OME-Zarr 0.5, or ingest the case from NIfTI."
        ) from fault
    if names not in _AXES:
        raise InputError(
            f"{where}: axes {names!r}, expected {', '.join(_AXES)}. Store it with z, y, x last."
        )
    _scales(multiscale, where)
    return multiscale, path


def axes_of(multiscale: dict[str, Any]) -> str:
    """Return the names of the axes, a letter each."""
    return "".join(axis["name"] for axis in multiscale["axes"])


def spacing(multiscale: dict[str, Any], where: str) -> tuple[float, float, float]:
    """Return the voxel edges of the finest level in millimetres, z, y, x; raise InputError."""
    edges = _units_mm(multiscale)
    for scale in _scales(multiscale, where):
        edges = [edge * factor for edge, factor in zip(edges, scale[-3:], strict=True)]
    if not all(0.0 < e < float("inf") for e in edges):
        raise InputError(
            f"{where}: voxel spacing {edges} is not positive, or its unit is none of "
            f"{', '.join(_MM)}. Correct the scale in zarr.json."
        )
    z, y, x = edges
    return z, y, x


def origin(multiscale: dict[str, Any], where: str) -> tuple[float, float, float]:
    """Return where the first voxel of the finest level lies, in mm, z, y, x; raise InputError."""
    at = [0.0, 0.0, 0.0]
    for step in _steps(multiscale, where):
        if step["type"] == "scale":
            at = [a * factor for a, factor in zip(at, step["scale"][-3:], strict=True)]
        elif step["type"] == "translation":
            at = [a + by for a, by in zip(at, step["translation"][-3:], strict=True)]
    z, y, x = (a * unit for a, unit in zip(at, _units_mm(multiscale), strict=True))
    return z, y, x


def _units_mm(multiscale: dict[str, Any]) -> list[float]:
    """Return the millimetres of a unit along z, y, x; 0 where it is not known."""
    axes = multiscale["axes"][-3:]
    return [_MM.get(str(axis.get("unit", "millimeter")), 0.0) for axis in axes]


def _scales(multiscale: dict[str, Any], where: str) -> list[list[float]]:
    """Return all scales of the finest level, a number per axis; raise InputError without any."""
    steps = _steps(multiscale, where)
    scales: list[list[float]] = [step["scale"] for step in steps if step["type"] == "scale"]
    if not scales:
        raise InputError(
            f"{where}: no scale in coordinateTransformations, so the voxel size is unknown. Add it "
            "to zarr.json, or ingest the case from NIfTI."
        )
    return scales


def _steps(multiscale: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """Return what is done to voxels of the finest level, in order; raise InputError."""
    found, axes = [], len(multiscale["axes"])
    for part in (multiscale["datasets"][0], multiscale):
        steps = part.get("coordinateTransformations", [])
        if not isinstance(steps, list) or not all(_is_step(step, axes) for step in steps):
            raise InputError(
                f"{where}: coordinateTransformations are {steps}, expected a scale and at most a "
                f"translation, each with {axes} numbers. Write these into zarr.json."
            )
        found += steps
    return found


def _is_step(step: Any, axes: int) -> bool:
    """Return whether a transformation is understood; what lies in an array of its own is not."""
    if not isinstance(step, dict) or step.get("type") not in ("scale", "translation", "identity"):
        return False
    if step["type"] == "identity":
        return True
    numbers = step.get(step["type"])
    return (
        isinstance(numbers, list)
        and len(numbers) == axes
        and all(isinstance(number, int | float) for number in numbers)
    )


def _without_lead(steps: list[dict[str, Any]], lead: int) -> list[dict[str, Any]]:
    return [
        {k: v[lead:] if k in ("scale", "translation") else v for k, v in step.items()}
        for step in steps
    ]
