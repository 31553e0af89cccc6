import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegclean.errors import InputError, RunConflict
from raysegclean.evidence.records import ShardRecord
from raysegclean.store.arrays import Volume
from raysegclean.store.ledger import Ledger
from raysegclean.store.objects import Store
from raysegclean.store.shards import (
    ArraySpec,
    ImageArraySpec,
    create_array,
    encode_shard,
    put_shard,
    shard_key,
)
from raysegclean.voxels.geometry import output_shard_zyx
from tests.store.as_zarr import as_zarr


def _label(shape, seed=0):
    rng = np.random.default_rng(seed)
    label = np.zeros(shape, np.uint8)
    label[: shape[0] // 2, 1:, :-1] = rng.integers(
        1, 5, (shape[0] // 2, shape[1] - 1, shape[2] - 1)
    )
    return label


def _put_all(store, label, spec, path="a", **options):
    create_array(store, path, spec)
    return [
        put_shard(store, path, index, label[spec.grid.box(index).slices], spec, **options)
        for index in spec.grid.indices()
    ]


def test_a_label_written_shard_by_shard_reads_the_same_everywhere(place):
    store, label = Store.open(place), _label((130, 70, 65))
    spec = ArraySpec(label.shape, "uint8", (128, 64, 64))
    _put_all(store, label, spec)
    by_zarr = zarr.open_array(as_zarr(store), path="a", mode="r")
    by_ts = ts.open({"driver": "zarr3", "kvstore": store.kvstore("a")}).result()
    assert np.array_equal(by_zarr[...], label)
    assert np.array_equal(by_ts.read().result(), label)
    assert np.array_equal(Volume(store, "a").read_all(), label)
    assert by_zarr.metadata.dimension_names == ("z", "y", "x")
    assert (by_zarr.shards, by_zarr.chunks) == ((128, 64, 64), (64, 64, 64))


@settings(max_examples=15, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 150)] * 3),
    dtype=st.sampled_from(["uint8", "uint16", "uint32"]),
)
def test_any_shape_survives_the_grid_of_outputs(tmp_path_factory, shape, dtype):
    store = Store.open(tmp_path_factory.mktemp("grid"))
    label = np.random.default_rng(0).integers(0, 3, shape).astype(dtype)
    spec = ArraySpec(shape, dtype, output_shard_zyx(shape, limit_vox=128))
    _put_all(store, label, spec)
    assert np.array_equal(zarr.open_array(as_zarr(store), path="a", mode="r")[...], label)


@pytest.mark.parametrize("dtype", ["int16", "uint8", "float32", "float64", "int32"])
@pytest.mark.parametrize("channels", [None, 2])
def test_images_survive_with_and_without_channels(tmp_path, dtype, channels):
    store, shape = Store.open(tmp_path), (20, 70, 30)
    lead = () if channels is None else (channels,)
    image = np.random.default_rng(0).normal(0, 50, lead + shape).astype(dtype)
    spec = ImageArraySpec(shape, dtype, (64, 64, 64), channels=channels)
    create_array(store, "a", spec)
    for index in spec.grid.indices():
        box = spec.grid.box(index).slices
        for channel in range(channels or 1):
            block = image[box] if channels is None else image[channel][box]
            lead_index = None if channels is None else channel
            put_shard(store, "a", index, block, spec, channel=lead_index)
    assert np.array_equal(zarr.open_array(as_zarr(store), path="a", mode="r")[...], image)
    assert np.array_equal(Volume(store, "a").read_all(), image)


def test_background_leaves_no_object_but_a_record(place):
    store = Store.open(place)
    spec = ArraySpec((64, 64, 64), "uint8", (64, 64, 64))
    assert encode_shard(np.zeros((64, 64, 64), np.uint8), spec) is None
    record = _put_all(store, np.zeros((64, 64, 64), np.uint8), spec)[0]
    assert record.empty
    assert store.head(record.key) is None
    assert not Volume(store, "a").read_all().any()


def test_a_late_duplicate_adopts_the_same_bytes(place):
    store, label = Store.open(place), _label((64, 64, 64))
    spec = ArraySpec(label.shape, "uint8", (64, 64, 64))
    first = _put_all(store, label, spec)
    info = store.head(first[0].key)
    assert _put_all(store, label, spec) == first
    assert store.head(first[0].key) == info
    assert (first[0].size_bytes, first[0].key) == (info.size_bytes, "a/c/0/0/0")


@pytest.mark.parametrize("second", ["other voxels", "background"])
def test_other_voxels_under_the_same_key_are_refused_unless_told(place, second):
    store, label = Store.open(place), _label((64, 64, 64))
    spec = ArraySpec(label.shape, "uint8", (64, 64, 64))
    _put_all(store, label, spec)
    other = label * 0 if second == "background" else label + 1
    with pytest.raises(RunConflict, match="a/c/0/0/0: holds other voxels"):
        _put_all(store, other, spec)
    assert np.array_equal(Volume(store, "a").read_all(), label)
    _put_all(store, other, spec, overwrite=True)
    assert np.array_equal(Volume(store, "a").read_all(), other)


def test_garbage_in_an_edge_shard_cannot_block_an_overwrite(tmp_path):
    store, label = Store.open(tmp_path), _label((70, 64, 64))
    spec = ArraySpec(label.shape, "uint8", (64, 64, 64))
    store.put(shard_key("a", (1, 0, 0)), b"garbage")
    with pytest.raises(RunConflict):
        _put_all(store, label + 1, spec)
    _put_all(store, label + 1, spec, overwrite=True)
    assert np.array_equal(Volume(store, "a").read_all(), label + 1)


SHARDS = 24
WRITER = f"""
import sys
import numpy as np
from raysegclean.evidence.records import ShardRecord
from raysegclean.store.ledger import Ledger
from raysegclean.store.objects import Store
from raysegclean.store.shards import ArraySpec, put_shard

store, attempt = Store.open(sys.argv[1]), int(sys.argv[2])
spec = ArraySpec(({SHARDS} * 64, 64, 64), "uint8", (64, 64, 64))
ledger = Ledger(store, "apply", ShardRecord, attempt)
done = {{record.task for record in ledger.records()}}
print("ready", flush=True)
for i in range({SHARDS}):
    if str(i) not in done:
        block = np.random.default_rng(i).integers(0, 200, (64, 64, 64)).astype("u1")
        put_shard(store, "a", (i, 0, 0), block, spec)
        ledger.commit(f"item{{i}}", attempt, 0, [ShardRecord(str(i), "c", "k")])
"""


def _write(place, attempt, after_s):
    """Start a writer and kill it `after_s` seconds after it is ready; None lets it finish."""
    command = [sys.executable, "-c", WRITER, place, str(attempt)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.readline()
    if after_s is not None:
        time.sleep(after_s)
        os.kill(writer.pid, signal.SIGKILL)
    writer.communicate()
    return writer.returncode


def test_writers_killed_in_mid_write_and_run_again_give_the_undisturbed_bytes(place):
    chance = random.Random(1)
    codes = [_write(place, i, chance.uniform(0, 0.05)) for i in range(3)]
    assert -signal.SIGKILL in codes, "every writer finished first: the test proves nothing"
    assert _write(place, 9, None) == 0
    store, still = Store.open(place), Store.open(f"{place}-still")
    assert _write(still.uri, 0, None) == 0
    store.sweep()
    shards = {info.key: store.get(info.key) for info in store.list("a")}
    assert len(shards) == SHARDS
    assert shards == {info.key: still.get(info.key) for info in still.list("a")}
    assert len(Ledger(store, "apply", ShardRecord).records()) == SHARDS


def test_encoding_is_the_same_in_every_process():
    code = (
        "import numpy as np, google_crc32c\n"
        "from raysegclean.store.shards import ArraySpec, encode_shard\n"
        "block = np.random.default_rng(5).integers(0, 4, (128, 128, 100)).astype('u1')\n"
        "data = encode_shard(block, ArraySpec((128,) * 3, 'uint8', (128,) * 3))\n"
        "print(google_crc32c.value(data))\n"
    )
    runs = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
        for _ in range(2)
    }
    assert len(runs) == 1


def test_values_outside_the_dtype_are_refused_not_wrapped():
    spec = ArraySpec((2, 2, 2), "uint8", (64, 64, 64))
    with pytest.raises(InputError, match="values 0 to 300 do not fit uint8"):
        encode_shard(np.array([[[0, 300]]]), spec)
    with pytest.raises(InputError, match="-1"):
        encode_shard(np.array([[[-1, 3]]]), spec)


def test_a_block_larger_than_a_shard_is_refused():
    with pytest.raises(ValueError, match="larger than a shard"):
        encode_shard(np.ones((65, 1, 1)), ArraySpec((65, 1, 1), "uint8", (64, 64, 64)))


def test_every_flipped_bit_of_a_label_or_image_is_noticed(tmp_path):
    store, chance = Store.open(tmp_path), np.random.default_rng(11)
    block = chance.integers(0, 100, (64, 64, 64)).astype(np.uint8)
    label = ArraySpec(block.shape, "uint8", (64, 64, 64))
    image = ImageArraySpec(block.shape, "uint8", (64, 64, 64))
    for path, spec in (("label", label), ("image", image)):
        create_array(store, path, spec)
        record = put_shard(store, path, (0, 0, 0), block, spec)
        shard = Path(tmp_path, record.key)
        whole = shard.read_bytes()
        for position in chance.integers(0, len(whole), 25):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << int(chance.integers(8))
            shard.write_bytes(damaged)
            with pytest.raises(InputError, match="cannot be decoded"):
                Volume(store, path).read_all()
