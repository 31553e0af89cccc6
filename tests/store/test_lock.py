import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from raysegclean.errors import RunConflict
from raysegclean.store.lock import RunLock, check_term, is_driven
from raysegclean.store.objects import Store


def _freeze(store, **changes):
    """Rewrite the lock as one that a driver on another machine left behind."""
    held = store.get_json("lock.json")
    held["holder"] = {"machine": "elsewhere", "pid": 1, "started": 1}
    store.put("lock.json", json.dumps({**held, **changes}).encode())


def test_epochs_rise_from_holder_to_holder(place):
    store = Store.open(place)
    for term in (1, 2, 3):
        with RunLock(store, f"job {term}") as lock:
            assert lock.term == term
            lock.check()
            check_term(store, term)


def test_a_second_driver_is_refused_while_the_first_renews(place):
    store = Store.open(place)
    with RunLock(store, "first", still_s=0.6):
        time.sleep(0.2)
        with pytest.raises(RunConflict, match=r"job first is working on this run \(term 1\)"):
            RunLock(store, "second", still_s=5).acquire()


def test_a_lock_that_stands_still_is_taken_over_and_its_holder_told(place):
    store = Store.open(place)
    first = RunLock(store, "first", still_s=1000)
    first.acquire()
    _freeze(store)
    started = time.monotonic()
    second = RunLock(store, "second", still_s=0.5)
    assert second.acquire() == 2
    assert time.monotonic() - started >= 0.5
    for question in (first.check, first.renew, lambda: check_term(store, 1)):
        with pytest.raises(RunConflict, match="second"):
            question()
    first.release()
    second.check()
    second.release()


def test_a_driver_that_lost_the_lock_learns_it_from_its_own_thread(tmp_path):
    store = Store.open(tmp_path)
    first = RunLock(store, "first", still_s=0.3)
    first.acquire()
    _freeze(store, token="other", job="second", term=2)
    time.sleep(0.3)
    with pytest.raises(RunConflict, match="taken over"):
        first.check()
    first.release()
    assert store.get_json("lock.json")["job"] == "second"


def test_a_killed_driver_of_this_machine_is_replaced_at_once(tmp_path):
    code = (
        "import sys, time\n"
        "from raysegclean.store.lock import RunLock\n"
        "from raysegclean.store.objects import Store\n"
        "RunLock(Store.open(sys.argv[1]), 'killed').acquire()\n"
        "print('held', flush=True)\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert driver.stdout is not None
    assert driver.stdout.readline() == b"held\n"
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    started = time.monotonic()
    with RunLock(Store.open(tmp_path), "next") as lock:
        assert lock.term == 2
    assert time.monotonic() - started < 5


def test_renewing_raises_the_counter(place):
    store = Store.open(place)
    with RunLock(store, "job") as lock:
        before = store.get_json("lock.json")["counter"]
        lock.renew()
        lock.renew()
        assert store.get_json("lock.json")["counter"] == before + 2


def test_a_deleted_lock_stops_its_holder(place):
    store = Store.open(place)
    lock = RunLock(store, "job")
    lock.acquire()
    store.delete("lock.json")
    with pytest.raises(RunConflict, match="deleted"):
        lock.check()
    with pytest.raises(RunConflict, match="deleted"):
        check_term(store, 1)
    lock.release()


def test_whoever_looks_is_told_whether_a_driver_elsewhere_lives(tmp_path):
    store = Store.open(tmp_path)
    assert not is_driven(store)
    lock = RunLock(store, "job")
    lock.acquire()
    assert is_driven(store), "of a process of this machine it is known"
    held = store.get_json("lock.json")
    elsewhere = {**held, "holder": {**held["holder"], "machine": "another"}}
    store.put_json("lock.json", elsewhere)
    looks: list[int] = []
    assert not is_driven(store, look_s=0.3, on_look=lambda: looks.append(1))
    later = {**elsewhere, "counter": held["counter"] + 1}
    threading.Timer(0.2, lambda: store.put_json("lock.json", later)).start()
    assert is_driven(store, look_s=5.0)
    store.put_json("lock.json", held)
    lock.release()
    assert looks == [1]
    assert not is_driven(store)
