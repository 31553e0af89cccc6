"""Doing something for every case of an archive: one bad case never stops the others."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from raysegclean.errors import CaseError, ConfigError, RaysegcleanError, UnfitEnvironment, told
from raysegclean.render import alike, as_text

__all__ = ["CasesReport", "for_each_case"]

T = TypeVar("T")

_THREADS = 2
"""Cases at work at once, and in memory."""
_ODD = ". Leave the case out, and report this."


@dataclass(frozen=True)
class CasesReport:
    """What became of each case, and an error for each that failed."""

    done: Mapping[str, str]
    failed: tuple[CaseError, ...]
    notes: tuple[str, ...] = field(default=(), kw_only=True)
    """What was not taken."""

    @property
    def exit_code(self) -> int:
        """1 when some cases failed, 2 when all of them did."""
        return (1 if self.done else 2) if self.failed else 0

    def text(self) -> str:
        """Return how many cases became what, and each that failed."""
        counts = {"cases": len(self.done) + len(self.failed), **Counter(self.done.values())}
        failed = alike({error.case: error.reason for error in self.failed})
        return as_text(counts | self._more() | {"failed": failed, "notes": list(self.notes)})

    def _more(self) -> dict[str, Any]:
        return {}


def for_each_case(
    cases: Iterable[str], work: Callable[[str], T]
) -> tuple[dict[str, T], tuple[CaseError, ...]]:
    """Return what `work` returned per case, in the order given, and an error per faulty case.

    Whatever goes wrong in a case becomes its CaseError; faults of the environment (a full disk, no
    access) are raised, because they would hit every case, and so is a ConfigError that hit each.
    """

    def one(case: str) -> T | CaseError:
        try:
            return work(case)
        except CaseError as fault:
            return fault
        except UnfitEnvironment:
            raise
        except Exception as fault:  # noqa: BLE001  (one odd case must not stop the others)
            odd = "" if isinstance(fault, RaysegcleanError) else _ODD
            error = CaseError(case, told(fault) + odd)
            error.__cause__ = fault
            return error

    names = list(cases)
    with ThreadPoolExecutor(_THREADS) as threads:
        results = list(zip(names, threads.map(one, names), strict=True))
    done = {case: result for case, result in results if not isinstance(result, CaseError)}
    failed = tuple(result for _, result in results if isinstance(result, CaseError))
    asked = [error.__cause__ for error in failed if isinstance(error.__cause__, ConfigError)]
    if asked and len(asked) == len(names):  # then it is not the cases
        raise asked[0]
    return done, failed
