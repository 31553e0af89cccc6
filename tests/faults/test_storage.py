"""A store that stutters: what is asked of it is done once, and nobody is blamed for it."""

import threading
import time

import pytest

from raysegclean.errors import AlreadyExists, ConfigError, Conflict, UnfitEnvironment
from raysegclean.evidence.records import ShardRecord
from raysegclean.store.ledger import Ledger
from raysegclean.store.lock import RunLock
from tests.faults.proxy import Fault

pytestmark = pytest.mark.s3

STUTTERS = ("reset", "cut", "late", "408", "429", "500", "503")
UNCLEAR = ("reset", "lost", "409", "409 lost", "412 lost", "429", "500 lost", "503", "503 lost")


def test_a_store_without_faults_keeps_to_conditions(place):
    place.check_writable()
    assert list(place.list()) == []


@pytest.mark.parametrize("how", STUTTERS)
def test_every_request_is_repeated(place, proxy, how):
    place.put("a/1", b"x" * 1000)
    proxy.plan(Fault(how, every=2, times=-1))
    assert place.get("a/1") == b"x" * 1000
    assert place.head("a/1").size_bytes == 1000
    place.put("a/2", b"y")
    assert [info.key for info in place.list("a")] == ["a/1", "a/2"]
    assert place.folders() == ("a",)
    place.delete("a/1")
    place.delete("never")
    place.delete_all("a")
    assert list(place.list()) == []
    assert any(done == how for _, _, done in proxy.seen)


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("how", UNCLEAR)
def test_a_create_whose_answer_is_unclear_is_resolved(place, proxy, how, times):
    proxy.plan(Fault(how, method="PUT", times=times))
    info = place.create("a", b"x")
    assert place.read("a") == (b"x", info)
    with pytest.raises(AlreadyExists):
        place.create("a", b"x")


@pytest.mark.parametrize("how", [*UNCLEAR, "412"])
def test_a_create_where_another_was_faster_never_succeeds(place, proxy, how):
    place.create("a", b"same")
    proxy.plan(Fault(how, method="PUT"))
    with pytest.raises(AlreadyExists):
        place.create("a", b"same")


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("how", [*UNCLEAR, "412"])
def test_a_swap_whose_answer_is_unclear_is_resolved(place, proxy, how, times):
    first = place.create("a", b"1")
    proxy.plan(Fault(how, method="PUT", times=times))
    second = place.swap("a", b"2", first)
    assert place.read("a") == (b"2", second)
    with pytest.raises(Conflict):
        place.swap("a", b"3", first)


@pytest.mark.parametrize("how", [*UNCLEAR, "412"])
def test_a_swap_where_another_was_faster_never_succeeds(place, proxy, how):
    first = place.create("a", b"1")
    place.swap("a", b"2", first)
    proxy.plan(Fault(how, method="PUT"))
    with pytest.raises(Conflict):
        place.swap("a", b"2", first)
    place.delete("a")
    proxy.plan(Fault(how, method="PUT"))
    with pytest.raises(Conflict):
        place.swap("a", b"3", first)


@pytest.mark.parametrize("how", ["lost", "409", "503 lost"])
def test_of_many_creators_at_a_store_that_stutters_one_wins(place, proxy, how):
    proxy.plan(Fault(how, method="PUT", every=2, times=-1))
    won = []

    def create(number):
        try:
            place.create("a", b"%d" % number)
        except AlreadyExists:
            return
        won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [place.get("a")] == [b"%d" % number for number in won]


@pytest.mark.parametrize("how", ["lost", "409", "503 lost"])
def test_ledger_lock_and_probe_know_their_own(place, proxy, how):
    records = [ShardRecord("c/0.0.0", "c", "key")]
    ledger = Ledger(place, "measure", ShardRecord, 1)
    proxy.plan(Fault(how, method="PUT", key="ledger"))
    ledger.commit("c", 0, 0, records)
    assert ledger.records() == records

    proxy.plan(Fault(how, method="PUT", key="lock"))
    began, lock = time.monotonic(), RunLock(place, "a", still_s=60)
    assert lock.acquire() == 1
    proxy.plan(Fault(how, method="PUT", key="lock"))
    lock.renew()
    proxy.plan(Fault(how, method="PUT", key="lock"))
    lock.release()
    assert time.monotonic() - began < 30  # it did not wait for itself

    proxy.plan(Fault(how, method="PUT", key="probe"))
    place.check_writable()


def test_an_outage_ends_after_the_set_time_and_blames_no_key(place, proxy, monkeypatch):
    monkeypatch.setenv("RAYSEGCLEAN_RETRY_S", "1")
    proxy.plan(Fault("503", times=-1))
    says = r"cannot be written \(.*503.*; tried \d+ times in [12] s\)\. The store or the way to it"
    with pytest.raises(UnfitEnvironment, match=says) as told:
        place.create("a", b"x")
    assert "keys" not in str(told.value)
    assert len(proxy.seen) > 3


@pytest.mark.parametrize("status", ["401", "403", "404"])
def test_a_refusal_is_not_repeated_and_names_keys_and_bucket(place, proxy, status):
    proxy.plan(Fault(status, times=-1))
    with pytest.raises(UnfitEnvironment, match=r"Check the bucket's name.*keys"):
        place.put("a", b"x")
    with pytest.raises(UnfitEnvironment, match=r"Check the bucket's name.*keys"):
        list(place.list())
    assert len(proxy.seen) == 2


def test_what_a_store_does_not_take_is_not_repeated_and_blames_no_key(place, proxy):
    proxy.plan(Fault("501", times=-1))
    with pytest.raises(UnfitEnvironment, match="501") as told:
        place.create("a", b"x")
    assert "keys" not in str(told.value)
    assert len(proxy.seen) == 1


def test_a_time_that_is_no_number_is_refused(place, monkeypatch):
    monkeypatch.setenv("RAYSEGCLEAN_RETRY_S", "soon")
    with pytest.raises(ConfigError, match="RAYSEGCLEAN_RETRY_S: got 'soon', expected seconds"):
        place.head("a")
