"""The packages that the code needs, and what to say where a Python lacks one of them.

Only the standard library is imported here, so that a bare Python can say what it lacks.
"""

import sys
from collections.abc import Iterator
from importlib.util import find_spec

from raysegclean.errors import UnfitEnvironment, own_code

__all__ = ["PACKAGES", "lacking"]

_NAMED_ALIKE = (
    *("click", "edt", "matplotlib", "nibabel", "numpy", "obstore", "pyarrow", "pydantic", "ray"),
    *("rich", "scipy", "tensorstore", "torch", "zarr"),
)

PACKAGES = {name: name for name in _NAMED_ALIKE} | {
    "cc3d": "connected-components-3d",
    "google_crc32c": "google-crc32c",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "PyYAML",
}
"""Module -> the declared package that brings it."""


def lacking(error: BaseException) -> UnfitEnvironment | None:
    """Return what to tell where an error says that a Python lacks a package; None for others.

    The package is a declared one, whatever the error became on its way, or one that these need.
    What only a user's code imports is the user's to mend, and told as that.
    """
    for cause in _causes(error):
        name = cause.name if isinstance(cause, ModuleNotFoundError) else None
        if name is None:
            continue
        brought = cause is error and not name.startswith("raysegclean") and not own_code(error)
        if name in PACKAGES or brought:
            return UnfitEnvironment(_message(name))
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it came from, in a worker of Ray too (its `cause`)."""
    while isinstance(error, BaseException):
        yield error
        error = error.__cause__ or getattr(error, "cause", None)


def _message(module: str) -> str:
    top = module.partition(".")[0]
    missed = f"the package {PACKAGES.get(top, top)} (no module named {module!r})"
    if module in PACKAGES and find_spec(module) is not None:
        return f"the Python of a worker lacks {missed}. Give every node the same environment."
    return (
        f"the Python {sys.executable} lacks {missed}. Use one that has all packages, as in "
        "`ray job submit ... -- /path/to/.venv/bin/python jobs/clean.py ...`, or, in the checkout, "
        f"give this one what it lacks: {sys.executable} -m pip install -c constraints.txt ."
    )
