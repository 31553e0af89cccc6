import errno
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raysegclean.errors import (
    AlreadyExists,
    ConfigError,
    Conflict,
    InputError,
    MissingObject,
    UnfitEnvironment,
)
from raysegclean.store.objects import Store


def test_what_was_put_is_read_back_whole(place):
    store = Store.open(place)
    written = store.put("a/b.bin", b"one")
    assert store.get("a/b.bin") == b"one"
    assert store.head("a/b.bin") == written
    assert store.put("a/b.bin", b"two") != written
    assert store.read("a/b.bin") == (b"two", store.head("a/b.bin"))


def test_what_is_not_there_is_said_with_its_uri(place):
    store = Store.open(place)
    assert store.head("a/b") is None
    with pytest.raises(MissingObject, match=r"archive/a/b: no such object"):
        store.get("a/b")


def test_create_never_overwrites(place):
    store = Store.open(place)
    store.create("x", b"first")
    with pytest.raises(AlreadyExists, match="archive/x"):
        store.create("x", b"second")
    assert store.get("x") == b"first"


def test_of_many_racing_creates_one_wins(place):
    store = Store.open(place)

    def attempt(i):
        try:
            store.create("prize", f"writer {i}".encode())
        except AlreadyExists:
            return None
        return f"writer {i}".encode()

    with ThreadPoolExecutor(8) as threads:
        winners = [w for w in threads.map(attempt, range(8)) if w]
    assert winners == [store.get("prize")]


def test_swap_replaces_only_the_version_that_was_read(place):
    store = Store.open(place)
    first = store.swap("n", b"1", None)
    second = store.swap("n", b"2", first)
    with pytest.raises(Conflict):
        store.swap("n", b"3", first)
    with pytest.raises(Conflict):
        store.swap("n", b"3", None)
    with pytest.raises(Conflict):
        store.swap("never/written", b"3", second)
    assert store.read("n") == (b"2", second)


def test_counting_by_swap_loses_no_count(place):
    store = Store.open(place)
    store.put("count", b"0")

    def add(_):
        while True:
            data, info = store.read("count")
            try:
                return store.swap("count", b"%d" % (int(data) + 1), info)
            except Conflict:
                time.sleep(random.uniform(0, 0.02))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(add, range(20)))
    assert store.get("count") == b"20"


def test_listing_matches_whole_path_segments_and_is_sorted(place):
    store = Store.open(place)
    for key in ("b", "a/2/x", "a/10", "a.b", "ab/1"):
        store.put(key, key.encode())
    assert [info.key for info in store.list()] == sorted(["b", "a/2/x", "a/10", "a.b", "ab/1"])
    assert [info.key for info in store.list("a")] == ["a/10", "a/2/x"]
    assert list(store.list("none")) == []
    assert store.folders() == ("a", "ab")
    assert store.folders("a") == ("2",)
    assert all(info == store.head(info.key) for info in store.list())


def test_a_store_below_sees_keys_relative_to_itself(place):
    store = Store.open(place)
    store.at("a", "b").put("c", b"1")
    assert store.get("a/b/c") == b"1"
    assert [info.key for info in store.at("a").list()] == ["b/c"]


def test_deleting_is_repeatable_and_stays_inside_the_prefix(place):
    store = Store.open(place)
    for key in ("a/1", "a/2", "ab"):
        store.put(key, b"x")
    store.delete("ab")
    store.delete("ab")
    store.put("ab", b"x")
    store.delete_all("a")
    store.delete_all("a")
    assert [info.key for info in store.list()] == ["ab"]


def test_a_pickled_store_carries_its_uri_and_no_secret(place):
    store = Store.open(place)
    store.put("x", b"1")
    frozen = pickle.dumps(store)
    assert b"AWS" not in frozen
    assert len(frozen) < 300
    assert pickle.loads(frozen).get("x") == b"1"


def test_damaged_json_is_an_input_error_with_its_uri(place):
    store = Store.open(place)
    store.put_json("good.json", {"a": [1, None]})
    assert store.get_json("good.json") == {"a": [1, None]}
    store.put("bad.json", b'{"a": ')
    with pytest.raises(InputError, match=r"archive/bad\.json: not JSON"):
        store.get_json("bad.json")


def test_the_writable_check_leaves_nothing(place):
    store = Store.open(place)
    store.check_writable()
    assert list(store.list()) == []


@pytest.mark.s3
def test_a_bucket_that_is_not_there_is_an_unfit_environment(s3_bucket):
    with pytest.raises(UnfitEnvironment, match=r"s3://no-such-bucket.*Check the bucket's name"):
        Store.open("s3://no-such-bucket/x").check_writable()


@pytest.mark.parametrize("key", ["", "/a", "a//b", "../a", "a/./b", "a#b", "a*"])
def test_names_that_some_place_cannot_hold_are_refused(tmp_path, key):
    with pytest.raises(ConfigError, match="not a name for an object"):
        Store.open(tmp_path).put(key, b"")


@pytest.mark.parametrize("uri", ["ftp://host/x", "s3://", "http://x/y"])
def test_schemes_that_are_no_store_are_refused(uri):
    with pytest.raises(ConfigError, match="not a place for data"):
        Store.open(uri)


def test_file_uris_and_paths_are_the_same_place(tmp_path):
    folder = tmp_path / "with space"
    assert Store.open(folder.as_uri()) == Store.open(folder) == Store.open(str(folder))


def _left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("write", ["put", "create"])
def test_a_full_disk_is_named_and_leaves_no_part(tmp_path, monkeypatch, write):
    store = Store.open(tmp_path)
    store.put("old", b"old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UnfitEnvironment, match=r"new: cannot be written \(No space left.*Free"):
        getattr(store, write)("new", b"x" * 1000)
    with pytest.raises(UnfitEnvironment):
        store.put("old", b"new")
    assert _left(tmp_path) == ["old"]
    assert store.get("old") == b"old"


def test_a_write_that_the_system_cuts_short_leaves_no_part(tmp_path):
    code = (
        "import resource, signal, sys\n"
        "from raysegclean.store.objects import Store\n"
        "from raysegclean.errors import UnfitEnvironment\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "try:\n    Store.open(sys.argv[1]).put('big', bytes(100_000))\n"
        "except UnfitEnvironment as fault:\n    print(fault)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "big: cannot be written" in done.stdout
    assert _left(tmp_path) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 5000


def test_a_file_where_a_folder_is_needed_is_an_unfit_environment(tmp_path):
    (tmp_path / "f").write_bytes(b"")
    with pytest.raises(UnfitEnvironment, match="A file stands where a folder is needed"):
        Store.open(tmp_path).put("f/x", b"1")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_access_is_an_unfit_environment(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UnfitEnvironment, match="Give this user write access"):
        Store.open(tmp_path).check_writable()


def test_a_writer_killed_in_mid_write_leaves_old_or_new_and_the_sweep_cleans_up(tmp_path):
    """Ten SIGKILLs at random moments of a loop that rewrites one object of 4 MB."""
    code = (
        "import sys\n"
        "from raysegclean.store.objects import Store\n"
        "store = Store.open(sys.argv[1])\n"
        "print('ready', flush=True)\n"
        "i = 0\n"
        "while True:\n"
        "    store.put('x/object', bytes([i % 256]) * 4_000_000)\n"
        "    i += 1\n"
    )
    store = Store.open(tmp_path)
    chance = random.Random(3)
    left = 0
    for _ in range(10):
        command = [sys.executable, "-c", code, str(tmp_path)]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(chance.uniform(0, 0.05))
        os.kill(writer.pid, signal.SIGKILL)
        writer.communicate()
        if store.head("x/object") is not None:
            data = store.get("x/object")
            assert len(data) == 4_000_000
            assert len(set(data)) == 1
        left += len([name for name in _left(tmp_path) if name.endswith(".tmp")])
        store.sweep()
        assert _left(tmp_path) in ([], ["object"])
    assert left > 0, "no kill hit a write: the test proves nothing"


def test_the_sweep_spares_the_files_of_the_living(tmp_path):
    store = Store.open(tmp_path)
    held = tmp_path / "x.partial"
    from raysegclean.store.holder import this_process

    me = this_process()
    living = tmp_path / f".x.{me.machine}-{me.pid}-{me.started}-0badf00d.tmp"
    elsewhere = tmp_path / ".x.feedfeedfeed-1-1-0badf00d.tmp"
    for path in (held, living, elsewhere):
        path.write_bytes(b"")
    store.sweep()
    assert len(_left(tmp_path)) == 3
    os.utime(elsewhere, (0, 0))
    store.sweep()
    assert elsewhere.name not in _left(tmp_path)
    assert [info.key for info in store.list()] == ["x.partial"]


def test_what_lies_behind_a_link_is_listed_once(tmp_path):
    (tmp_path / "disk" / "deep").mkdir(parents=True)
    (tmp_path / "disk" / "deep" / "x").write_bytes(b"1")
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "case").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "loop").symlink_to(tmp_path / "archive")
    assert [info.key for info in Store.open(tmp_path / "archive").list()] == ["case/deep/x"]


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(tmp_path, monkeypatch):
    store = Store.open(tmp_path)
    store.put("a/x", b"1")
    scan = os.scandir

    def stale(path):
        if str(path).endswith("/a"):
            raise OSError(errno.ESTALE, "Stale file handle", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", stale)
    with pytest.raises(UnfitEnvironment, match=r"a: cannot be listed .*Stale file handle"):
        list(store.list())
