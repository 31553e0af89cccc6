import hashlib
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from raysegclean.errors import ConfigError, InputError, UnfitEnvironment
from raysegclean.store.archive import Archive, write_case
from raysegclean.store.export import export_nifti
from raysegclean.store.index import load_index
from raysegclean.store.ingest import ingest_nifti

AFFINE = np.diag([-0.8, 0.8, 2.5, 1.0])
REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "hippocampus_mr"


def _save(path, values, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, affine, dtype=values.dtype), path)


def _image(seed=0, shape=(20, 18, 7)):
    return np.random.default_rng(seed).integers(-1000, 500, shape).astype(np.int16)


def _label(seed=0, shape=(20, 18, 7), dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, 3, shape).astype(dtype)


@pytest.fixture
def pairs(tmp_path):
    """Three pairs, `p1_a`, `p1_b` and `p2_a`."""
    for i, case in enumerate(("p1_a", "p1_b", "p2_a")):
        _save(tmp_path / "images" / f"{case}.nii.gz", _image(i))
        _save(tmp_path / "labels" / f"{case}.nii.gz", _label(i))
    return tmp_path


def _ingest(folder, place=None, **options):
    archive = place or folder / "archive"
    return ingest_nifti(folder / "images", folder / "labels", archive, "organs", **options)


def _checksums(uri):
    store = Archive.open(uri).store
    return {i.key: hashlib.sha256(store.get(i.key)).hexdigest() for i in store.list()}


def test_pairs_become_cases_with_values_spacing_and_index(pairs, place):
    report = _ingest(pairs, place)
    assert report.done == dict.fromkeys(("p1_a", "p1_b", "p2_a"), "written")
    assert report.failed == ()
    archive = Archive.open(place)
    assert np.array_equal(archive.image("p2_a").read_all(), _image(2).T)
    assert np.array_equal(archive.label("p2_a", "organs").read_all(), _label(2).T)
    assert archive.spacing_mm("p2_a") == pytest.approx((2.5, 0.8, 0.8))
    assert archive.store.head("cases.parquet") is not None


def test_ingesting_again_reuses_every_case_and_writes_nothing(pairs):
    _ingest(pairs)
    before = _checksums(pairs / "archive")
    assert set(_ingest(pairs).done.values()) == {"reused"}
    assert _checksums(pairs / "archive") == before


def test_a_label_can_be_added_later_and_cover_only_some_cases(pairs):
    _ingest(pairs)
    _save(pairs / "expert" / "p1_b.nii.gz", _label(9))
    report = _ingest(pairs, extra_labels={"expert": pairs / "expert"})
    assert report.done == {"p1_a": "reused", "p1_b": "extended", "p2_a": "reused"}
    archive = Archive.open(pairs / "archive")
    assert archive.label_names("p1_b") == ("expert", "organs")
    assert np.array_equal(archive.label("p1_b", "expert").read_all(), _label(9).T)
    assert archive.label_names("p1_a") == ("organs",)


def test_files_that_changed_are_refused_and_nothing_is_written_over(pairs):
    _ingest(pairs)
    before = _checksums(pairs / "archive")
    _save(pairs / "labels" / "p1_a.nii.gz", _label(5))
    _save(pairs / "images" / "p1_b.nii.gz", _image(5))
    report = _ingest(pairs)
    assert [f.case for f in report.failed] == ["p1_a", "p1_b"]
    assert "with another label 'organs' than the file given now" in str(report.failed[0])
    assert "with another image" in str(report.failed[1])
    assert _checksums(pairs / "archive") == before


def test_a_case_that_was_cut_short_is_written_again(pairs):
    _ingest(pairs)
    Archive.open(pairs / "archive").at("p1_a").delete("zarr.json")
    assert _ingest(pairs).done["p1_a"] == "written"


def test_patients_come_from_the_pattern_or_the_table_and_can_be_told_later(pairs):
    archive = Archive.open(pairs / "archive")
    _ingest(pairs)
    assert [info.patient for info in load_index(archive)] == [None] * 3
    _ingest(pairs, patient_regex=r"^(p\d)_")
    assert [info.patient for info in load_index(archive)] == ["p1", "p1", "p2"]
    (pairs / "t.csv").write_text("case,patient,site\np1_a,anna,north\n")
    _ingest(pairs, table=str(pairs / "t.csv"), patient_regex=r"(?P<patient>p\d)")
    found = [(info.patient, info.site) for info in load_index(archive)]
    assert found == [("anna", "north"), ("p1", None), ("p2", None)]


def test_an_id_that_the_patient_pattern_misses_is_reported(pairs):
    report = _ingest(pairs, patient_regex="^p1")
    assert sorted(report.done) == ["p1_a", "p1_b"]
    assert "does not match this id" in str(report.failed[0])


def _other_shape(folder):
    _save(folder / "labels" / "p1_b.nii.gz", _label(1, (20, 18, 6)))


def _other_affine(folder):
    _save(folder / "labels" / "p1_b.nii.gz", _label(1), np.diag([-0.8, 0.8, 3.0, 1.0]))


def _fractions(folder):
    _save(folder / "labels" / "p1_b.nii.gz", _label(1).astype(np.float32) * 0.5)


def _infinite(folder):
    label = _label(1).astype(np.float32)
    label[3, 3, 3] = np.inf
    _save(folder / "labels" / "p1_b.nii.gz", label)


def _unit(folder):
    image = nib.Nifti1Image(_image(1), AFFINE)
    image.header["xyzt_units"] = 6
    nib.save(image, folder / "images" / "p1_b.nii.gz")


def _negative(folder):
    _save(folder / "labels" / "p1_b.nii.gz", _label(1).astype(np.int16) - 1)


def _channels(folder):
    _save(folder / "labels" / "p1_b.nii.gz", _label(1, (20, 18, 7, 2)))


def _cut(folder):
    path = folder / "images" / "p1_b.nii.gz"
    path.write_bytes(path.read_bytes()[:-2000])


def _nan(folder):
    image = _image(1).astype(np.float32)
    image[3, 3, 3] = np.nan
    _save(folder / "images" / "p1_b.nii.gz", image)


def _no_label(folder):
    (folder / "labels" / "p1_b.nii.gz").unlink()


def _no_image(folder):
    (folder / "images" / "p1_b.nii.gz").unlink()


def _two_images(folder):
    _save(folder / "images" / "p1_b.nii", _image(1))


def _bad_name(folder):
    for kind in ("images", "labels"):
        (folder / kind / "p1_b.nii.gz").rename(folder / kind / "p1#b.nii.gz")


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (_other_shape, r"label 'organs' has \(6, 18, 20\) voxels .* its image \(7, 18, 20\)"),
        (
            _other_affine,
            "spacing is 3 x 0.8 x 0.8, the image's 2.5 x .* 1.2 voxels apart",
        ),
        (_fractions, "no whole numbers"),
        (_infinite, r"holds inf, expected whole numbers below 2\^53"),
        (_unit, "p1_b.nii.gz: unit 6 of the voxel sizes"),
        (_negative, "holds -1. Labels start at 0"),
        (_channels, "has 2 channels .* argmax"),
        (_cut, r"p1_b.nii.gz: not a readable NIfTI file .*cut short"),
        (_nan, "holds NaN or infinite voxels"),
        (_no_label, "has no label of that name in .*labels"),
        (_no_image, "has no image of that name in .*images"),
        (_two_images, "holds p1_b.nii and p1_b.nii.gz"),
        (_bad_name, "not a name"),
    ],
)
def test_one_bad_pair_is_reported_and_the_others_go_on(pairs, damage, text):
    damage(pairs)
    report = _ingest(pairs)
    assert sorted(report.done) == ["p1_a", "p2_a"]
    assert {f.case for f in report.failed} <= {"p1_b", "p1#b"}
    assert re.search(text, str(report.failed[0])), report.failed
    assert [info.case for info in load_index(Archive.open(pairs / "archive"))] == ["p1_a", "p2_a"]


def test_pairs_that_are_not_taken_fail_by_name_and_the_rest_is_counted(pairs):
    for kind in ("images", "labels"):
        (pairs / kind / "c90.nrrd").write_bytes(b"NRRD0004")
        _save(pairs / kind / "siteB" / "c94.nii.gz", _label())
        (pairs / kind / "notes.txt").write_text("")
        (pairs / kind / "._p1_a.nii.gz").write_bytes(b"")
    report = _ingest(pairs)
    assert sorted(report.done) == ["p1_a", "p1_b", "p2_a"]
    assert [fault.case for fault in report.failed] == ["c90", "siteB/c94"]
    assert report.exit_code == 1
    images, _ = report.notes
    assert "images: not taken are 1 .nrrd, 1 .txt, 1 in the folder siteB/" in images
    assert "._p1_a" not in report.text()


def test_links_to_nowhere_are_failed_cases(pairs):
    for kind in ("images", "labels"):
        (pairs / kind / "p1_b.nii.gz").unlink()
        (pairs / kind / "p1_b.nii.gz").symlink_to("../.git/annex/objects/x.nii.gz")
    report = _ingest(pairs)
    assert sorted(report.done) == ["p1_a", "p2_a"]
    assert re.search(r"p1_b\.nii\.gz: a link to \.\./\.git.*datalad", report.failed[0].reason)


def test_many_files_alike_without_a_partner_are_told_as_one(pairs):
    for number in range(5):
        _save(pairs / "images" / f"q{number}_0000.nii.gz", _image())
        _save(pairs / "labels" / f"q{number}.nii.gz", _label())
    report = _ingest(pairs)
    assert len(report.failed) == 10
    lines = report.text().splitlines()
    (said,) = [line for line in lines if "nnU-Net" in line]
    assert "5 cases alike (q0_0000, q1_0000, q2_0000 and 2 more), the first: " in said
    assert "rename it without _0000" in said


def test_what_nobody_thought_of_costs_one_case_only(pairs):
    _ingest(pairs)
    listing = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": {"labels": 5}}}
    Archive.open(pairs / "archive").at("p1_b").put_json("labels/zarr.json", listing)
    report = _ingest(pairs)
    assert report.done == {"p1_a": "reused", "p2_a": "reused"}
    (fault,) = report.failed
    assert fault.case == "p1_b"
    assert "TypeError: 'int' object is not iterable" in fault.reason


def test_micrometres_are_millimetres_in_the_archive_and_leave_as_micrometres(pairs):
    for folder, values in (("images", _image(1)), ("labels", _label(1))):
        image = nib.Nifti1Image(values, AFFINE * [[1000], [1000], [1000], [1]])
        image.header.set_xyzt_units("micron")
        nib.save(image, pairs / folder / "p1_b.nii.gz")
    assert _ingest(pairs).failed == ()
    archive = Archive.open(pairs / "archive")
    assert archive.affine("p1_b") == pytest.approx(AFFINE)
    assert archive.spacing_mm("p1_b") == pytest.approx((2.5, 0.8, 0.8))
    export_nifti(archive, "organs", pairs / "out")
    _assert_same_file(pairs / "labels" / "p1_b.nii.gz", pairs / "out" / "p1_b.nii.gz")


def test_places_in_a_microscope_image_are_told_apart(pairs):
    for folder, values, away in (("images", _image(1), 0), ("labels", _label(1), 0.1)):
        affine = AFFINE.copy()
        affine[0, 3] = away
        image = nib.Nifti1Image(values, affine)
        image.header.set_xyzt_units("micron")
        nib.save(image, pairs / folder / "p1_b.nii.gz")
    (fault,) = _ingest(pairs).failed
    assert "origin is 0 x 0 x 0.0001 mm (z, y, x) away" in fault.reason


def test_affines_equal_up_to_rounding_are_the_same_place(pairs):
    _save(pairs / "labels" / "p1_b.nii.gz", _label(1), AFFINE * (1 + 1e-6))
    assert _ingest(pairs).failed == ()


def test_folders_without_images_and_bad_patterns_stop_before_any_write(pairs):
    with pytest.raises(ConfigError, match=r"no \.nii or \.nii\.gz file here"):
        ingest_nifti(pairs, pairs / "labels", pairs / "archive", "organs")
    with pytest.raises(ConfigError, match="patient pattern"):
        _ingest(pairs, patient_regex="(")
    with pytest.raises(ConfigError, match="no such file"):
        _ingest(pairs, table=str(pairs / "none.csv"))
    (pairs / "t.csv").write_text("name,patient\np1_a,anna\n")
    with pytest.raises(ConfigError, match="one must be `case`"):
        _ingest(pairs, table=str(pairs / "t.csv"))
    (pairs / "t.csv").write_text("case,patient\np1_a,anna\n,paul\n")
    with pytest.raises(ConfigError, match="line 3 names no case"):
        _ingest(pairs, table=str(pairs / "t.csv"))
    (pairs / "t.csv").write_text("case,patient\np1_a.nii.gz,anna\n")
    with pytest.raises(ConfigError, match=r"its cases are p1_a\.nii\.gz, those of .* p1_a, p1_b"):
        _ingest(pairs, table=str(pairs / "t.csv"))
    assert not (pairs / "archive").exists()


def test_names_that_no_config_could_give_and_names_given_twice_stop_before_any_write(pairs):
    for name in ("my organs", "a/b", "-x", "organs\n", ""):
        with pytest.raises(ConfigError, match="not a name for a label"):
            ingest_nifti(pairs / "images", pairs / "labels", pairs / "archive", name)
        with pytest.raises(ConfigError, match="not a name for a label"):
            _ingest(pairs, extra_labels={name: pairs / "labels"})
    with pytest.raises(ConfigError, match="label 'organs' is given two folders"):
        _ingest(pairs, extra_labels={"organs": pairs / "images"})
    assert not (pairs / "archive").exists()


def test_spaces_in_a_table_do_not_count_and_rows_of_no_case_are_mentioned(pairs, caplog):
    (pairs / "t.csv").write_text("case , patient\np1_a, anna\np9_z, paul\n")
    _ingest(pairs, table=str(pairs / "t.csv"))
    assert Archive.open(pairs / "archive").attributes("p1_a")["patient"] == "anna"
    assert "no image for p9_z" in caplog.text
    assert "no row for p1_b, p2_a" in caplog.text


def test_an_archive_in_azure_is_refused_before_anything_is_written(pairs):
    with pytest.raises(UnfitEnvironment, match=r"az://box/a: arrays in Azure cannot be read yet"):
        _ingest(pairs, "az://box/a")


def test_an_archive_that_cannot_be_written_is_an_unfit_environment(pairs):
    (pairs / "archive").write_bytes(b"")
    with pytest.raises(UnfitEnvironment, match="A file stands where a folder is needed"):
        _ingest(pairs)


def _assert_same_file(before, after):
    a, b = nib.load(before), nib.load(after)
    assert a.shape == b.shape
    assert a.get_data_dtype() == b.get_data_dtype()
    assert np.array_equal(a.affine, b.affine)
    assert np.array_equal(a.header.get_zooms(), b.header.get_zooms())
    assert np.array_equal(np.asarray(a.dataobj), np.asarray(b.dataobj))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float64, np.int32])
def test_a_label_and_its_image_leave_the_archive_as_they_came(pairs, place, dtype):
    _save(pairs / "labels" / "p1_a.nii.gz", _label(4, dtype=dtype))
    _ingest(pairs, place)
    for label, folder in (("organs", "labels"), (None, "images")):
        report = export_nifti(Archive.open(place), label, pairs / "out" / folder)
        assert (tuple(report.done), report.failed) == (("p1_a", "p1_b", "p2_a"), ())
        for case in report.done:
            name = f"{folder}/{case}.nii.gz"
            _assert_same_file(pairs / name, pairs / "out" / name)


def test_a_derived_label_leaves_with_the_geometry_of_its_source(pairs):
    _ingest(pairs)
    archive = Archive.open(pairs / "archive")
    archive.begin_label("p1_a", "clean", like="organs")
    archive.begin_label("p1_b", "clean")
    for case in ("p1_a", "p1_b"):
        archive.publish_label(case, "clean")
    report = export_nifti(archive, "clean", pairs / "out")
    assert tuple(report.done) == ("p1_a", "p1_b")
    assert "label 'clean' is missing" in str(report.failed[0])
    for case in report.done:
        after = nib.load(pairs / "out" / f"{case}.nii.gz")
        assert np.array_equal(after.affine, nib.load(pairs / f"labels/{case}.nii.gz").affine)
        assert after.get_data_dtype() == np.uint8
        assert not np.asarray(after.dataobj).any()


def test_a_label_that_was_never_published_is_not_exported(pairs):
    _ingest(pairs)
    archive = Archive.open(pairs / "archive")
    for case in ("p1_a", "p1_b"):
        archive.begin_label(case, "clean", like="organs")
    archive.publish_label("p1_b", "clean")
    report = export_nifti(archive, "clean", pairs / "out", ["p1_a", "p1_b"])
    assert "label 'clean' was begun but not published" in str(report.failed[0])
    assert [path.name for path in (pairs / "out").iterdir()] == ["p1_b.nii.gz"]


def test_a_case_whose_voxels_are_gone_stops_no_other_export(pairs):
    _ingest(pairs)
    archive = Archive.open(pairs / "archive")
    archive.at("p1_a").delete("labels/organs/0/zarr.json")
    report = export_nifti(archive, "organs", pairs / "out", ["p1_a", "p1_b"])
    assert tuple(report.done) == ("p1_b",)
    assert "case p1_a: " in str(report.failed[0])
    assert "no Zarr v3 array here" in str(report.failed[0])


def test_an_archive_without_cases_is_not_exported(tmp_path):
    with pytest.raises(InputError, match="none: no case here"):
        export_nifti(Archive.open(tmp_path / "none"), "organs", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_export_writes_only_the_cases_asked_for(pairs):
    _ingest(pairs)
    export_nifti(Archive.open(pairs / "archive"), "organs", pairs / "out", ["p2_a"])
    assert [p.name for p in (pairs / "out").iterdir()] == ["p2_a.nii.gz"]


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real hippocampus cases are not at {REAL}")
def test_real_cases_survive_the_round_trip_bit_for_bit(tmp_path):
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
        for path in sorted((REAL / kind).glob("*.nii.gz"))[:6]:
            (tmp_path / kind / path.name).symlink_to(path)
    report = _ingest(tmp_path)
    assert (len(report.done), report.failed) == (6, ())
    for label, folder in (("organs", "labels"), (None, "images")):
        export_nifti(Archive.open(tmp_path / "archive"), label, tmp_path / "out" / folder)
        for case in report.done:
            name = f"{folder}/{case}.nii.gz"
            _assert_same_file(tmp_path / name, tmp_path / "out" / name)


@pytest.mark.parametrize(("label", "folder"), [("organs", "labels"), (None, "images")])
def test_an_export_never_writes_over_what_was_ingested(pairs, label, folder):
    _ingest(pairs)
    archive = Archive.open(pairs / "archive")
    before = {path: path.read_bytes() for path in (pairs / folder).iterdir()}
    (pairs / folder / "p1_b.nii.gz").unlink()
    report = export_nifti(archive, label, pairs / folder)
    assert tuple(report.done) == ("p1_b",)
    assert "p1_a.nii.gz is a file that was ingested" in str(report.failed[0])
    del before[pairs / folder / "p1_b.nii.gz"]
    assert {path: path.read_bytes() for path in before} == before
    for _ in range(2):
        assert not export_nifti(archive, label, pairs / "out").failed, "exports repeat"


def test_a_label_that_a_run_has_begun_is_not_ingested_over(pairs):
    _ingest(pairs)
    archive = Archive.open(pairs / "archive")
    archive.begin_label("p1_a", "clean", like="organs")
    more = {"clean": pairs / "labels"}
    report = _ingest(pairs, extra_labels=more)
    assert "label 'clean' was begun by a run" in str(report.failed[0])
    archive.publish_label("p1_a", "clean")
    report = _ingest(pairs, extra_labels=more)
    assert "label 'clean' was published by a run" in str(report.failed[0])
    assert archive.is_derived("p1_a", "clean")


def test_an_odd_case_of_any_kind_stops_no_other_export(pairs):
    _ingest(pairs)
    archive = Archive.open(pairs / "archive")
    half = np.ones((4, 5, 6), np.float16)
    write_case(archive, "half", half, {}, spacing_mm=(1.0, 1.0, 1.0))
    document = archive.at("p1_b").get_json("zarr.json")
    document["attributes"]["ome"] = ["not", "a", "mapping"]
    archive.at("p1_b").put_json("zarr.json", document)
    report = export_nifti(archive, None, pairs / "out")
    assert tuple(report.done) == ("half", "p1_a", "p2_a")
    assert [fault.case for fault in report.failed] == ["p1_b"]
    assert np.asanyarray(nib.load(pairs / "out" / "half.nii.gz").dataobj).dtype == np.float32
