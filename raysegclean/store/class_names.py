"""What the classes of a label are called: found beside its files, kept with the label.

A `dataset.json` of nnU-Net or of the Medical Segmentation Decathlon, or a CSV table. What a file
says of itself in its header is read with it (`nifti`).
"""

from collections.abc import Iterable
from itertools import islice

from raysegclean.errors import CaseError, ConfigError, InputError, MissingObject
from raysegclean.store.archive import Archive
from raysegclean.store.name_tables import names_in_labels, names_in_table
from raysegclean.store.objects import Store
from raysegclean.store.table import read_text

__all__ = ["NAMES", "class_names", "named_in", "read_names"]

NAMES = "class_names"
"""Attribute of a label: value, as text, -> name. Of a case, by label, what that was renamed to: a
label whose own metadata changed would be another one for runs that have begun."""
_FILE = "dataset.json"
_ASKED = 3
"""Cost: so many cases are asked for the names of their classes."""


def named_in(folders: Iterable[Store]) -> dict[int, str]:
    """Return value -> name by the first `dataset.json` in the folders; none where there is none.

    Raises InputError for a file that is no JSON.
    """
    for folder in folders:
        try:
            document = folder.get_json(_FILE)
        except MissingObject:
            continue
        labels = document.get("labels") if isinstance(document, dict) else None
        return names_in_labels(labels) if isinstance(labels, dict) else {}
    return {}


def read_names(uri: str) -> dict[int, str]:
    """Return value -> name by a CSV table; raise ConfigError when it cannot serve."""
    names = names_in_table(uri, read_text(uri))
    if not names:
        raise ConfigError(f"class names {uri}: no line names a class. Write some, as `1,liver`.")
    return names


def class_names(archive: Archive, label: str, cases: Iterable[str]) -> dict[int, str]:
    """Return value -> name as the first of the cases tell it; where two differ, the earlier."""
    found: dict[int, str] = {}
    for case in islice(cases, _ASKED):
        try:
            own = archive.label_attributes(case, label).get(NAMES, {})
            renamed = archive.attributes(case).get(NAMES, {}).get(label, {})
        except (CaseError, InputError):
            continue
        found = {**names_in_labels(own), **names_in_labels(renamed), **found}
    return dict(sorted(found.items()))
