"""The training feed: right patches, right order, from any step, for any number of ranks."""

import time
from dataclasses import replace

import numpy as np
import pytest
import ray

from raysegclean.cluster import patch_feed as stream
from raysegclean.cluster.patch_feed import StepSource, stream_rows
from raysegclean.cluster.patches import LabelView, PatchSource
from raysegclean.nets.sampling import build_table, draw, place_patch
from raysegclean.store.archive import Archive, write_case
from raysegclean.voxels.channels import IGNORE, pad_to_box
from raysegclean.voxels.geometry import Box

PATCH = (16, 24, 20)


def source_of(balls, **changes):
    values = {
        "view": LabelView(balls.uri, "organs"),
        "table": build_table(balls.infos, "organs", (0, 3)),
        "intensities": {info.case: info.intensity for info in balls.infos},
        "spacing_mm": {info.case: info.spacing_mm for info in balls.infos},
        "normaliser": balls.normaliser,
        "classes": (0, 3),
        "patch_zyx": PATCH,
        "channels": 1,
        "batch": 4,
        "seed": 11,
        "flip_axes": (1, 2),
    }
    return PatchSource(**(values | changes))


def patch_of(balls, source, drawn):
    """The patch, cut from arrays in memory voxel index by voxel index."""
    image, label = balls.arrays[drawn.case]
    block = label[drawn.block.slices] if drawn.class_value is not None else None
    start = place_patch(drawn, PATCH, source.grid(drawn.case, label.shape), block).start_zyx
    image = source.normaliser.apply(image, source.intensities[drawn.case])
    index = [
        np.arange(first, first + size)[:: -1 if flip else 1]
        for first, size, flip in zip(start, PATCH, drawn.flips, strict=True)
    ]
    inside = [(axis < size) for axis, size in zip(index, label.shape, strict=True)]
    near = np.ix_(
        *(np.minimum(axis, size - 1) for axis, size in zip(index, label.shape, strict=True))
    )
    known = np.logical_and.reduce(np.meshgrid(*inside, indexing="ij"))
    return image[near], np.where(known, label[near] == 3, IGNORE)


def test_patches_are_those_of_the_draws_padded_where_the_case_is_too_small(balls):
    source = source_of(balls)
    padded = 0
    for step in range(12):
        rows = source.cut(step, 0, 1)
        draws = draw(source.seed, step, 0, 4, source.table, flip_axes=(1, 2))
        for row, drawn in enumerate(draws):
            image, label = patch_of(balls, source, drawn)
            np.testing.assert_array_equal(rows["image"][row, 0], image)
            np.testing.assert_array_equal(rows["label"][row], label)
            assert source.table.cases[rows["case"][row]] == drawn.case
            assert bool(rows["uniform"][row]) == (drawn.class_value is None)
            padded += int((label == IGNORE).any())
    assert padded, "the scene has a case smaller than the patch; it was never drawn"
    assert rows["image"].dtype == np.float32
    assert rows["label"].dtype == np.int16
    assert not any(rows["fault"])


def test_patches_of_a_working_grid_are_windows_of_the_resampled_case(balls):
    source = source_of(balls, working_mm=(2.0, 1.7, 0.6), flip_axes=())
    reached = set()
    for step in range(6):
        rows = source.cut(step, 0, 1)
        assert not any(rows["fault"])
        for row, drawn in enumerate(draw(source.seed, step, 0, 4, source.table)):
            image, label = balls.arrays[drawn.case]
            grid = source.grid(drawn.case, label.shape)
            native, working = Box.whole(label.shape), Box.whole(grid.shape_zyx)
            image = source.normaliser.apply(image, source.intensities[drawn.case])
            block = label[drawn.block.slices] if drawn.class_value is not None else None
            box = place_patch(drawn, PATCH, grid, block)
            inside = box.clipped(working)
            image = grid.to_working(image, native, working)[inside.slices]
            known = grid.label_to_working(label, native, working)[inside.slices] == 3
            np.testing.assert_array_equal(rows["image"][row, 0], pad_to_box(image, inside, box))
            expected = pad_to_box(known.astype(np.int16), inside, box, fill=IGNORE)
            np.testing.assert_array_equal(rows["label"][row], expected)
            reached.add(drawn.case)
    assert len(reached) > 1
    assert source.seen_mm["case1"] == (2.0, 1.7, 0.6)


def test_data_parallel_ranks_share_the_batch_of_the_step(balls):
    source = source_of(balls, batch=5)
    whole = source.cut(3, 0, 1)
    parts = [source.cut(3, rank, 2) for rank in range(2)]
    assert [len(part["step"]) for part in parts] == [3, 2]
    for rank, part in enumerate(parts):
        np.testing.assert_array_equal(part["image"], whole["image"][rank::2])
        np.testing.assert_array_equal(part["label"], whole["label"][rank::2])


def test_the_label_of_another_archive_is_learnt_when_it_is_named(balls, tmp_path):
    other = Archive.open(tmp_path / "other")
    for case, (image, label) in balls.arrays.items():
        write_case(other, case, image, {"clean": np.where(label, 0, 3)}, spacing_mm=(2, 1, 1))
    source = source_of(balls)
    swapped = source_of(balls, view=LabelView(balls.uri, "clean", other.store.uri))
    uniform = source.cut(0, 0, 1)["uniform"] == 1
    given, cleaned = (s.cut(0, 0, 1)["label"][uniform] for s in (source, swapped))
    known = given != IGNORE
    np.testing.assert_array_equal(cleaned[known], 1 - given[known])


def test_a_damaged_case_costs_only_its_own_patches(balls, tmp_path):
    archive = Archive.open(tmp_path / "archive")
    for case, (image, label) in balls.arrays.items():
        write_case(archive, case, image, {"organs": label}, spacing_mm=(2, 1, 1))
    for shard in (tmp_path / "archive" / "case1.ome.zarr" / "0" / "c").rglob("*"):
        if shard.is_file():
            shard.write_bytes(shard.read_bytes()[:100])
    healthy = source_of(balls)
    damaged = source_of(balls, view=LabelView(archive.store.uri, "organs"))
    hit = 0
    for step in range(8):
        good, bad = healthy.cut(step, 0, 1), damaged.cut(step, 0, 1)
        for row in range(4):
            if damaged.table.cases[bad["case"][row]] == "case1":
                hit += 1
                assert bad["fault"][row].startswith("case1: ")
                assert (bad["label"][row] == IGNORE).all()
            else:
                assert bad["fault"][row] == ""
                np.testing.assert_array_equal(bad["image"][row], good["image"][row])
    assert hit, "the damaged case was never drawn"


def test_trusted_patches_come_behind_each_rank_s_own_and_are_marked(balls):
    trusted = build_table(balls.infos[3:5], "organs", (0, 3))
    clean = source_of(balls, table=trusted, seed=12, batch=3)
    source = source_of(balls, clean=clean)
    assert source.cases == (*(f"case{n}" for n in range(6)), "case3", "case4")
    for rank in (0, 1):
        rows = source.cut(5, rank, 2)
        own, beside = source_of(balls).cut(5, rank, 2), clean.cut(5, rank, 2)
        assert source.rows(rank, 2) == len(rows["step"]) == len(own["step"]) + len(beside["step"])
        assert rows["trusted"].tolist() == [0] * len(own["step"]) + [1] * len(beside["step"])
        for name in ("image", "label", "uniform", "fault"):
            np.testing.assert_array_equal(rows[name], np.concatenate([own[name], beside[name]]))
        names = [source.cases[number] for number in rows["case"]]
        assert names[: len(own["step"])] == [source.table.cases[n] for n in own["case"]]
        assert names[len(own["step"]) :] == [trusted.cases[n] for n in beside["case"]]
        assert set(names[len(own["step"]) :]) <= {"case3", "case4"}


def test_a_case_with_other_channels_is_named_and_not_learnt(balls):
    rows = source_of(balls, channels=2).cut(0, 0, 1)
    assert rows["image"].shape == (4, 2, *PATCH)
    assert all("1 channels, the network reads 2" in fault for fault in rows["fault"])


def test_long_trainings_are_planned_in_stretches_without_a_gap(monkeypatch):
    monkeypatch.setattr(stream, "_BLOCKS_PER_DATASET", 3)
    monkeypatch.setattr(stream, "_BLOCK_STEPS", 4)
    stretches = stream._stretches(range(5, 40), 1000)
    assert [step for stretch in stretches for step in stretch] == list(range(5, 40))
    assert max(len(stretch) for stretch in stretches) == 12


@pytest.mark.parametrize(("steps", "size"), [(range(3, 17), 4), (range(9), 1), (range(2, 3), 64)])
def test_every_step_is_in_exactly_one_read_task(steps, size, monkeypatch):
    monkeypatch.setattr(stream, "_BLOCK_STEPS", size)
    tasks = StepSource(None, steps, 0, 1, 4, 1000).get_read_tasks(1)
    covered = [step for task in tasks for step in range(task.read_fn.first, task.read_fn.stop)]
    assert covered == list(steps)
    assert sum(task.metadata.num_rows for task in tasks) == 4 * len(steps)


def test_the_stream_brings_every_step_in_order_from_any_step(balls, cluster, monkeypatch):
    monkeypatch.setattr(stream, "_BLOCK_STEPS", 3)
    monkeypatch.setattr(stream, "_BLOCKS_PER_DATASET", 4)
    source = source_of(balls)
    source = replace(source, clean=source_of(balls, seed=12, batch=3))
    sent = ray.put(source)
    seen = 0
    for step, rows in zip(range(7, 29), stream_rows(sent, range(7, 29), readers=2), strict=True):
        expected = source.cut(step, 0, 1)
        for name in expected:
            np.testing.assert_array_equal(rows[name], expected[name])
        seen += 1
    assert seen == 22


@ray.remote(num_cpus=0, max_calls=1)
def cpu_share_while_patches_wait(source):
    """Of one processor, in a worker of its own, as training is."""
    options = ray.data.DataContext.get_current().execution_options
    options.resource_limits = options.resource_limits.copy(object_store_memory=20e6)
    feed = stream_rows(ray.put(source), range(10_000), readers=1)
    next(feed)
    time.sleep(6)  # as many blocks as may wait are there now
    before, watched_s = time.process_time(), 4.0
    time.sleep(watched_s)
    return (time.process_time() - before) / watched_s


def test_a_feed_that_is_not_read_leaves_the_processor_to_the_training(balls, cluster):
    """Ray Data's scheduler took as much as training on two cores (.94; at rest .06)."""
    share = ray.get(cpu_share_while_patches_wait.remote(source_of(balls, batch=32)))
    assert share < 0.3, share
