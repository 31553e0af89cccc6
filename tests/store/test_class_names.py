"""Names of classes come with a `dataset.json` of either form, and stay with the label."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from raysegclean.errors import ConfigError
from raysegclean.store.archive import Archive
from raysegclean.store.class_names import class_names, named_in, read_names
from raysegclean.store.index import source_versions
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


CARET = (
    '<?xml version="1.0"?><CaretExtension><VolumeInformation Index="0"><LabelTable>'
    '<Label Key="0" Red="0" Alpha="0">???</Label>'
    '<Label Key="1" Red="1.0" Green="0.0" Alpha="1"><![CDATA[liver]]></Label>\n'
    '<Label Key="2" Red="0.0" Green="1.0" Alpha="1">spleen</Label>'
    "</LabelTable></VolumeInformation></CaretExtension>"
)
SNAP = '# IDX -R- -G- -B- -A- VIS MSH LABEL\n0 0 0 0 0 0 0 "Clear"\n1 255 0 0 1 1 1 "liver"\n'
EXTENSIONS = [
    (0, CARET),
    (30, CARET),
    (44, json.dumps({"labels": {"background": 0, "liver": 1, "spleen": 2}})),
    (44, json.dumps({"1": "liver", "2": "spleen"})),
    (6, SNAP + '2 0 255 0 .5 1 1 "spleen"\n'),
]


def files(folder: Path, extension: tuple[int, str] | None = None) -> tuple[Path, Path]:
    """Write an image and its label of one voxel; the label's header has the extension."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
        array = np.zeros((5, 6, 7), np.int16)
        array[2, 3, 4] = 1
        image = nib.Nifti1Image(array, np.eye(4))
        if extension and kind == "labels":
            content = nib.nifti1.Nifti1Extension(extension[0], extension[1].encode())
            image.header.extensions.append(content)
        nib.save(image, folder / kind / "a.nii.gz")
    return folder / "images", folder / "labels"


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_names_in_the_header_of_a_label_are_kept_with_it(
    tmp_path: Path, extension: tuple[int, str]
) -> None:
    uri = str(tmp_path / "archive")
    ingest_nifti(*files(tmp_path, extension), uri, "organs")
    assert class_names(Archive.open(uri), "organs", ["a"]) == WANTED


def test_a_header_that_says_something_else_names_nothing(tmp_path: Path) -> None:
    uri = str(tmp_path / "archive")
    assert not ingest_nifti(*files(tmp_path, (44, "{no json")), uri, "organs").failed
    assert class_names(Archive.open(uri), "organs", ["a"]) == {}


def test_a_table_goes_before_headers_and_renames_what_is_there(tmp_path: Path) -> None:
    images, labels = files(tmp_path, EXTENSIONS[0])
    uri, table = str(tmp_path / "archive"), tmp_path / "names.csv"
    ingest_nifti(images, labels, uri, "organs")
    archive = Archive.open(uri)
    before = source_versions(archive, "a", "organs")
    table.write_text("id,name,colour\n1, Leber ,red\n3,Milz,blue\n")
    assert not ingest_nifti(images, labels, uri, "organs", names=str(table)).failed
    assert class_names(archive, "organs", ["a"]) == {1: "Leber", 2: "spleen", 3: "Milz"}
    assert source_versions(archive, "a", "organs") == before  # runs that began go on


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("value,name\n1,liver\n", r"columns are value, name; `id`"),
        ("id,name\n1,liver\n1,spleen\n", r"line 3 says '1' is 'spleen'"),
        ("id,name\none,liver\n", r"line 2 says 'one' is 'liver'"),
        ("id,name\n", r"no line names a class"),
    ],
)
def test_a_table_that_names_nothing_is_refused(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "names.csv").write_text(text)
    with pytest.raises(ConfigError, match=told):
        read_names(str(tmp_path / "names.csv"))
