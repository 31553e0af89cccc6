"""What label values are called, as files say it: a CSV table, JSON, an extension of a NIfTI header.

Pure text in, value -> name out; 0, the background, has no name. What says nothing of names, or
cannot be read, gives none, but for the table that a user names.
"""

import csv
import html
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from raysegclean.errors import ConfigError

__all__ = ["names_in_extensions", "names_in_labels", "names_in_table"]

_CARET = re.compile(
    r'<Label\b[^>]*?\bKey="(\d+)"[^>]*>\s*(?:<!\[CDATA\[(.*?)\]\]>|([^<]*))', re.DOTALL
)
"""A row of a label table as Caret, Connectome Workbench and TotalSegmentator write them; XML is not
parsed as such, so that no entity is expanded."""
_ITK_SNAP = re.compile(r'^\s*(\d+)(?:\s+[\d.]+){6}\s+"(.*)"\s*$', re.MULTILINE)
"""A row of ITK-SNAP's label descriptions: value, red, green, blue, alpha, visible, mesh, name."""
_COLUMNS = ("id", "name")


def names_in_labels(labels: Mapping[str, Any]) -> dict[int, str]:
    """Return the names in `{"liver": 1}` or `{"1": "liver"}`; lists of values have none."""
    pairs = ((v, k) if isinstance(v, int) else (k, v) for k, v in labels.items())
    return _ordered((str(value), name) for value, name in pairs if isinstance(name, str))


def names_in_extensions(contents: Iterable[bytes]) -> dict[int, str]:
    """Return the names in the first extension of a NIfTI header that has some."""
    for content in contents:
        text = content.decode("utf-8", "replace").strip("\0 \n")
        names = _in_json(text) if text.startswith("{") else _in_rows(text)
        if names:
            return names
    return {}


def names_in_table(table: str, text: str) -> dict[int, str]:
    """Return the names in a CSV table with the columns `id` and `name`.

    Raises ConfigError that names the table and the line where it cannot serve.
    """
    rows = csv.DictReader(text.splitlines())
    rows.fieldnames = [name.strip() for name in rows.fieldnames or ()]
    if not {*_COLUMNS}.issubset(rows.fieldnames):
        raise ConfigError(
            f"class names {table}: columns are {', '.join(rows.fieldnames) or 'none'}; `id` and "
            "`name` are needed, as in `1,liver`."
        )
    found: dict[str, str] = {}
    for row in rows:
        value, name = ((row[column] or "").strip() for column in _COLUMNS)
        if not value.isdecimal() or not name or value in found:
            raise ConfigError(
                f"class names {table}: line {rows.line_num} says {value!r} is {name!r}; expected a "
                "label value that no other line has, and its name. Correct the line."
            )
        found[value] = name
    return _ordered(found.items())


def _in_json(text: str) -> dict[int, str]:
    try:
        document = json.loads(text)
    except ValueError:
        return {}
    labels = document.get("labels", document)
    return names_in_labels(labels) if isinstance(labels, dict) else {}


def _in_rows(text: str) -> dict[int, str]:
    caret = ((value, data or html.unescape(plain)) for value, data, plain in _CARET.findall(text))
    return _ordered(caret) or _ordered(_ITK_SNAP.findall(text))


def _ordered(pairs: Iterable[tuple[str, str]]) -> dict[int, str]:
    named = {int(value): name.strip() for value, name in pairs if value.isdecimal()}
    return {value: name for value, name in sorted(named.items()) if value and name}
