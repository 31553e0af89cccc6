"""What the classes of a label are called: from a `dataset.json`, kept with the label.

Both forms of nnU-Net and of the Medical Segmentation Decathlon are read: `{"liver": 1}` and
`{"1": "liver"}`. Labels of regions, which are lists of values, have no name of one value.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from raysegclean.errors import CaseError, InputError, MissingObject
from raysegclean.store.archive import Archive
from raysegclean.store.objects import Store

__all__ = ["NAMES", "class_names", "named_in"]

NAMES = "class_names"
"""Attribute of a label: value, as text, -> name."""
_FILE = "dataset.json"


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
        return _names(labels) if isinstance(labels, dict) else {}
    return {}


def class_names(archive: Archive, label: str, cases: Iterable[str]) -> dict[int, str]:
    """Return value -> name as the first case tells it whose label has names."""
    for case in cases:
        try:
            kept = archive.label_attributes(case, label).get(NAMES)
        except (CaseError, InputError):
            continue
        if isinstance(kept, dict):
            return _names(kept)
    return {}


def _names(labels: Mapping[str, Any]) -> dict[int, str]:
    pairs = ((v, k) if isinstance(v, int) else (k, v) for k, v in labels.items())
    found = {int(value): str(name) for value, name in pairs if str(value).isdecimal()}
    return {value: name for value, name in sorted(found.items()) if value}
