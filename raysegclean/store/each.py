"""Doing something for every case of an archive: one bad case never stops the others."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from raysegclean.errors import CaseError, InputError, MissingObject

__all__ = ["for_each_case"]

T = TypeVar("T")

_THREADS = 2
"""Cases at work at once, and in memory."""


def for_each_case(
    cases: Iterable[str], work: Callable[[str], T]
) -> tuple[dict[str, T], tuple[CaseError, ...]]:
    """Return what `work` returned per case, in the order given, and an error per faulty case.

    Faults of the data become CaseError; faults of the environment (a full disk, no access) are
    raised, because they would hit every case.
    """

    def one(case: str) -> T | CaseError:
        try:
            return work(case)
        except CaseError as fault:
            return fault
        except (InputError, MissingObject) as fault:
            return CaseError(case, str(fault))

    names = list(cases)
    with ThreadPoolExecutor(_THREADS) as threads:
        results = list(zip(names, threads.map(one, names), strict=True))
    done = {case: result for case, result in results if not isinstance(result, CaseError)}
    return done, tuple(result for _, result in results if isinstance(result, CaseError))
