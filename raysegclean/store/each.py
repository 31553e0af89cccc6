"""Doing something for every case of an archive: one bad case never stops the others."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from raysegclean.errors import CaseError, ConfigError, UnfitEnvironment, told

__all__ = ["for_each_case"]

T = TypeVar("T")

_THREADS = 2
"""Cases at work at once, and in memory."""


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
            error = CaseError(case, told(fault))
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
