import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorstore as ts
import zarr
from ome_zarr_models.v05 import Image
from ome_zarr_models.v05.image_label import ImageLabel
from ome_zarr_models.v05.labels import Labels

from raysegclean.errors import CaseError, RunConflict
from raysegclean.store import archive as archive_module
from raysegclean.store.archive import Archive, write_case
from raysegclean.store.holder import this_process
from raysegclean.store.objects import Store
from raysegclean.store.shards import put_shard
from tests.store.as_zarr import as_zarr

AFFINE = np.array([[-0.7, 0, 0, 90.5], [0, 0.7, 0, -20], [0, 0, 5, 3], [0, 0, 0, 1.0]])


@pytest.fixture
def archive(place, small_case):
    image, label = small_case
    made = Archive.open(place)
    options = {"spacing_mm": (5.0, 0.7, 0.7), "affine": AFFINE}
    write_case(made, "c1", image, {"organs": label}, **options)
    return made


def _settle(archive, name, label, **options):
    spec = archive.begin_label("c1", name, like="organs", **options)
    for index in spec.grid.indices():
        block = label[spec.grid.box(index).slices]
        put_shard(archive.at("c1"), f"labels/{name}/0", index, block, spec)
    return spec


def _group(archive, path=""):
    return zarr.open_group(as_zarr(archive.at("c1")), path=path, mode="r", zarr_format=3)


def test_a_case_reads_back_with_its_geometry(archive, small_case):
    image, label = small_case
    assert archive.case_ids() == ["c1"]
    assert archive.label_names("c1") == ("organs",)
    assert archive.spacing_mm("c1") == (5.0, 0.7, 0.7)
    assert np.array_equal(archive.affine("c1"), AFFINE)
    assert np.array_equal(archive.image("c1").read_all(), image)
    assert np.array_equal(archive.label("c1", "organs").read_all(), label)
    assert pickle.loads(pickle.dumps(archive)) == archive


def test_ome_zarr_models_accepts_image_and_labels(archive, small_case):
    _settle(archive, "organs_clean", small_case[1])
    archive.publish_label("c1", "organs_clean")
    image = Image.from_zarr(_group(archive))
    assert [axis.name for axis in image.attributes.ome.multiscales[0].axes] == ["z", "y", "x"]
    assert Labels.from_zarr(_group(archive, "labels")).label_paths == ["organs", "organs_clean"]
    for name in ("organs", "organs_clean"):
        label = ImageLabel.from_zarr(_group(archive, f"labels/{name}"))
        assert label.attributes.ome.image_label.source.image == "../../"
        levels = label.attributes.ome.multiscales[0].datasets
        assert len(levels) == len(image.attributes.ome.multiscales[0].datasets)
        assert levels[0].coordinateTransformations[0].scale == [5.0, 0.7, 0.7]


def test_ome_zarr_models_accepts_channels_and_labels_without_them(place, small_case):
    image, label = small_case
    archive = Archive.open(place)
    write_case(archive, "c1", np.stack([image, image]), {"organs": label}, spacing_mm=(5, 1, 1))
    assert archive.image("c1").channels == 2
    parsed = Image.from_zarr(_group(archive))
    assert [axis.name for axis in parsed.attributes.ome.multiscales[0].axes] == list("czyx")
    ImageLabel.from_zarr(_group(archive, "labels/organs"))
    assert archive.affine("c1") is None


def test_zarr_python_and_tensorstore_read_the_same_values(archive, small_case):
    store = archive.at("c1")
    for path, expected in (("0", small_case[0]), ("labels/organs/0", small_case[1])):
        by_ts = ts.open({"driver": "zarr3", "kvstore": store.kvstore(path)}).result().read()
        assert np.array_equal(_group(archive)[path][...], expected)
        assert np.array_equal(by_ts.result(), expected)


def test_a_label_is_seen_only_once_published(archive, small_case):
    _settle(archive, "clean", small_case[1])
    assert archive.label_names("c1") == ("organs",)
    assert np.array_equal(archive.label("c1", "clean").read_all(), small_case[1])
    archive.publish_label("c1", "clean")
    archive.publish_label("c1", "clean")
    assert archive.label_names("c1") == ("clean", "organs")
    assert np.array_equal(archive.label("c1", "clean").read_all(), small_case[1])


def test_a_label_that_was_only_begun_is_no_published_one(archive, small_case):
    _settle(archive, "clean", small_case[1], attributes={"run": "s3://b/r1"})
    says = r"case c1: label 'clean' was begun but not published.*raysegclean status s3://b/r1"
    with pytest.raises(CaseError, match=says):
        archive.published_label("c1", "clean")
    archive.publish_label("c1", "clean")
    assert np.array_equal(archive.published_label("c1", "clean").read_all(), small_case[1])
    with pytest.raises(CaseError, match="label 'x' is missing"):
        archive.published_label("c1", "x")


def test_labels_published_at_the_same_time_all_land(archive, small_case):
    names = [f"label_{i}" for i in range(6)]
    for name in names:
        _settle(archive, name, small_case[1])
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda name: archive.publish_label("c1", name), names))
    assert archive.label_names("c1") == (*names, "organs")


def test_withdrawing_hides_a_label_and_deleting_removes_it(archive, small_case):
    _settle(archive, "clean", small_case[1])
    archive.publish_label("c1", "clean")
    archive.withdraw_label("c1", "clean")
    archive.withdraw_label("c1", "clean")
    assert archive.label_names("c1") == ("organs",)
    assert archive.label("c1", "clean").read_all().any()
    archive.delete_label("c1", "clean")
    archive.delete_label("c1", "clean")
    assert list(archive.at("c1").list("labels/clean")) == []


def test_a_label_begun_again_by_the_same_run_goes_on(archive, small_case):
    spec = _settle(archive, "clean", small_case[1], attributes={"run": "r1", "grid": (1, 2)})
    again = _settle(archive, "clean", small_case[1], attributes={"run": "r1", "grid": (1, 2)})
    assert again == spec
    assert archive.label_attributes("c1", "clean")["run"] == "r1"


def test_a_label_of_another_run_is_refused_naming_what_differs(archive, small_case):
    _settle(archive, "clean", small_case[1], attributes={"run": "r1", "key": "k"})
    with pytest.raises(
        RunConflict, match=r"'clean' belongs to another run, .*r1; these differ: run\."
    ):
        archive.begin_label("c1", "clean", like="organs", attributes={"run": "r2", "key": "k"})


def test_a_run_is_the_same_however_its_folder_is_written(archive, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    archive.begin_label("c1", "clean", attributes={"run": "runs/r1", "train_key": "k"})
    for run in ("runs/r1/", str(tmp_path / "runs" / "r1"), f"file://{tmp_path}/runs/r1"):
        archive.begin_label("c1", "clean", attributes={"run": run, "train_key": "k"})
    with pytest.raises(RunConflict, match=r"these differ: run\."):
        archive.begin_label("c1", "clean", attributes={"run": "runs/r2", "train_key": "k"})


def test_a_label_of_the_same_run_is_begun_anew_when_the_given_one_changed(archive, small_case):
    own = {"run": "r1", "train_key": "k"}
    _settle(archive, "clean", small_case[1], attributes=own)
    archive.publish_label("c1", "clean")
    wide = archive.begin_label("c1", "clean", dtype="uint16", attributes=own)
    assert wide.dtype == "uint16"
    assert archive.label_names("c1") == ("organs",)
    assert not archive.label("c1", "clean").read_all().any()
    other = {"run": "r1", "train_key": "l"}
    with pytest.raises(RunConflict, match=r"these differ: layout, train_key\."):
        archive.begin_label("c1", "clean", attributes=other)
    archive.begin_label("c1", "nobodys")
    with pytest.raises(RunConflict, match=r"these differ: layout\."):
        archive.begin_label("c1", "nobodys", dtype="uint16")


@pytest.mark.parametrize(
    "touch",
    [
        lambda archive: archive.begin_label("c1", "organs"),
        lambda archive: archive.withdraw_label("c1", "organs"),
        lambda archive: archive.delete_label("c1", "organs"),
    ],
)
def test_a_given_label_is_never_touched(archive, touch):
    before = list(archive.store.list())
    with pytest.raises(RunConflict, match="came with the case and is never written"):
        touch(archive)
    assert list(archive.store.list()) == before


def test_beginning_takes_shape_and_dtype_from_the_case(archive):
    spec = archive.begin_label("c1", "wide", dtype="uint16", shard_zyx=(64, 64, 64))
    assert (spec.shape_zyx, spec.dtype, spec.shard_zyx) == ((37, 70, 65), "uint16", (64, 64, 64))
    assert archive.begin_label("c1", "same", like="organs").dtype == "uint8"
    assert archive.begin_label("c1", "same", like="organs").shard_zyx == (64, 128, 128)


def test_missing_cases_and_labels_are_case_errors(archive):
    with pytest.raises(CaseError, match=r"case c9: no zarr\.json at"):
        archive.image("c9")
    with pytest.raises(CaseError, match=r"case c1: label 'x' is missing; the case has organs"):
        archive.label("c1", "x")
    assert archive.label_names("c9") == ()


def test_a_case_is_not_written_over(archive, small_case):
    with pytest.raises(CaseError, match="exists already"):
        write_case(archive, "c1", small_case[0], {}, spacing_mm=(1, 1, 1))


def test_a_case_cut_short_is_not_whole_and_can_be_written_again(tmp_path, small_case):
    image, label = small_case
    archive = Archive.open(tmp_path)
    write_case(archive, "c1", image, {"organs": label}, spacing_mm=(1, 1, 1))
    archive.at("c1").delete("zarr.json")
    with pytest.raises(CaseError, match="an ingest was cut short"):
        archive.image("c1")
    write_case(archive, "c1", image[:20], {}, spacing_mm=(1, 1, 1))
    assert archive.image("c1").shape == (20, 70, 65)
    assert archive.label_names("c1") == ()


def _foreign(tmp_path, change):
    """A case as another program may have written it."""
    archive = Archive.open(tmp_path)
    image = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    write_case(archive, "c1", image, {}, spacing_mm=(1, 1, 1))
    document = archive.at("c1").get_json("zarr.json")
    change(document["attributes"]["ome"]["multiscales"][0])
    archive.at("c1").put_json("zarr.json", document)
    return archive


def test_units_and_shared_scales_of_others_are_understood(tmp_path):
    def change(multiscale):
        for axis in multiscale["axes"]:
            axis["unit"] = "micrometer"
        multiscale["coordinateTransformations"] = [{"type": "scale", "scale": [500, 200, 100]}]
        multiscale["datasets"][0]["coordinateTransformations"].append(
            {"type": "translation", "translation": [1, 2, 3]}
        )

    archive = _foreign(tmp_path, change)
    assert archive.spacing_mm("c1") == pytest.approx((0.5, 0.2, 0.1))
    archive.begin_label("c1", "mask")
    archive.publish_label("c1", "mask")
    label = ImageLabel.from_zarr(_group(archive, "labels/mask"))
    steps = label.attributes.ome.multiscales[0].datasets[0].coordinateTransformations
    assert steps[1].translation == [1, 2, 3]


def test_axes_that_do_not_end_in_zyx_are_refused(tmp_path):
    archive = _foreign(tmp_path, lambda m: m["axes"].reverse())
    with pytest.raises(CaseError, match="axes 'xyz', expected zyx, czyx"):
        archive.image("c1")


def test_a_group_without_multiscales_is_refused(tmp_path):
    archive = _foreign(tmp_path, lambda m: m.clear())
    with pytest.raises(CaseError, match=r"no OME-Zarr 0\.5 multiscale"):
        archive.image("c1")


def _steps(*steps):
    return lambda multiscale: multiscale["datasets"][0].update(coordinateTransformations=steps)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_steps({"type": "scale", "scale": [1.0, 2.0]}), "each with 3 numbers"),
        (_steps({"type": "scale", "path": "s"}), "each with 3 numbers"),
        (_steps({"type": "scale", "scale": ["1", "1", "1"]}), "each with 3 numbers"),
        (_steps("scale"), "each with 3 numbers"),
        (_steps({"type": "translation", "translation": [1, 2, 3]}), "no scale in"),
        (_steps(), "no scale in"),
        (lambda m: m["datasets"][0].pop("coordinateTransformations"), "no scale in"),
        (lambda m: m.update(coordinateTransformations={"type": "scale"}), "each with 3 numbers"),
    ],
)
def test_a_scale_that_is_missing_or_not_understood_is_refused(tmp_path, change, text):
    archive = _foreign(tmp_path, change)
    for ask in (archive.spacing_mm, archive.image, lambda case: archive.begin_label(case, "mask")):
        with pytest.raises(CaseError, match=rf"c1\.ome\.zarr: .*{text}"):
            ask("c1")


def test_a_unit_that_is_no_text_is_refused(tmp_path):
    archive = _foreign(tmp_path, lambda m: m["axes"][0].update(unit=["mm"]))
    with pytest.raises(CaseError, match="its unit is none of millimeter"):
        archive.spacing_mm("c1")


def test_metadata_is_plain_json_without_numbers_that_readers_refuse(archive):
    for info in archive.store.list():
        if info.key.endswith("zarr.json"):
            json.loads(archive.store.get(info.key), parse_constant=pytest.fail)
    assert Store.open(archive.store.uri).get_json("c1.ome.zarr/zarr.json")["zarr_format"] == 3


def test_a_case_of_an_older_format_is_named_as_one(tmp_path):
    (tmp_path / "old.ome.zarr").mkdir()
    (tmp_path / "old.ome.zarr" / ".zgroup").write_text('{"zarr_format": 2}')
    with pytest.raises(CaseError, match=r"case old: .*is OME-Zarr 0\.4 \(Zarr v2\), expected 0\.5"):
        Archive.open(tmp_path).image("old")


def _edit(archive, key, change):
    document = archive.at("c1").get_json(key)
    change(document)
    archive.at("c1").put_json(key, document)


def test_what_is_published_in_a_consolidated_case_can_be_opened_from_its_root(archive, small_case):
    zarr.consolidate_metadata(as_zarr(archive.at("c1")), zarr_format=3)
    _settle(archive, "organs_clean", small_case[1])
    archive.publish_label("c1", "organs_clean")
    assert _group(archive)["labels/organs_clean/0"].shape == small_case[1].shape
    assert _group(archive)["labels"].attrs["ome"]["labels"] == ["organs", "organs_clean"]
    archive.delete_label("c1", "organs_clean")
    assert "organs_clean" not in _group(archive)["labels"]
    assert _group(archive)["labels"].attrs["ome"]["labels"] == ["organs"]


def test_a_label_that_is_not_listed_is_told_from_one_that_is_missing(archive):
    _edit(archive, "labels/zarr.json", lambda d: d["attributes"]["ome"].update(labels=[]))
    with pytest.raises(CaseError, match=r"'organs' is there, but labels/zarr\.json does not list"):
        archive.published_label("c1", "organs")
    with pytest.raises(CaseError, match="'tumour' is missing; the case has no label"):
        archive.published_label("c1", "tumour")


def test_one_time_point_and_one_channel_are_read_without_these_axes(place, small_case):
    image, label = small_case
    archive = Archive.open(place)
    write_case(archive, "c1", image, {"organs": label}, spacing_mm=(5, 1, 1))

    def five(document):
        level = document["attributes"]["ome"]["multiscales"][0]
        level["axes"] = [{"name": "t", "type": "time"}, {"name": "c", "type": "channel"}] + level[
            "axes"
        ]
        for step in level["datasets"][0]["coordinateTransformations"]:
            step["scale"] = [1.0, 1.0, *step["scale"]]

    for path, values in (("", image), ("labels/organs/", label)):
        archive.at("c1").delete_all(f"{path}0")
        array = zarr.create_array(
            as_zarr(archive.at("c1")),
            name=f"{path}0",
            shape=(1, 1, *values.shape),
            chunks=(1, 1, 16, 64, 64),
            dtype=values.dtype,
        )
        array[0, 0] = values
        _edit(archive, f"{path}zarr.json", five)
    assert np.array_equal(archive.image("c1").read_all(), image)
    assert archive.image("c1").channels == 1
    assert np.array_equal(
        pickle.loads(pickle.dumps(archive.label("c1", "organs"))).read_all(), label
    )
    assert archive.spacing_mm("c1") == (5, 1, 1)
    _settle(archive, "organs_clean", label)
    archive.publish_label("c1", "organs_clean")
    ImageLabel.from_zarr(_group(archive, "labels/organs_clean"))


def test_where_a_label_lies_follows_all_its_transformations(archive):
    def moved(document):
        multiscale = document["attributes"]["ome"]["multiscales"][0]
        multiscale["axes"][0]["unit"] = "centimeter"
        multiscale["datasets"][0]["coordinateTransformations"] = [
            {"type": "scale", "scale": [0.25, 0.35, 0.35]},
            {"type": "translation", "translation": [1.0, 2.0, 3.0]},
        ]
        multiscale["coordinateTransformations"] = [{"type": "scale", "scale": [2.0, 2.0, 2.0]}]

    _edit(archive, "labels/organs/zarr.json", moved)
    affine = archive.placed("c1", "organs").affine
    assert np.allclose(affine, [[0.7, 0, 0, 6], [0, 0.7, 0, 4], [0, 0, 5, 20], [0, 0, 0, 1]])


def _written_by(archive, case, value):
    voxels = np.full((4, 5, 6), value, np.uint8)
    write_case(archive, case, voxels.astype(np.int16), {"organs": voxels}, spacing_mm=(1, 1, 1))


def test_of_two_ingests_one_writes_a_case_and_the_other_is_told(tmp_path, monkeypatch):
    archive, real, told = Archive.open(tmp_path), archive_module.put_shard, []

    def meanwhile(*args, **options):
        if not told:
            told.append("")
            with pytest.raises(CaseError) as refused:
                _written_by(archive, "c1", 2)
            told[0] = str(refused.value)
        return real(*args, **options)

    monkeypatch.setattr(archive_module, "put_shard", meanwhile)
    _written_by(archive, "c1", 1)
    assert told[0].startswith("case c1: another ingest writes it now. Run this one again")
    assert np.unique(archive.image("c1").read_all()).tolist() == [1]
    assert np.unique(archive.label("c1", "organs").read_all()).tolist() == [1]
    assert not [info.key for info in archive.at("c1").list() if info.key.endswith("ingest.json")]


def test_the_claim_of_an_ingest_that_died_is_taken_over_with_what_it_left(tmp_path, monkeypatch):
    archive, real = Archive.open(tmp_path), archive_module.put_shard

    def stopped(*args, **options):
        real(*args, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(archive_module, "put_shard", stopped)
        with pytest.raises(KeyboardInterrupt):
            _written_by(archive, "c1", 1)
    claim = archive.at("c1").get_json("ingest.json")
    claim["holder"] = vars(this_process()) | {"started": 1}
    archive.at("c1").put_json("ingest.json", claim)
    _written_by(archive, "c1", 2)
    assert np.unique(archive.image("c1").read_all()).tolist() == [2]


def test_an_ingest_that_lost_its_claim_shows_nothing(tmp_path, monkeypatch):
    archive, real = Archive.open(tmp_path), archive_module._write_label

    def taken_over(store, *args):
        real(store, *args)
        claim = store.get_json("ingest.json")
        store.put_json("ingest.json", claim | {"token": "of another"})

    monkeypatch.setattr(archive_module, "_write_label", taken_over)
    with pytest.raises(CaseError, match="another ingest writes it now"):
        _written_by(archive, "c1", 1)
    assert archive.at("c1").head("zarr.json") is None
