"""The errors that users meet.

Every message says what is wrong, where (archive, case, block), what was expected against what was
found, and what to do about it. The class decides the exit code of the command line.
"""

import sysconfig
import traceback
from pathlib import Path
from typing import ClassVar

__all__ = [
    "AlreadyExists",
    "CaseError",
    "ConfigError",
    "Conflict",
    "InputError",
    "MissingObject",
    "RaysegcleanError",
    "RunConflict",
    "RunOver",
    "UnfitEnvironment",
    "own_code",
    "told",
]


class RaysegcleanError(Exception):
    """Root of all errors that this package raises on purpose."""

    exit_code: ClassVar[int] = 2


class ConfigError(RaysegcleanError, ValueError):
    """The caller's configuration or argument is wrong; nothing was computed."""


class InputError(RaysegcleanError, ValueError):
    """Data on disk or in a bucket is not what it must be."""


class CaseError(InputError):
    """One case is unusable; the other cases go on."""

    def __init__(self, case: str, message: str) -> None:
        super().__init__(f"case {case}: {message}")
        self.case = case
        self.reason = message

    def __reduce__(self) -> tuple[type["CaseError"], tuple[str, str]]:
        """Keep both arguments when the error crosses a process."""
        return CaseError, (self.case, self.reason)


class RunConflict(RaysegcleanError):
    """The run folder or output belongs to another run, identity or job."""


class RunOver(RunConflict):
    """Another driver has taken the run over; whoever works for the former one must stop."""


class UnfitEnvironment(RaysegcleanError):
    """No cluster, no GPU where one was demanded, or a store that cannot be written."""

    exit_code: ClassVar[int] = 3


class MissingObject(RaysegcleanError, FileNotFoundError):
    """A key that should be in the store is not."""


class AlreadyExists(RaysegcleanError, FileExistsError):
    """A create-only put found an object under its key."""


class Conflict(RaysegcleanError):
    """A compare-and-swap found another version than expected."""


def told(error: BaseException) -> str:
    """Return an error in words; of one that was not raised on purpose the class is named too."""
    known = isinstance(error, RaysegcleanError)
    return str(error) if known else f"{type(error).__name__}: {error}"


def own_code(error: BaseException) -> str:
    """Return the file and line of the user's code that raised an error; empty where none did.

    It is the innermost frame that is neither a library's nor Python's, unless that is ours.
    """
    package = Path(__file__).parent
    paths = sysconfig.get_paths()
    libraries = {Path(paths[name]) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if package in file.parents:
            return ""
        if file.exists() and not libraries & set(file.parents):
            return f"{file}, line {frame.lineno}"
    return ""
