"""What lies beside the data is counted, and what is a pair or case in another form is named."""

from raysegclean.store.beside import lost_cases, lost_pairs, summary


def test_pairs_in_other_forms_and_folders_are_lost_and_notes_are_not() -> None:
    images = ["c1.nrrd", "c2.mha", "siteB/c3.nii.gz", "only.nrrd", "README.md", "c4.nii.bz2"]
    labels = ["c1.seg.nrrd", "c2.gipl", "siteB/c3.nii", "README.md", "c4.nii.bz2"]
    assert list(lost_pairs(images, labels)) == ["c1", "c2", "c4", "siteB/c3"]


def test_a_case_by_another_name_is_lost_unless_it_is_there_by_its_own() -> None:
    names = [
        "a.ome.zarr",
        "a.zarr",
        "b.zarr",
        "c.OME.ZARR",
        "d.ome.zarr.zip",
        ".raysegclean",
        "run",
    ]
    assert lost_cases(names, ["a"]) == {
        "b": "b.zarr",
        "c": "c.OME.ZARR",
        "d": "d.ome.zarr.zip",
    }


def test_what_is_not_taken_is_one_line_with_counts_and_three_names() -> None:
    said = summary("/data", ["b.nrrd", "a.nrrd", "siteB/x.nii", "siteB/y.nii", "notes", "c.nrrd"])
    assert said == (
        "/data: not taken are 3 .nrrd, 2 in the folder siteB/, 1 without an ending "
        "(a.nrrd, b.nrrd, c.nrrd ...)"
    )
    assert summary("/data", []) == ""
