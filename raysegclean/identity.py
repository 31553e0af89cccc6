"""Identity: a short hash of everything that has meaning for a result.

Two computations with the same identity give the same answer, so the second is never run. Worker
counts, paths, prefetch and the package version do not count and must not be passed in here.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

__all__ = ["ALGORITHM_VERSIONS", "differing_parts", "digest"]

ALGORITHM_VERSIONS: Mapping[str, int] = {
    "check": 2,
    "train": 4,
    "propose": 4,
    "look": 1,
    "gross": 1,
    "apply": 3,
}
"""Bumped by hand when a stage would give another answer for the same input and config."""


def digest(*parts: Any) -> str:
    """Return 16 hex digits that depend on the values of `parts` only.

    Dataclasses, mappings, sequences and JSON scalars are accepted; key order does not matter.

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    True
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differing_parts(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a sentence per leaf that differs between two nested mappings, sorted by key."""
    old, new = _leaves(before), _leaves(now)
    return [
        f"{key} was {old.get(key, 'absent')!r}, is {new.get(key, 'absent')!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, frozenset | set):
        return sorted(value)
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no identity: pass plain values or dataclasses.")


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= _leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
