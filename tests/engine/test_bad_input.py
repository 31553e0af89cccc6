"""One bad case costs itself: it is named with a remedy, the others finish, nothing is half there.

A bad archive, run folder or place is refused as a whole, before anything is computed.
"""

import ctypes
import hashlib
import json
import os
import re
import select
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import psutil
import pytest
import zarr

from raysegclean.cluster.worker import MAX_BEGINS
from raysegclean.config.settings import Config
from raysegclean.errors import InputError, RunConflict, UnfitEnvironment
from raysegclean.events import Events, Lines
from raysegclean.interface.cli import main
from raysegclean.runs.pipeline import RunReport, clean
from raysegclean.runs.session import TooManyFailed
from raysegclean.store.archive import Archive, write_case
from raysegclean.store.run import RunFolder
from raysegclean.store.shards import ArraySpec, create_array, put_shard
from raysegclean.voxels.geometry import output_shard_zyx

from .scenes import LABEL, Scene, config_for, lend_networks, outputs, two_blobs, write_archive

SHAPE = (24, 60, 64)
SPACING = (2.0, 1.0, 1.0)
GOOD = ("good0", "good1", "good2", "good3", "wide")
SAFE = {
    "method": "uncertainty",
    "params": {"members": 1, "rule": "safe", "delta": 0.3},
    "relabel__shard_vox": 64,
    "relabel__max_change": 1.0,
    "resources__relabel": {"actors": 1},
    "resources__executor": "local",
}
OUT = f"{LABEL}_clean"


# How each case is spoilt; `folder` is the case, `good` one to copy from.


def no_label(folder: Path) -> None:
    (folder / "labels" / LABEL).rename(folder / "labels" / "other")
    listing = folder / "labels" / "zarr.json"
    listing.write_text(listing.read_text().replace(f'"{LABEL}"', '"other"'))


def nan_image(folder: Path) -> None:
    image, label = two_blobs(Scene("x", SHAPE, SPACING), 99)
    image = image.astype(np.float32)
    image[7, 8, 9] = np.nan
    shutil.rmtree(folder)
    write_case(of(folder), folder.name[:-9], image, {LABEL: label}, spacing_mm=SPACING)


def negative_label(folder: Path) -> None:
    write_raw_label(folder, np.where(read_label(folder) == 2, -1, 1).astype(np.int8))


def instance_label(folder: Path) -> None:
    numbers = np.arange(np.prod(SHAPE)).reshape(SHAPE) % 300
    write_raw_label(folder, numbers.astype(np.uint16))


def wide_label(folder: Path) -> None:
    label = read_label(folder).astype(np.uint16)
    write_raw_label(folder, np.where(label == 2, 300, label).astype(np.uint16))


def no_voxels(folder: Path) -> None:
    document = json.loads((folder / "0" / "zarr.json").read_text())
    document["shape"][0] = 0
    (folder / "0" / "zarr.json").write_text(json.dumps(document))


def cut_image(folder: Path) -> None:
    truncate(folder / "0" / "c" / "0" / "0" / "0")


def cut_label(folder: Path) -> None:
    truncate(folder / "labels" / LABEL / "0" / "c" / "0" / "0" / "0")


def cut_short_ingest(folder: Path) -> None:
    (folder / "zarr.json").unlink()


def two_channels(folder: Path) -> None:
    image, label = two_blobs(Scene("x", SHAPE, SPACING), 98)
    shutil.rmtree(folder)
    both = np.stack([image, image])
    write_case(of(folder), folder.name[:-9], both, {LABEL: label}, spacing_mm=SPACING)


def blocked_output(folder: Path) -> None:
    (folder / "labels" / OUT).write_text("a file where the output label would be")


def late_image(folder: Path) -> None:
    damage_unseen(folder / "0" / "c" / "0" / "0" / "0")


def late_label(folder: Path) -> None:
    damage_unseen(folder / "labels" / LABEL / "0" / "c" / "0" / "0" / "0")


BEFORE_THE_INDEX: dict[Callable[[Path], None], str] = {
    no_label: r"label 'organs' is missing; the case has other.*Ingest that label",
    nan_image: r"NaN or infinite voxels between .*Replace them in the source",
    negative_label: r"label holds -1\. Labels start at 0: shift or map",
    instance_label: r"300 values, expected at most 250.*Merge instances",
    no_voxels: r"image has \(0, 60, 64\) voxels\. Leave it out or ingest it again",
    cut_image: r"/0: box .* cannot be decoded .*restore it or ingest",
    cut_label: r"labels/organs/0: box .* cannot be decoded .*restore it or ingest",
    cut_short_ingest: r"no zarr\.json .*Run that ingest again",
    two_channels: r"image has 2 channels, the network reads 1.*Ingest it with the same",
    blocked_output: r"cannot be written .*A file stands where a folder is needed: move it",
}
AFTER_THE_INDEX: dict[Callable[[Path], None], str] = {
    late_image: r"/0: box .* cannot be decoded .*restore it or ingest",
    late_label: r"labels/organs/0: box .* cannot be decoded .*restore it or ingest",
}
BAD = BEFORE_THE_INDEX | AFTER_THE_INDEX
NAMES = [spoil.__name__ for spoil in BAD]


def of(folder: Path) -> Archive:
    return Archive.open(folder.parent)


def read_label(folder: Path) -> np.ndarray:
    return of(folder).label(folder.name[:-9], LABEL).read_all()


def write_raw_label(folder: Path, label: np.ndarray) -> None:
    """Replace the given label by one that ingest would refuse."""
    store = of(folder).at(folder.name[:-9])
    spec = ArraySpec(SHAPE, str(label.dtype), output_shard_zyx(SHAPE))
    put_shard(store, f"labels/{LABEL}/0", (0, 0, 0), label, spec, overwrite=True)
    create_array(store, f"labels/{LABEL}/0", spec)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def damage_unseen(path: Path) -> None:
    """Damage a large file so that its size and time, which the index goes by, stay the same."""
    stat = path.stat()
    assert stat.st_size > 65536, "smaller files are known by their content"
    data = bytearray(path.read_bytes())
    data[100:-4000] = bytes(len(data) - 4100)
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def fingerprint(archive: Archive) -> dict[str, str]:
    """Return a checksum of every file of every case but the output labels and their listing."""
    root = Path(archive.store.uri)
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
        and path.name != "cases.parquet"
        and f"labels/{OUT}" not in str(path)
        and not str(path).endswith("labels/zarr.json")
    }


def failures(config: Config) -> dict[str, str]:
    return {one.case: one.error for one in RunFolder(config.run).failed()}


@dataclass
class Aftermath:
    """An archive of good and bad cases, and the run over it."""

    archive: Archive
    config: Config
    report: RunReport
    before: dict[str, str]
    spare: Path
    """The archive as it was before it was spoilt."""


@pytest.fixture(scope="module", params=["local", pytest.param("ray", marks=pytest.mark.slow)])
def aftermath(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Aftermath:
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
    root = tmp_path_factory.mktemp("bad")
    scenes = [Scene(name, SHAPE, SPACING) for name in (*GOOD, *NAMES)]
    archive = write_archive(root / "archive", scenes)
    salt = np.random.default_rng(0).integers(0, 3, (48, 112, 112)).astype(np.uint8)
    shutil.rmtree(root / "archive" / "late_label.ome.zarr")
    write_case(archive, "late_label", salt.astype(np.int16), {LABEL: salt}, spacing_mm=SPACING)
    shutil.copytree(root / "archive", root / "spare")
    wide_label(root / "archive" / "wide.ome.zarr")
    for spoil in BEFORE_THE_INDEX:
        spoil(root / "archive" / f"{spoil.__name__}.ome.zarr")
    # In a process that ends with what it keeps of the files: it would not see the damage.
    script = "import sys; from raysegclean.store import archive, index\n"
    script += "index.load_index(archive.Archive.open(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", script, archive.store.uri], check=True)
    for spoil in AFTER_THE_INDEX:
        spoil(root / "archive" / f"{spoil.__name__}.ome.zarr")
    before = fingerprint(archive)
    config = config_for(
        archive,
        root / "run",
        **SAFE | {"resources__executor": request.param},
        train__steps=4,
        max_failed=1.0,
    )
    return Aftermath(archive, config, clean(config), before, root / "spare")


def test_the_good_cases_finish_and_the_exit_code_says_that_some_did_not(
    aftermath: Aftermath,
) -> None:
    assert aftermath.report.exit_code == 1
    assert set(failures(aftermath.config)) == set(NAMES)
    assert set(outputs(aftermath.config)) == set(GOOD)
    state = RunFolder(aftermath.config.run).state()
    assert state["status"] == "complete"
    assert {row["case"] for row in state["failed"]} == set(NAMES)


@pytest.mark.parametrize("spoil", BAD, ids=NAMES)
def test_a_bad_case_is_named_with_its_remedy_and_not_published(
    aftermath: Aftermath, spoil: Callable[[Path], None]
) -> None:
    name = spoil.__name__
    error = failures(aftermath.config)[name]
    assert re.search(BAD[spoil], error, re.DOTALL), error
    assert "Traceback" not in error
    listing = Path(aftermath.archive.store.uri, f"{name}.ome.zarr", "labels", "zarr.json")
    listed = json.loads(listing.read_text())["attributes"]["ome"]["labels"]
    assert not [label for label in listed if label.startswith(OUT)]


def test_what_came_in_is_untouched_byte_for_byte(aftermath: Aftermath) -> None:
    assert fingerprint(aftermath.archive) == aftermath.before


def test_an_output_holds_a_class_that_only_another_case_has_a_type_for(
    aftermath: Aftermath,
) -> None:
    group = zarr.open_group(Path(aftermath.archive.store.uri, "good0.ome.zarr", "labels", OUT))
    assert group["0"].dtype == np.uint16
    assert set(np.unique(group["0"][:])) <= {0, 1, 2, 300}


def test_repaired_cases_are_cleaned_by_the_same_command_and_nothing_is_done_twice(
    aftermath: Aftermath,
) -> None:
    before = outputs(aftermath.config)
    root = Path(aftermath.archive.store.uri)
    mended = {"cut_image", "cut_label", "no_label", "nan_image", "late_image"}
    for name in mended:
        shutil.rmtree(root / f"{name}.ome.zarr")
        shutil.copytree(aftermath.spare / f"{name}.ome.zarr", root / f"{name}.ome.zarr")
    report = clean(aftermath.config)
    assert report.exit_code == 1
    assert set(failures(aftermath.config)) == set(NAMES) - mended
    after = outputs(aftermath.config)
    assert set(after) == {*GOOD, *mended}
    assert {case: after[case] for case in GOOD} == before
    run = RunFolder(aftermath.config.run)
    for stage in ("propose", "apply"):
        done = Counter(
            json.loads(line)["case"]
            for info in run.store.list(f"ledger/{stage}")
            for line in run.store.get(info.key).splitlines()
        )
        assert done == dict.fromkeys((*GOOD, *mended), 1), stage


# What is wrong with the whole.


def run_cli(config: Config, folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    path = folder / "clean.yaml"
    path.write_text(json.dumps(config.resolved()))
    code = main(["clean", str(path)])
    return code, capsys.readouterr().err


def test_an_empty_archive_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "archive").mkdir()
    config = config_for(Archive.open(tmp_path / "archive"), tmp_path / "run")
    code, said = run_cli(config, tmp_path, capsys)
    assert code == 2
    assert re.search(r"error: .*/archive: no case here.*ingest", said), said
    assert not list((tmp_path / "archive").iterdir())


def test_an_archive_without_one_usable_case_is_refused_with_the_first_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = write_archive(tmp_path / "archive", [Scene("a", SHAPE), Scene("b", SHAPE)])
    no_label(tmp_path / "archive" / "a.ome.zarr")
    no_label(tmp_path / "archive" / "b.ome.zarr")
    code, said = run_cli(config_for(archive, tmp_path / "run"), tmp_path, capsys)
    assert code == 2
    assert re.search(r"none of 2 cases can be used. First: case a: label 'organs' is missing", said)


def test_an_archive_whose_labels_are_all_empty_or_too_many_is_refused(tmp_path: Path) -> None:
    archive = Archive.open(tmp_path / "archive")
    image = np.zeros(SHAPE, np.int16)
    many = (np.arange(np.prod(SHAPE)).reshape(SHAPE) % 200).astype(np.uint16)
    write_case(archive, "a", image, {LABEL: many, "none": image}, spacing_mm=SPACING)
    write_case(archive, "b", image, {LABEL: many + 100, "none": image}, spacing_mm=SPACING)
    with pytest.raises(InputError, match=r"all cases together.*300 values.*Merge instances"):
        clean(config_for(archive, tmp_path / "run"))
    with pytest.raises(InputError, match=r"label 'none': every voxel of every case is background"):
        clean(config_for(archive, tmp_path / "run", label="none"))


def test_a_run_folder_that_cannot_be_written_is_an_unfit_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = write_archive(tmp_path / "archive", [Scene("a", SHAPE), Scene("b", SHAPE)])
    (tmp_path / "file").write_text("no folder")
    code, said = run_cli(config_for(archive, tmp_path / "file" / "run"), tmp_path, capsys)
    assert code == 3
    assert re.search(r"/file/run/.*cannot be written.*A file stands where a folder is needed", said)


@pytest.fixture
def three(tmp_path: Path) -> tuple[Archive, str]:
    """Three good cases and networks for them."""
    scenes = [Scene(f"case{n}", SHAPE, SPACING) for n in range(3)]
    archive = write_archive(tmp_path / "archive", scenes)
    return archive, lend_networks(config_for(archive, "unused", **SAFE), tmp_path / "lender")


def test_an_output_that_cannot_be_written_is_an_unfit_environment(
    three: tuple[Archive, str], tmp_path: Path
) -> None:
    archive, lender = three
    for case in archive.case_ids():
        blocked_output(tmp_path / "archive" / f"{case}.ome.zarr")
    before = fingerprint(archive)
    config = config_for(archive, tmp_path / "run", models=lender, **SAFE)
    with pytest.raises(UnfitEnvironment, match=r"(?s)3 of 3 cases.*case0.*cannot be written.*move"):
        clean(config)
    assert UnfitEnvironment.exit_code == 3
    assert RunFolder(config.run).state()["status"] == "failed"
    assert not list(RunFolder(config.run).store.list("ledger")), "nothing was computed"
    assert fingerprint(archive) == before


def test_too_many_bad_cases_stop_the_run_before_it_computes(
    three: tuple[Archive, str], tmp_path: Path
) -> None:
    archive, lender = three
    cut_image(tmp_path / "archive" / "case1.ome.zarr")
    config = config_for(archive, tmp_path / "run", models=lender, max_failed=0.0, **SAFE)
    with pytest.raises(TooManyFailed, match=r"1 of 3 cases failed.*case case1:.*failed\.jsonl"):
        clean(config)
    assert set(failures(config)) == {"case1"}
    assert not outputs(config)


def test_a_label_that_is_replaced_in_mid_run_is_not_published_as_a_mixture(
    three: tuple[Archive, str], tmp_path: Path
) -> None:
    archive, lender = three
    config = config_for(archive, tmp_path / "run", models=lender, **SAFE)

    def replace_when_proposed(line: str) -> None:
        if line.startswith("propose: 3/3"):
            folder = tmp_path / "archive" / "case1.ome.zarr"
            write_raw_label(folder, np.roll(read_label(folder), 3, axis=2))

    report = clean(config, Events(Lines(replace_when_proposed)))
    assert report.exit_code == 1
    assert set(outputs(config)) == {"case0", "case2"}
    assert "was replaced while the run worked" in failures(config)["case1"]
    assert clean(config).exit_code == 0
    assert set(outputs(config)) == {"case0", "case1", "case2"}


def test_folders_and_labels_of_another_run_are_refused_and_left_alone(
    three: tuple[Archive, str], tmp_path: Path
) -> None:
    archive, lender = three
    first = config_for(archive, tmp_path / "first", models=lender, **SAFE)
    assert clean(first).exit_code == 0
    folder = {p: p.read_bytes() for p in (tmp_path / "first").rglob("*.json*")}
    published = outputs(first)

    other = first.with_settings({"relabel.halo": 5, "train.seed": 7})
    with pytest.raises(
        RunConflict,
        match=r"(?s)belongs to another run: .*relabel\.halo was 'auto', is 5.*"
        r"train\.seed was 0, is 7.*Choose another `run:` folder",
    ):
        clean(other)
    now = {p: p.read_bytes() for p in (tmp_path / "first").rglob("*.json*")}
    assert {p for p in folder if now[p] != folder[p]} <= {tmp_path / "first" / "lock.json"}

    image, label = two_blobs(Scene("new", SHAPE), 7)
    write_case(archive, "a_new", image, {LABEL: label}, spacing_mm=SPACING)
    second = config_for(archive, tmp_path / "second", models=lender, **SAFE)
    with pytest.raises(
        RunConflict, match=r"case case\d: label 'organs_clean' belongs to another run.*Choose"
    ):
        clean(second)
    assert outputs(first) == published
    assert not (tmp_path / "archive" / "a_new.ome.zarr" / "labels" / OUT).exists()

    given_as_output = config_for(archive, tmp_path / "third", models=lender, **SAFE)
    expert = Archive.open(tmp_path / "archive")
    for case in expert.case_ids():
        expert.add_label(case, "expert", np.ones(SHAPE, np.uint8), {})
    with pytest.raises(RunConflict, match=r"label 'expert' came with the case and is never writ"):
        clean(given_as_output.with_settings({"output.label": "expert"}))
    assert clean(first).exit_code == 0, "the run it belongs to goes on, with the new case"
    assert set(outputs(first)) == {"a_new", "case0", "case1", "case2"}


# The disk fills up in mid write.


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """Yield a folder on a file system of its own; skip where that is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Leave no free byte."""
    path = disk / "filler"
    with path.open("ab", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    file.write(b"\xff" * size)
            except OSError:
                continue
    return path


def test_a_full_disk_in_mid_write_publishes_nothing_and_goes_on_when_there_is_space(
    tmp_path: Path,
) -> None:
    scenes = [Scene(f"case{n}", SHAPE, SPACING) for n in range(4)]
    calm_archive = write_archive(tmp_path / "calm", scenes)
    lender = lend_networks(config_for(calm_archive, "unused", **SAFE), tmp_path / "lender")
    calm = config_for(calm_archive, tmp_path / "run-calm", models=lender, **SAFE)
    clean(calm)
    with small_disk(tmp_path / "disk", 8) as disk:
        archive = write_archive(disk / "archive", scenes)
        config = config_for(archive, tmp_path / "run", models=lender, **SAFE)
        before = fingerprint(archive)

        def fill_when_proposed(line: str) -> None:
            if line.startswith("propose: 4/4"):
                fill(disk)

        with pytest.raises(UnfitEnvironment) as caught:
            clean(config, Events(Lines(fill_when_proposed)))
        assert re.search(
            r"(?s)of 4 cases failed.*case case\d: .*/disk/archive/.*No space left on device.*"
            r"Free space on that disk or choose another place, then run the same again",
            str(caught.value),
        )
        assert not outputs(config)
        assert fingerprint(archive) == before
        assert not [p for p in disk.rglob("*") if p.name.endswith((".tmp", ".lock"))]
        assert RunFolder(config.run).state()["status"] == "failed"
        for case in archive.case_ids():
            assert archive.label_names(case) == (LABEL,)

        (disk / "filler").unlink()
        assert clean(config).exit_code == 0
        assert outputs(config) == outputs(calm)


@pytest.mark.slow
def test_a_full_disk_under_the_run_folder_is_told_too(tmp_path: Path) -> None:
    scenes = [Scene(f"case{n}", SHAPE, SPACING) for n in range(4)]
    archive = write_archive(tmp_path / "archive", scenes)
    lender = lend_networks(config_for(archive, "unused", **SAFE), tmp_path / "lender")
    with small_disk(tmp_path / "disk", 4) as disk:
        config = config_for(archive, disk / "run", models=lender, **SAFE)

        def fill_when_proposed(line: str) -> None:
            if line.startswith("propose: 4/4"):
                fill(disk)

        with pytest.raises(UnfitEnvironment, match=r"/disk/run/.*No space left.*Free space"):
            clean(config, Events(Lines(fill_when_proposed)))
        assert not outputs(config)
        (disk / "filler").unlink()
        assert clean(config).exit_code == 0
        assert set(outputs(config)) == {scene.case for scene in scenes}


# A case whose worker dies.


class Deaths:
    """Kills the worker each time it opens one file, as a crash in a reader would."""

    _OPENED = 0x20

    def __init__(self, path: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._inotify = libc.inotify_init()
        assert libc.inotify_add_watch(self._inotify, os.fsencode(path), self._OPENED) >= 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.count = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10)
        os.close(self._inotify)

    def _watch(self) -> None:
        while not self._stop.is_set():
            if select.select([self._inotify], [], [], 0.1)[0]:
                os.read(self._inotify, 4096)
                for worker in workers():
                    worker.kill()
                    self.count += 1


def workers() -> list[psutil.Process]:
    """Return the processes that do items, of the Ray that this process started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if any("MapBatches" in word for word in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="inotify is Linux's")
@pytest.mark.usefixtures("ray_cluster")
def test_a_case_that_kills_its_worker_is_quarantined_and_the_others_finish(tmp_path: Path) -> None:
    scenes = [Scene(f"case{n}", SHAPE, SPACING) for n in range(6)]
    archive = write_archive(tmp_path / "archive", scenes)
    slow = SAFE | {"params": {"voters": "dropout", "passes": 8, **SAFE["params"]}}
    slow["resources__executor"] = "ray"
    lender = lend_networks(config_for(archive, "unused", **slow), tmp_path / "lender")
    before = fingerprint(archive)
    config = config_for(archive, tmp_path / "run", models=lender, **slow)
    with Deaths(tmp_path / "archive" / "case3.ome.zarr" / "0" / "c" / "0" / "0" / "0") as deaths:
        report = clean(config)
    assert deaths.count == MAX_BEGINS
    assert report.exit_code == 1
    assert set(failures(config)) == {"case3"}
    assert re.search(
        r"case3/0\.0\.0: the worker died 3 times while it worked on this shard.*leave it out",
        failures(config)["case3"],
    )
    others = {scene.case for scene in scenes} - {"case3"}
    unlucky = outputs(config)
    assert set(unlucky) == others
    assert archive.label_names("case3") == (LABEL,)
    assert fingerprint(archive) == before

    # What killed the workers is gone: the same command cleans that case alone.
    again = clean(config)
    assert again.exit_code == 0
    assert {case: label for case, label in outputs(config).items() if case in others} == unlucky
    assert set(outputs(config)) == others | {"case3"}
