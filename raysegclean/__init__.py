"""raysegclean cleans the segmentation labels of large CT archives, distributed on Ray.

The verbs of the command line are functions that take the same words and return what it prints::

    import raysegclean as rsc

    rsc.ingest("images/", "labels/", "archive/", "organs")
    print(rsc.check("archive/", "organs").text())
    print(rsc.plan("clean.yaml").peak_memory_bytes)
    report = rsc.clean("clean.yaml", {"train.steps": 500})  # again to resume
    report.changed_cases, report.failed
    rsc.undo(report.run, case="p7", reason="shift")
    rsc.export("archive/", "cleaned/", report.output_label)

Also `status`, `verify`, `replay`, `score`, `simulate_noise` (the verb simulate;
`raysegclean.simulate` is a room), `warp` and `demo`. All raise what `raysegclean.errors` lists.
Importing this package imports nothing else; a function brings what it needs when it is first used.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raysegclean.interface.archive_verbs import check, export, ingest
    from raysegclean.interface.measure_verbs import demo, score, simulate_noise, warp
    from raysegclean.interface.run_verbs import clean, plan, rank, replay, status, undo, verify

try:
    __version__ = version("raysegclean")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"

__all__ = [
    "__version__",
    "check",
    "clean",
    "demo",
    "export",
    "ingest",
    "plan",
    "rank",
    "replay",
    "score",
    "simulate_noise",
    "status",
    "undo",
    "verify",
    "warp",
]


def __getattr__(name: str) -> Any:
    """Return a verb, importing its group's file."""
    if name in __all__:
        for group in ("archive", "run", "measure"):
            verbs = import_module(f"raysegclean.interface.{group}_verbs")
            if name in verbs.__all__:
                return getattr(verbs, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
