"""Results as text for people and as JSON for programs, from the same plain values.

`plain` turns the frozen values that the verbs return into JSON values; `text` lays those out: one
`name: value` line each, and an aligned table for a list of rows. No terminal is assumed: the same
bytes come out in a pipe, so that a result can be read, searched and compared.
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["alike", "as_json", "as_text", "plain"]


ALIKE = 3
"""More errors than this that say the same of other cases are told as one."""


def alike(errors: Mapping[str, str]) -> list[str]:
    """Return errors (case -> reason) as lines; many that differ in names and numbers are one."""
    groups: dict[str, list[str]] = {}
    for case, reason in errors.items():
        kind = re.sub(r"\d+", "0", reason.replace(case, ""))
        groups.setdefault(kind, []).append(case)
    lines = []
    for cases in groups.values():
        if len(cases) <= ALIKE:
            lines += [f"case {case}: {errors[case]}" for case in cases]
        else:
            named, more = ", ".join(cases[:ALIKE]), len(cases) - ALIKE
            said = f"{len(cases)} cases alike ({named} and {more} more)"
            lines.append(f"{said}, the first: {errors[cases[0]]}")
    return lines


def plain(value: Any) -> Any:
    """Return `value` as JSON values: dataclasses, mappings, sequences, paths, numpy scalars."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes):
        items = sorted(value) if isinstance(value, set | frozenset) else value
        return [plain(item) for item in items]
    if callable(getattr(value, "tolist", None)):  # numpy, without importing it
        return plain(value.tolist())
    return str(value)


def as_json(value: Any) -> str:
    """Return indented JSON with the keys in their own order; NaN and infinity become null.

    A value with an `as_json()` of its own is asked for that.
    """
    own = getattr(value, "as_json", None)
    if callable(own):
        return str(own())
    return json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False)


def as_text(value: Any) -> str:
    """Return `value` as lines for people; a value with a `text()` of its own is asked for that."""
    own = getattr(value, "text", None)
    return str(own()) if callable(own) else "\n".join(_lines(plain(value)))


def _lines(value: Any) -> list[str]:
    if isinstance(value, dict):
        return _mapping(value)
    if isinstance(value, list):
        rows = [item for item in value if isinstance(item, dict)]
        if value and len(rows) == len(value):
            return _table(rows)
        return [_cell(item) for item in value]
    return [_cell(value)]


def _mapping(value: dict[str, Any]) -> list[str]:
    """Return what fits on one line first, then every nested value under its name."""
    short = {key: item for key, item in value.items() if _is_short(item)}
    width = max((len(key) for key in short), default=0) + 1
    lines = [f"{key + ':':<{width}} {_cell(item, key)}" for key, item in short.items()]
    for key, item in value.items():
        if key not in short and item:
            lines += [f"{key}:", *(f"  {line}" for line in _lines(item))]
    return lines


def _is_short(value: Any) -> bool:
    if isinstance(value, list):
        return 0 < len(value) <= 12 and all(isinstance(item, int | float) for item in value)
    return not isinstance(value, dict)


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """Return aligned columns, numbers to the right, text to the left; no empty columns."""
    flat = [_flat(row) for row in rows]
    columns = []
    for name in dict.fromkeys(name for row in flat for name in row):
        values = [row.get(name) for row in flat]
        if all(value is None for value in values):
            continue
        cells = [name, *(_cell(value, name) for value in values)]
        width = max(map(len, cells))
        numbers = all(isinstance(v, int | float) or v is None for v in values)
        columns.append([c.rjust(width) if numbers else c.ljust(width) for c in cells])
    return ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row whose nested values, as `change: {harm: 0}`, are columns of their own."""
    flat: dict[str, Any] = {}
    for key, item in row.items():
        flat.update(item if isinstance(item, dict) else {key: item})
    return flat


def _cell(value: Any, name: str = "") -> str:
    """Return one value; `name` tells bytes, which are shown in decimal units."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return _size(value) if name.endswith("bytes") else f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _size(size_bytes: int) -> str:
    for unit, factor in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if abs(size_bytes) >= factor:
            return f"{size_bytes / factor:.3g} {unit}"
    return f"{size_bytes} B"
