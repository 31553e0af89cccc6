import random
import re
import weakref
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegclean.store import index as index_module
from raysegclean.store import scan
from raysegclean.store.archive import Archive, write_case
from raysegclean.store.arrays import Volume
from raysegclean.store.index import build_index, load_index, save_index
from raysegclean.store.objects import Store
from raysegclean.store.scan import scan_intensity, scan_values
from raysegclean.voxels.geometry import Box
from tests.store.as_zarr import as_zarr


def _archive(place, small_case, cases=("c1", "c2", "c3")):
    image, label = small_case
    archive = Archive.open(place)
    for i, case in enumerate(cases):
        facts = {"patient": f"p{i}", "site": "north"}
        labels = {"organs": label}
        options = {"spacing_mm": (5.0, 0.7, 0.7), "attributes": facts}
        write_case(archive, case, image + i, labels, **options)
    return archive


def _reads(monkeypatch):
    """Count the scans of images and labels from now on."""
    seen = []
    for name in ("scan_intensity", "scan_values"):
        scan = getattr(index_module, name)
        monkeypatch.setattr(
            index_module, name, lambda v, scan=scan: (seen.append(v.uri), scan(v))[1]
        )
    return seen


def test_the_index_knows_what_is_in_each_case(place, small_case):
    image, label = small_case
    index = load_index(_archive(place, small_case))
    assert ([info.case for info in index], index.failed) == (["c1", "c2", "c3"], ())
    info = index.cases[1]
    assert (info.patient, info.site, info.annotator) == ("p1", "north", None)
    assert (info.shape_zyx, info.channels, info.image_dtype) == ((37, 70, 65), 1, "int16")
    assert info.spacing_mm == (5.0, 0.7, 0.7)
    assert info.intensity.maximum == image.max() + 1
    assert info.label("organs").voxels == {v: int((label == v).sum()) for v in (0, 1, 3)}


def test_loading_again_reads_no_voxel_and_gives_the_same(place, small_case, monkeypatch):
    archive = _archive(place, small_case)
    first = load_index(archive)
    seen = _reads(monkeypatch)
    assert load_index(archive) == first
    assert seen == []


def test_only_what_changed_is_read_again(place, small_case, monkeypatch):
    archive = _archive(place, small_case)
    before = load_index(archive)
    archive.begin_label("c2", "empty", like="organs")
    archive.publish_label("c2", "empty")
    archive.set_attributes("c3", {"patient": "other"})
    archive.at("c1").delete_all("labels")
    seen = _reads(monkeypatch)
    after = load_index(archive)
    assert [Path(uri).parent.name for uri in seen] == ["empty"]
    assert [[s.name for s in info.labels] for info in after] == [
        [],
        ["empty", "organs"],
        ["organs"],
    ]
    assert after.cases[2].patient == "other"
    assert [i.image_version for i in after] == [i.image_version for i in before]
    assert after.cases[1].label("organs") == before.cases[1].label("organs")


def test_deleted_and_new_cases_are_noticed(place, small_case):
    archive = _archive(place, small_case)
    load_index(archive)
    archive.store.delete_all("c1.ome.zarr")
    write_case(archive, "c4", small_case[0], {}, spacing_mm=(1, 1, 1))
    assert [info.case for info in load_index(archive)] == ["c2", "c3", "c4"]
    assert [info.case for info in build_index(archive, ["c3"])] == ["c3"]


def test_a_read_only_archive_keeps_its_index_elsewhere(tmp_path, small_case, monkeypatch):
    archive = _archive(tmp_path / "a", small_case)
    first = load_index(archive, tmp_path / "index")
    assert not Path(tmp_path, "a", "cases.parquet").exists()
    seen = _reads(monkeypatch)
    assert load_index(archive, tmp_path / "index") == first
    assert seen == []


def test_an_archive_that_refuses_the_index_is_read_all_the_same(tmp_path, small_case, caplog):
    archive = _archive(tmp_path, small_case)
    Path(tmp_path, "cases.parquet").mkdir()
    assert len(load_index(archive)) == 3
    assert "cannot be kept" in caplog.text


def test_a_damaged_index_is_built_anew(tmp_path, small_case):
    archive = _archive(tmp_path, small_case)
    first = load_index(archive)
    Path(tmp_path, "cases.parquet").write_bytes(b"PAR1 rubbish")
    assert load_index(archive) == first


def test_wherever_an_index_is_damaged_no_wrong_row_comes_of_it(tmp_path, small_case):
    archive = _archive(tmp_path, small_case)
    kept = load_index(archive).cases
    path, rng = Path(tmp_path, "cases.parquet"), random.Random(0)
    whole = path.read_bytes()
    for turn in range(300):
        data = bytearray(whole)
        if turn % 2:
            del data[rng.randrange(1, len(data)) :]
        for _ in range(turn % 3):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        assert index_module._saved(archive.store) in ((), kept)


def test_an_empty_archive_has_an_empty_index(place):
    index = load_index(Archive.open(place))
    assert (len(index), index.failed) == (0, ())


def _replace(store, path, values):
    array = zarr.create_array(
        as_zarr(store),
        name=path,
        shape=values.shape,
        dtype=values.dtype,
        chunks=(32, 32, 32),
        overwrite=True,
    )
    array[...] = values


def _damage_nan(archive, store):
    image = archive.image("c2").read_all().astype(np.float32)
    image[36, 69, 64] = np.nan
    _replace(store, "0", image)


def _damage_axis(archive, store):
    document = store.get_json("0/zarr.json")
    document["shape"] = [0, 70, 65]
    store.put_json("0/zarr.json", document)


def _damage_dtype(archive, store):
    _replace(store, "labels/organs/0", np.zeros((37, 70, 65), np.float32))


def _damage_sign(archive, store):
    _replace(store, "labels/organs/0", np.full((37, 70, 65), -1, np.int16))


def _damage_shape(archive, store):
    document = store.get_json("labels/organs/0/zarr.json")
    document["shape"] = [37, 70, 64]
    store.put_json("labels/organs/0/zarr.json", document)


def _damage_shard(archive, store):
    [shard] = store.list("labels/organs/0/c")
    store.put(shard.key, store.get(shard.key)[:-20])


def _damage_root(archive, store):
    store.delete("zarr.json")


def _damage_array(archive, store):
    store.delete("0/zarr.json")


def _damage_metadata(archive, store):
    store.put("zarr.json", b'{"zarr_format": 3, "no')


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (_damage_nan, "holds NaN or infinite voxels"),
        (_damage_axis, r"image has \(0, 70, 65\) voxels"),
        (_damage_dtype, "dtype float32, expected integers"),
        (_damage_sign, "holds -1. Labels start at 0"),
        (_damage_shape, r"\(37, 70, 64\) voxels \(z, y, x\), its image \(37, 70, 65\)"),
        (_damage_shard, "labels/organs/0: box .* cannot be decoded.*truncated or damaged"),
        (_damage_root, "an ingest was cut short"),
        (_damage_array, "no Zarr v3 array here"),
        (_damage_metadata, "not JSON"),
    ],
)
def test_one_bad_case_is_reported_and_the_others_go_on(tmp_path, small_case, damage, text):
    archive = _archive(tmp_path, small_case)
    damage(archive, archive.at("c2"))
    index = load_index(archive)
    assert [info.case for info in index] == ["c1", "c3"]
    [fault] = index.failed
    assert fault.case == "c2"
    assert re.search(text, str(fault)), fault


def test_a_missing_label_is_reported_only_when_asked_for(tmp_path, small_case):
    archive = _archive(tmp_path, small_case)
    archive.at("c2").delete_all("labels")
    assert len(load_index(archive)) == 3
    index = load_index(archive, require_label="organs")
    assert [info.case for info in index] == ["c1", "c3"]
    assert "label 'organs' is missing" in str(index.failed[0])


def test_a_damaged_label_that_can_be_made_again_does_not_cost_the_case(tmp_path, small_case):
    archive = _archive(tmp_path, small_case)
    archive.begin_label("c2", "clean", like="organs")
    archive.publish_label("c2", "clean")
    archive.at("c2").put("labels/clean/0/c/0/0/0", b"rubbish")
    index = load_index(archive)
    assert [[s.name for s in info.labels] for info in index] == [["organs"]] * 3
    asked = load_index(archive, require_label="clean")
    assert "cannot be decoded" in next(str(f) for f in asked.failed if f.case == "c2")


def test_saved_rows_are_the_rows(tmp_path, small_case):
    index = build_index(_archive(tmp_path, small_case))
    save_index(Store.open(tmp_path / "kept"), index)
    assert load_index(Archive.open(tmp_path), tmp_path / "kept") == index


def _volume(folder, values, chunks):
    store = Store.open(folder)
    array = zarr.create_array(
        as_zarr(store), name="a", shape=values.shape, dtype=values.dtype, chunks=chunks
    )
    array[...] = values
    return Volume(store, "a")


@settings(max_examples=10, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 290), st.integers(1, 70), st.integers(1, 140)),
    dtype=st.sampled_from(["uint8", "uint16", "int32", "uint64"]),
    seed=st.integers(0, 99),
)
def test_block_counts_equal_a_plain_count(tmp_path_factory, shape, dtype, seed):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 4, shape).astype(dtype) * (rng.random(shape) < 0.1)
    volume = _volume(tmp_path_factory.mktemp("v"), label.astype(dtype), (64, 64, 64))
    voxels, blocks = scan_values(volume)
    found = {value: counts.rows().tolist() for value, counts in blocks.items()}
    assert voxels == dict(zip(*map(list, np.unique(label, return_counts=True)), strict=True))
    flat = 0
    for z in range(0, shape[0], 64):
        for y in range(0, shape[1], 64):
            for x in range(0, shape[2], 64):
                part = label[Box((z, y, x), (z + 64, y + 64, x + 64)).slices]
                for value in (1, 2, 3):
                    count = int((part == value).sum())
                    assert dict(found.get(value, [])).get(flat, 0) == count
                flat += 1
    assert all(pairs == sorted(pairs) for pairs in found.values())


@pytest.mark.parametrize("dtype", ["int16", "float32"])
@pytest.mark.parametrize("shape", [(2, 30, 40, 50), (300, 20, 30)])
def test_intensities_equal_numpy_on_the_whole_image(tmp_path, dtype, shape):
    image = np.random.default_rng(0).normal(-300, 400, shape).astype(dtype)
    found = scan_intensity(_volume(tmp_path, image, (1,) * (len(shape) - 3) + (16, 16, 16)))
    assert (found.minimum, found.maximum) == (image.min(), image.max())
    assert found.mean == pytest.approx(image.mean(dtype=float), rel=1e-9)
    assert found.std == pytest.approx(image.std(dtype=float), rel=1e-9)
    expected = np.percentile(image.astype(float), [0.5, 99.5])
    assert (found.p005, found.p995) == pytest.approx(expected, rel=1e-6)


def test_regions_that_were_scanned_are_let_go(tmp_path, monkeypatch):
    regions, living, most = scan._regions, [], 0

    def watched(volume):
        nonlocal most
        for box, region in regions(volume):
            living.append(weakref.ref(region))
            most = max(most, sum(one() is not None for one in living))
            yield box, region

    monkeypatch.setattr(scan, "_regions", watched)
    monkeypatch.setattr(scan, "_REGION_ZYX", (16, 16, 16))
    monkeypatch.setattr(scan, "_SAMPLES", 1000)
    image = np.random.default_rng(0).normal(0, 100, (64, 64, 16)).astype(np.float32)
    scan_intensity(_volume(tmp_path, image, (16, 16, 16)))
    assert len(living) == 16
    assert most <= 3


def test_percentiles_of_a_large_image_come_from_an_even_stride(tmp_path, monkeypatch):
    monkeypatch.setattr("raysegclean.store.scan._SAMPLES", 5000)
    image = np.random.default_rng(0).normal(0, 100, (60, 60, 60)).astype(np.float32)
    volume = _volume(tmp_path, image, (32, 32, 32))
    found = scan_intensity(volume)
    assert found == scan_intensity(volume)
    assert (found.p005, found.p995) == pytest.approx((-257.6, 257.6), rel=0.1)


@pytest.mark.parametrize(
    ("scale", "translation", "said"),
    [
        ([5.0, 0.7, 0.7], [0.0, 30.0, 30.0], r"origin is 0 x 30 x 30 mm .* 42\.9 voxels apart"),
        ([10.0, 0.7, 0.7], [0.0, 0.0, 0.0], r"spacing is 10 x 0\.7 x 0\.7, the image's 5 x"),
    ],
)
def test_a_label_that_lies_elsewhere_than_its_image_is_not_used(
    tmp_path, small_case, scale, translation, said
):
    archive = _archive(tmp_path, small_case, ["c1", "c2"])
    place = archive.at("c1")
    group = place.get_json("labels/organs/zarr.json")
    group["attributes"]["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"] = [
        {"type": "scale", "scale": scale},
        {"type": "translation", "translation": translation},
    ]
    place.put_json("labels/organs/zarr.json", group)
    index = load_index(archive, require_label="organs")
    assert [info.case for info in index] == ["c2"]
    assert re.search(f"'organs' lies elsewhere than its image: its {said}", index.failed[0].reason)


@pytest.mark.parametrize("part", ["0", "labels/organs/0"])
def test_a_case_that_lost_an_object_is_named_and_stops_no_other(tmp_path, part):
    archive = Archive.open(str(tmp_path))
    rng = np.random.default_rng(3)
    image = rng.normal(0, 9, (8, 8, 300)).astype(np.int16)  # two shards
    label = np.ones_like(image, np.uint8)
    for case in ("a", "b", "c"):
        write_case(archive, case, image, {"organs": label}, spacing_mm=(1, 1, 1))
    index = build_index(archive)
    assert not index.failed
    archive.at("b").delete(f"{part}/c/0/0/1")
    for again in (build_index(archive), load_index(archive)):
        assert [info.case for info in again] == ["a", "c"]
        (error,) = again.failed
        assert "b.ome.zarr" in str(error)
        assert "1 of 2 objects are there" in str(error)


def test_zeros_are_no_lost_objects(tmp_path):
    archive = Archive.open(str(tmp_path))
    image = np.zeros((8, 8, 300), np.int16)
    image[..., 0] = 1
    label = np.zeros_like(image, np.uint8)
    write_case(archive, "a", image, {"organs": label}, spacing_mm=(1, 1, 1))
    assert not build_index(archive).failed
