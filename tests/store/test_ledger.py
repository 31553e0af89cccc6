import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raysegclean.errors import RunConflict
from raysegclean.store.ledger import Ledger
from raysegclean.store.objects import Store


def _records(*shards, **more):
    return [{"shard": [0, 0, s], "size_bytes": s, **more} for s in shards]


def test_what_is_committed_is_listed_over_all_epochs(place):
    store = Store.open(place)
    Ledger(store, "apply", 1).commit("case_1", 0, 0, _records(1, 2))
    Ledger(store, "apply", 2).commit("case_2", 0, 0, _records(3))
    Ledger(store, "propose", 1).commit("case_1", 0, 0, _records(9))
    assert Ledger(store, "apply", 5).records() == _records(1, 2, 3)


def test_the_first_record_of_a_shard_counts_by_epoch_and_not_by_spelling(place):
    store = Store.open(place)
    Ledger(store, "apply", 10).commit("a", 0, 0, _records(1, by="ten"))
    Ledger(store, "apply", 9).commit("b", 0, 0, _records(1, by="nine"))
    Ledger(store, "apply", 9).commit("a", 1, 0, _records(2, by="nine"))
    found = Ledger(store, "apply", 0).records()
    assert [(r["shard"][2], r["by"]) for r in found] == [(2, "nine"), (1, "nine")]


def test_records_that_name_no_shard_are_all_kept(place):
    ledger = Ledger(Store.open(place), "propose", 1)
    ledger.commit("a", 0, 0, [{"case": "c"}, {"case": "c"}])
    assert len(ledger.records()) == 2


def test_the_same_commit_twice_is_one_and_another_is_refused(place):
    ledger = Ledger(Store.open(place), "apply", 1)
    ledger.commit("a", 0, 0, _records(1))
    ledger.commit("a", 0, 0, _records(1))
    with pytest.raises(RunConflict, match=r"apply/1/a-0-0\.jsonl: committed before"):
        ledger.commit("a", 0, 0, _records(2))
    assert ledger.records() == _records(1)


def test_compaction_changes_no_record_and_later_commits_join(place):
    store = Store.open(place)
    ledger = Ledger(store, "apply", 1)
    for i in range(30):
        ledger.commit(f"item{i:02}", 0, 0, _records(i, note={"nested": [i, None]}))
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
    ledger = Ledger(store, "propose", 1)
    ledger.commit("a", 0, 0, [{"case": "c1"}])
    with monkeypatch.context() as cut:
        cut.setattr(Store, "delete", lambda self, key: None)
        ledger.compact(least=1)
    assert len(list(store.list("ledger"))) == 2
    assert ledger.records() == [{"case": "c1"}]
    assert ledger.compact(least=1) == 1
    assert len(list(store.list("ledger"))) == 1
    assert ledger.records() == [{"case": "c1"}]


def test_one_who_reads_while_another_compacts_misses_no_record(place, monkeypatch):
    store = Store.open(place)
    ledger = Ledger(store, "propose", 1)
    ledger.commit("a", 0, 0, [{"case": "c1"}])
    ledger.commit("b", 0, 0, [{"case": "c2"}])
    get = Store.get

    def get_late(self, key):
        monkeypatch.setattr(Store, "get", get)
        ledger.compact(least=2)
        return get(self, key)

    monkeypatch.setattr(Store, "get", get_late)
    assert ledger.records() == [{"case": "c1"}, {"case": "c2"}]
    assert [info.key.rpartition(".")[2] for info in store.list("ledger")] == ["pack"]


def test_what_is_committed_again_after_a_compaction_counts_once_and_as_it_was_first(place):
    ledger = Ledger(Store.open(place), "apply", 1)
    ledger.commit("a", 0, 0, _records(1, by="first"))
    ledger.compact(least=1)
    ledger.commit("a", 0, 0, _records(1, by="second"))
    assert [record["by"] for record in ledger.records()] == ["first"]


def test_an_empty_ledger_has_no_records(place):
    ledger = Ledger(Store.open(place), "apply", 1)
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
    ledger = Ledger(store, "apply", 1)
    ledger.commit("a", 0, 0, _records(1, 2, 3, note="crc32c"))
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
    ledger = Ledger(store, "apply", 1)
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
    ledger = Ledger(store, "apply", 1)
    for item in "ab":
        ledger.commit(item, 0, 0, _records(item))
    before = b"".join(store.get(info.key) for info in store.list("ledger"))
    ledger.compact(least=2)
    assert [store.get(info.key) for info in store.list("ledger")] == [before]
