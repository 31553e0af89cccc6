"""Which cases `cases:` names: a glob, a list of ids, a file of ids, or a query on the index."""

import fnmatch
from collections.abc import Iterable, Sequence
from pathlib import Path

from raysegclean.errors import ConfigError, InputError
from raysegclean.evidence.cases import CaseInfo

__all__ = ["named_cases", "names_file", "select_cases", "wanted_ids"]


def select_cases(wanted: str | Sequence[str], infos: Iterable[CaseInfo]) -> list[CaseInfo]:
    """Return the cases that `cases:` names, sorted: a glob, a list, a file of ids, or a query.

    A query is a condition on the index's columns, as `site == "A" and spacing_z < 3`.
    """
    ordered = sorted(infos, key=lambda info: info.case)
    if _is_query(wanted):
        return _queried(str(wanted), ordered)
    chosen = set(wanted_ids(wanted, [info.case for info in ordered]))
    return [info for info in ordered if info.case in chosen]


def wanted_ids(wanted: str | Sequence[str], ids: Sequence[str]) -> list[str]:
    """Return which of `ids` `cases:` can name; a query can name all of them."""
    named = named_cases(wanted)
    if named is not None:
        return [case for case in ids if case in named]
    return list(ids) if _is_query(wanted) else fnmatch.filter(ids, str(wanted))


def named_cases(wanted: str | Sequence[str]) -> frozenset[str] | None:
    """Return the ids that `cases:` lists, in the config or in a file; None for a glob or query.

    In a file, what follows a # is a comment.
    """
    if names_file(wanted):
        lines = Path(str(wanted)).read_text(encoding="utf-8-sig").splitlines()
        return frozenset(name for line in lines for name in line.partition("#")[0].split())
    return None if isinstance(wanted, str) else frozenset(wanted)


def names_file(wanted: str | Sequence[str]) -> bool:
    """Tell whether `cases:` names a file of ids."""
    if not isinstance(wanted, str) or not wanted.endswith(".txt") or set("*?[") & set(wanted):
        return False
    if not Path(wanted).is_file():
        raise InputError(f"cases: {wanted}: no such file in {Path.cwd()}. Correct the path.")
    return True


def _is_query(wanted: str | Sequence[str]) -> bool:
    return isinstance(wanted, str) and any(sign in wanted for sign in "=<>")


def _queried(query: str, infos: Sequence[CaseInfo]) -> list[CaseInfo]:
    import pandas as pd

    names = ("case", "patient", "site", "annotator")
    table = pd.DataFrame({name: [getattr(info, name) for info in infos] for name in names})
    for axis, name in enumerate(("spacing_z", "spacing_y", "spacing_x")):
        table[name] = [info.spacing_mm[axis] for info in infos]
    try:
        chosen = set(table.query(query)["case"])
    except Exception as error:
        raise ConfigError(
            f"cases: {query!r} is not a condition on {', '.join(table.columns)} ({error})."
        ) from error
    return [info for info in infos if info.case in chosen]
