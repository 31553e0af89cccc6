"""Who a case belongs to: patient, site and annotator, from a CSV table.

The table has a column `case` and any of `patient`, `site` and `annotator`; other columns are left
alone, spaces around names and cells too, and an empty cell counts as unknown.
"""

import csv
from collections.abc import Mapping

from raysegclean.errors import ConfigError
from raysegclean.store.objects import Store

__all__ = ["Facts", "read_table", "read_text"]

Facts = Mapping[str, str]
"""What people know about a case: its patient, site and annotator, by these names."""

_COLUMNS = ("case", "patient", "site", "annotator")


def read_table(uri: str) -> Mapping[str, Facts]:
    """Return the facts per case; raise ConfigError when the table cannot serve."""
    rows = csv.DictReader(read_text(uri).splitlines())
    rows.fieldnames = [name.strip() for name in rows.fieldnames or ()]
    if "case" not in rows.fieldnames:
        raise ConfigError(
            f"table {uri}: columns are {', '.join(rows.fieldnames) or 'none'}; one must be "
            "`case`, and `patient`, `site` and `annotator` are used when present."
        )
    facts: dict[str, Facts] = {}
    for row in rows:
        cells = {name: (row.get(name) or "").strip() for name in _COLUMNS}
        case = cells.pop("case")
        if not case:
            raise ConfigError(
                f"table {uri}: line {rows.line_num} names no case. Write its id, or delete it."
            )
        if case in facts:
            raise ConfigError(f"table {uri}: case {case} has two rows. Keep one.")
        facts[case] = {name: cell for name, cell in cells.items() if cell}
    return facts


def read_text(uri: str) -> str:
    """Return a CSV file's text; raise ConfigError when there is none."""
    folder, _, name = uri.replace("\\", "/").rpartition("/")
    try:
        return Store.open(folder or ".").get(name).decode("utf-8-sig")
    except FileNotFoundError as fault:
        raise ConfigError(f"table {uri}: no such file. Give the path of a CSV file.") from fault
    except UnicodeDecodeError as fault:
        raise ConfigError(
            f"table {uri}: not UTF-8 text ({fault}). Save it as CSV UTF-8."
        ) from fault
