"""Wrong settings in words: place, setting, what was expected, what was found, the nearest key.

Works on any pydantic model whose fields carry a description of what they expect; knows nothing of
the settings themselves.
"""

import difflib
import json
import typing
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from raysegclean.config.yaml_source import KeyPath, Source, dotted

__all__ = ["nearest", "problems_of", "section_of", "settings_of", "shown", "type_problem"]

Model = type[BaseModel]


def problems_of(error: ValidationError, model: Model, source: Source) -> list[str]:
    """Return one sentence per wrong setting, however many type branches pydantic tried."""
    lines: dict[KeyPath, str] = {}
    for item in error.errors():
        path, expects = _located(item["loc"], model)
        place = source.where(path)
        if item["type"] == "extra_forbidden":
            hint = _nearest_key(path, model)
            lines[path] = f"{place}: {dotted(path)} is not a setting.{hint}"
        elif item["type"] == "missing" and not source.has(path):
            lines[path] = f"{place}: {dotted(path)} is missing. Set it to {expects}."
        elif path not in lines:
            got = shown(source.get(path))
            lines[path] = f"{place}: {dotted(path)}: expected {expects}; got {got}."
    return list(lines.values())


def type_problem(annotation: Any, value: Any) -> str | None:
    """Return why a plain value does not fit a type (nothing is converted), or None."""
    adapter: TypeAdapter[Any] = TypeAdapter(annotation)
    try:
        adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        said = dict.fromkeys(
            item["msg"].removeprefix("Input should be ") for item in error.errors()
        )
        return f"expected {' or '.join(said)}; got {shown(value)}."
    return None


def section_of(annotation: Any) -> Model | None:
    """Return the model inside `Model` or `Model | None`; None for a plain setting."""
    for kind in (annotation, *typing.get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def settings_of(model: Model, prefix: KeyPath = ()) -> dict[KeyPath, str]:
    """Return every path that can be set, with what it expects."""
    found: dict[KeyPath, str] = {}
    for name, info in model.model_fields.items():
        found[(*prefix, name)] = info.description or ""
        if (section := section_of(info.annotation)) is not None:
            found.update(settings_of(section, (*prefix, name)))
    return found


def nearest(name: str, known: Sequence[str], prefix: str) -> str:
    """Return a hint that starts with a space: the nearest known name, or all of them."""
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f" Did you mean {prefix}{close[0]}?"
    return f" Known here: {', '.join(known) or 'nothing'}."


def shown(value: Any) -> str:
    """Return a value as the user would write it, cut to one short line."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _located(loc: tuple[str | int, ...], model: Model) -> tuple[KeyPath, str]:
    """Return the setting that a pydantic location is about, and what it expects."""
    path: list[str | int] = []
    expects = "settings as `key: value` lines"
    level: Model | None = model
    for part in loc:
        if not isinstance(part, str) or level is None:
            break
        path.append(part)
        if part not in level.model_fields:
            break
        info = level.model_fields[part]
        expects = info.description or ""
        level = section_of(info.annotation)
        if typing.get_origin(info.annotation) is dict and len(loc) > len(path):
            path.append(loc[len(path)])
            break
    return tuple(path), expects


def _nearest_key(path: KeyPath, model: Model) -> str:
    """Return a hint: the nearest sibling, else a key of that name elsewhere, else all siblings."""
    known = list(settings_of(model))
    parent, name = path[:-1], str(path[-1])
    siblings = [str(key[-1]) for key in known if key[:-1] == parent]
    elsewhere = [dotted(key) for key in known if key[-1] == name]
    if elsewhere and not difflib.get_close_matches(name, siblings, n=1, cutoff=0.7):
        return f" Did you mean {' or '.join(elsewhere)}?"
    return nearest(name, siblings, f"{dotted(parent)}." if parent else "")
