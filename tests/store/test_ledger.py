from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raysegclean.errors import RunConflict
from raysegclean.evidence.records import (
    ApplyRecord,
    ChangeCounts,
    CheckRecord,
    GrossRecord,
    MeasureRecord,
    Offsets,
    ProposeRecord,
    ShardRecord,
    StoredObject,
)
from raysegclean.store.ledger import Ledger
from raysegclean.store.objects import Store
from raysegclean.voxels.offset_sums import OffsetSums


def _records(*shards, by=""):
    objects = (StoredObject("labels/a/0/c/0/0/0", 7, 1 << 31),)
    counts = ChangeCounts(given_vox=(1, 2), kept_vox=(1, 0))
    return [
        ApplyRecord(f"c/{s}", "c", "k", objects=objects, counts=counts, regions=by) for s in shards
    ]


def test_what_is_committed_is_listed_over_all_epochs(place):
    store = Store.open(place)
    Ledger(store, "apply", ApplyRecord, 1).commit("case_1", 0, 0, _records(1, 2))
    Ledger(store, "apply", ApplyRecord, 2).commit("case_2", 0, 0, _records(3))
    Ledger(store, "propose", ApplyRecord, 1).commit("case_1", 0, 0, _records(9))
    assert Ledger(store, "apply", ApplyRecord, 5).records() == _records(1, 2, 3)


def test_the_first_record_of_a_shard_counts_by_epoch_and_not_by_spelling(place):
    store = Store.open(place)
    Ledger(store, "apply", ApplyRecord, 10).commit("a", 0, 0, _records(1, by="ten"))
    Ledger(store, "apply", ApplyRecord, 9).commit("b", 0, 0, _records(1, by="nine"))
    Ledger(store, "apply", ApplyRecord, 9).commit("a", 1, 0, _records(2, by="nine"))
    found = Ledger(store, "apply", ApplyRecord, 0).records()
    assert [(r.task, r.regions) for r in found] == [("c/2", "nine"), ("c/1", "nine")]


def test_a_shard_under_another_key_is_another_record(place):
    ledger = Ledger(Store.open(place), "apply", ApplyRecord, 1)
    both = [*_records(1), replace(_records(1)[0], key="other")]
    ledger.commit("a", 0, 0, both)
    assert ledger.records() == both


KINDS = [
    ShardRecord("c/0", "c", "k", objects=(StoredObject("a", 0, 0, empty=True),)),
    ProposeRecord(
        "c/0",
        "c",
        "k",
        stats="AA==",
        trusted_stats="BB==",
        offsets=Offsets(OffsetSums({1: (1, 2, -3, 4, 5)}), OffsetSums({})),
        seams=(1 << 60, 3),
    ),
    CheckRecord(
        "c/0",
        "c",
        "k",
        facts="CC==",
        affine=((0.1, 1 / 3), (-2.5, 1e-17)),
    ),
    GrossRecord("c/0", "c", "k", look="{}"),
    MeasureRecord("c/0", "c", "k", offsets=Offsets(OffsetSums({2: (0,) * 5}))),
    _records(1)[0],
]


@pytest.mark.parametrize("record", KINDS, ids=lambda record: type(record).__name__)
def test_a_record_of_each_stage_comes_back_as_it_was_and_as_its_parent(tmp_path, record):
    ledger = Ledger(Store.open(tmp_path), "any", type(record), 1)
    ledger.commit("a", 0, 0, [record])
    assert ledger.records() == [record]
    (parent,) = Ledger(Store.open(tmp_path), "any", ShardRecord).records()
    assert (parent.task, parent.key, parent.objects) == (record.task, record.key, record.objects)


def test_the_same_commit_twice_is_one_and_another_is_refused(place):
    ledger = Ledger(Store.open(place), "apply", ApplyRecord, 1)
    ledger.commit("a", 0, 0, _records(1))
    ledger.commit("a", 0, 0, _records(1))
    with pytest.raises(RunConflict, match=r"apply/1/a-0-0\.jsonl: committed before"):
        ledger.commit("a", 0, 0, _records(2))
    assert ledger.records() == _records(1)


def test_compaction_changes_no_record_and_later_commits_join(place):
    store = Store.open(place)
    ledger = Ledger(store, "apply", ApplyRecord, 1)
    for i in range(30):
        ledger.commit(f"item{i:02}", 0, 0, _records(i))
    before = ledger.records()
    assert ledger.compact(least=31) == 0
    assert ledger.compact(least=14) == 28
    kinds = [info.key.rpartition(".")[2] for info in store.list("ledger/apply")]
    assert sorted(kinds) == ["jsonl", "jsonl", "pack", "pack"]
    assert ledger.records() == before
    ledger.commit("late", 0, 0, _records(99))
    assert ledger.records() == before + _records(99)
    assert ledger.compact(least=1) == 3
    assert ledger.records() == before + _records(99)


def test_a_compaction_cut_short_before_its_deletions_counts_nothing_twice(place, monkeypatch):
    store = Store.open(place)
    ledger = Ledger(store, "propose", ApplyRecord, 1)
    ledger.commit("a", 0, 0, _records(1))
    with monkeypatch.context() as cut:
        cut.setattr(Store, "delete", lambda self, key: None)
        ledger.compact(least=1)
    assert len(list(store.list("ledger"))) == 2
    assert ledger.records() == _records(1)
    assert ledger.compact(least=1) == 1
    assert len(list(store.list("ledger"))) == 1
    assert ledger.records() == _records(1)


def test_one_who_reads_while_another_compacts_misses_no_record(place, monkeypatch):
    store = Store.open(place)
    ledger = Ledger(store, "propose", ApplyRecord, 1)
    ledger.commit("a", 0, 0, _records(1))
    ledger.commit("b", 0, 0, _records(2))
    get = Store.get

    def get_late(self, key):
        monkeypatch.setattr(Store, "get", get)
        ledger.compact(least=2)
        return get(self, key)

    monkeypatch.setattr(Store, "get", get_late)
    assert ledger.records() == _records(1, 2)
    assert [info.key.rpartition(".")[2] for info in store.list("ledger")] == ["pack"]


def test_what_is_committed_again_after_a_compaction_counts_once_and_as_it_was_first(place):
    ledger = Ledger(Store.open(place), "apply", ApplyRecord, 1)
    ledger.commit("a", 0, 0, _records(1, by="first"))
    ledger.compact(least=1)
    ledger.commit("a", 0, 0, _records(1, by="second"))
    assert [record.regions for record in ledger.records()] == ["first"]


def test_an_empty_ledger_has_no_records(place):
    ledger = Ledger(Store.open(place), "apply", ApplyRecord, 1)
    assert ledger.records() == []
    assert ledger.compact(least=1) == 0
    assert ledger.records() == []


def _damaged(data, flips, cut):
    """Return `data` with some bytes changed and its end cut off."""
    bad = bytearray(data)
    for place, change in flips:
        bad[place % len(bad)] ^= change
    return bytes(bad[: len(bad) - cut % len(bad)])


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    flips=st.lists(st.tuples(st.integers(0), st.integers(1, 255)), max_size=4),
    cut=st.one_of(st.just(0), st.integers(0)),
    packed=st.booleans(),
)
def test_whatever_bytes_are_damaged_no_wrong_record_is_read_and_whole_lines_are(
    tmp_path_factory, flips, cut, packed
):
    store = Store.open(tmp_path_factory.mktemp("ledger"))
    ledger = Ledger(store, "apply", ApplyRecord, 1)
    ledger.commit("a", 0, 0, _records(1, 2, 3, by=',"crc32c":"'))
    if packed:
        ledger.compact(least=1)
    written = ledger.records()
    ((key, data),) = [(info.key, store.get(info.key)) for info in store.list("ledger")]
    bad = _damaged(data, flips, cut)
    store.put(key, bad)
    untouched = set(bad.split(b"\n")[:-1])
    whole = [line in untouched for line in data.splitlines()]
    assert ledger.records() == [r for r, good in zip(written, whole, strict=True) if good]


def test_what_is_damaged_is_named_and_done_again_and_a_compaction_drops_it(place, caplog):
    store = Store.open(place)
    ledger = Ledger(store, "apply", ApplyRecord, 1)
    ledger.commit("a", 0, 0, _records(1, 2, 3))
    key = "ledger/apply/1/a-0-0.jsonl"
    first, second, third = store.get(key).splitlines(keepends=True)
    store.put(key, first + second.replace(b"2", b"7") + third[:-9])
    assert ledger.records() == _records(1)
    assert f"{key}: skipped what is damaged, line 2, 3 (torn): " in caplog.text
    ledger.commit("a", 1, 0, _records(2, 3))
    ledger.compact(least=1)
    caplog.clear()
    assert ledger.records() == _records(1, 2, 3)
    assert not caplog.text


def test_a_pack_keeps_lines_as_they_were_committed(place):
    store = Store.open(place)
    ledger = Ledger(store, "apply", ApplyRecord, 1)
    for item in "ab":
        ledger.commit(item, 0, 0, _records(item))
    before = b"".join(store.get(info.key) for info in store.list("ledger"))
    ledger.compact(least=2)
    assert [store.get(info.key) for info in store.list("ledger")] == [before]
