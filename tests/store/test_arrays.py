import pickle
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts
import zarr

from raysegclean.errors import InputError, MissingObject
from raysegclean.store.arrays import Volume
from raysegclean.store.objects import Store
from raysegclean.voxels.geometry import Box
from tests.store.as_zarr import as_zarr

LAYOUTS = {
    "unsharded": {"chunks": (16, 16, 16)},
    "slices": {"chunks": (1, 50, 41)},
    "one chunk": {"chunks": (30, 50, 41)},
    "sharded": {"chunks": (8, 8, 8), "shards": (16, 32, 32)},
    "uneven shards": {"chunks": (10, 25, 41), "shards": (30, 50, 41)},
    "uncompressed": {"chunks": (16, 16, 16), "compressors": None},
}


def _write(store, values, **layout):
    array = zarr.create_array(
        as_zarr(store), name="a", shape=values.shape, dtype=values.dtype, **layout
    )
    array[...] = values


def _values(dtype="int16", shape=(30, 50, 41)):
    return np.random.default_rng(1).integers(0, 100, shape).astype(dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_reads_as_zarr_python_wrote_it(tmp_path, layout):
    store, values = Store.open(tmp_path), _values()
    _write(store, values, **LAYOUTS[layout])
    volume = Volume(store, "a")
    assert volume.shape == values.shape
    assert volume.dtype == values.dtype
    assert np.array_equal(volume.read_all(), values)
    box = Box((3, 10, 0), (29, 11, 41))
    assert np.array_equal(volume.read(box), values[box.slices])


@pytest.mark.s3
@pytest.mark.parametrize("layout", ["unsharded", "sharded"])
def test_a_bucket_reads_like_a_folder(s3_bucket, layout):
    store, values = Store.open(s3_bucket), _values()
    _write(store, values, **LAYOUTS[layout])
    assert np.array_equal(Volume(store, "a").read_all(), values)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "uint64", "float32", "float64"])
def test_dtypes_come_back_as_they_are(tmp_path, dtype):
    store, values = Store.open(tmp_path), _values(dtype)
    _write(store, values, chunks=(16, 16, 16))
    read = Volume(store, "a").read_all()
    assert read.dtype == np.dtype(dtype)
    assert np.array_equal(read, values)


def test_channels_are_kept_in_front(tmp_path):
    store, values = Store.open(tmp_path), _values(shape=(2, 12, 20, 9))
    _write(store, values, chunks=(1, 8, 8, 8))
    volume = Volume(store, "a")
    assert (volume.channels, volume.shape_zyx) == (2, (12, 20, 9))
    box = Box((1, 2, 3), (4, 6, 9))
    assert np.array_equal(volume.read(box), values[:, *box.slices])


def test_a_volume_travels_by_pickle(tmp_path):
    store, values = Store.open(tmp_path), _values()
    _write(store, values, chunks=(16, 16, 16))
    volume = Volume(store, "a")
    volume.read_all()
    frozen = pickle.dumps(volume)
    assert len(frozen) < 500
    assert np.array_equal(pickle.loads(frozen).read_all(), values)


def test_reads_may_overlap(tmp_path):
    store, values = Store.open(tmp_path), _values()
    _write(store, values, chunks=(16, 16, 16))
    volume = Volume(store, "a")
    boxes = [Box((i, 0, 0), (i + 5, 50, 41)) for i in range(0, 25, 3)]
    pending = [volume.start(box) for box in boxes]
    for box, read in zip(boxes, pending, strict=True):
        assert np.array_equal(read.result(), values[box.slices])


@pytest.mark.parametrize("box", [Box((0, 0, 0), (31, 1, 1)), Box((-1, 0, 0), (1, 1, 1))])
def test_a_box_that_sticks_out_is_refused(tmp_path, box):
    store = Store.open(tmp_path)
    _write(store, _values(), chunks=(16, 16, 16))
    with pytest.raises(InputError, match=r"/a: box .* sticks out of \(30, 50, 41\)"):
        Volume(store, "a").read(box)


def test_a_truncated_shard_names_array_and_box(tmp_path):
    store = Store.open(tmp_path)
    _write(store, _values(), chunks=(8, 8, 8), shards=(16, 32, 32))
    shard = Path(tmp_path, "a/c/0/0/0")
    shard.write_bytes(shard.read_bytes()[:-100])
    volume = Volume(store, "a")
    with pytest.raises(InputError, match=r"/a: box \(0, 0, 0\) to \(9, 9, 9\) cannot be decoded"):
        volume.read(Box((0, 0, 0), (9, 9, 9)))
    assert volume.read(Box((16, 32, 0), (30, 50, 9))).shape == (14, 18, 9)


def test_what_is_no_array_is_said(tmp_path):
    store = Store.open(tmp_path)
    with pytest.raises(MissingObject, match="no Zarr v3 array here"):
        Volume(store, "nothing").read_all()
    store.put("bad/zarr.json", b"{}")
    with pytest.raises(InputError, match="not a readable Zarr v3 array"):
        Volume(store, "bad").read_all()
    _write(store, np.zeros((4, 4), np.uint8), chunks=(2, 2))
    with pytest.raises(InputError, match="2 axes"):
        Volume(store, "a").read_all()


def test_a_codec_that_is_not_read_is_named(tmp_path):
    store = Store.open(tmp_path)
    _write(store, _values(), chunks=(16, 16, 16))
    document = store.get_json("a/zarr.json")
    document["codecs"] = [{"name": "bytes"}, {"name": "numcodecs.lzma", "configuration": {}}]
    store.put_json("a/zarr.json", document)
    with pytest.raises(InputError, match=r"codec 'numcodecs\.lzma', which is not read here"):
        Volume(store, "a").read_all()


def test_several_time_points_are_refused(tmp_path):
    store = Store.open(tmp_path)
    _write(store, _values(shape=(2, 8, 8, 8)), chunks=(1, 8, 8, 8))
    with pytest.raises(InputError, match=r"2 time points, expected one\. Make a case of each"):
        Volume(store, "a", "tzyx").read_all()


def test_a_volume_opened_after_a_rewrite_sees_it(tmp_path):
    store = Store.open(tmp_path)
    _write(store, _values(), chunks=(8, 8, 8), shards=(16, 32, 32))
    old = Volume(store, "a").read_all()
    opening = {"driver": "zarr3", "kvstore": store.kvstore("a")}
    ts.open(opening).result()[...] = old + 1
    assert np.array_equal(Volume(store, "a").read_all(), old + 1)
