"""Names of classes come with a `dataset.json` of either form, and stay with the label."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from raysegclean.store.archive import Archive
from raysegclean.store.class_names import class_names, named_in
from raysegclean.store.ingest import ingest_nifti
from raysegclean.store.objects import Store

WANTED = {1: "liver", 2: "spleen"}


@pytest.mark.parametrize(
    "labels",
    [
        {"background": 0, "liver": 1, "spleen": 2},
        {"0": "background", "1": "liver", "2": "spleen"},
        {"background": 0, "liver": 1, "spleen": 2, "both": [1, 2]},
    ],
)
def test_both_forms_are_read_and_regions_left_out(tmp_path: Path, labels: object) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    assert named_in([Store.open(str(tmp_path))]) == WANTED


def test_without_a_file_or_without_labels_nothing_has_a_name(tmp_path: Path) -> None:
    assert named_in([Store.open(str(tmp_path))]) == {}
    (tmp_path / "dataset.json").write_text("[]")
    assert named_in([Store.open(str(tmp_path))]) == {}


def test_ingest_keeps_the_names_of_a_dataset_with_its_label(tmp_path: Path) -> None:
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
        array = np.zeros((5, 6, 7), np.int16)
        array[2, 3, 4] = 1
        nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / folder / "a.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"liver": 1, "spleen": 2}}))
    uri = str(tmp_path / "archive")
    report = ingest_nifti(tmp_path / "imagesTr", tmp_path / "labelsTr", uri, "organs")
    assert not report.failed
    assert class_names(Archive.open(uri), "organs", ["none", "a"]) == WANTED
    assert class_names(Archive.open(uri), "other", ["a"]) == {}
