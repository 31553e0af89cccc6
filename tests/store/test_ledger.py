import pytest

from raysegclean.errors import InputError, RunConflict
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
    assert sorted(kinds) == ["jsonl", "jsonl", "parquet", "parquet"]
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
    assert [info.key.rpartition(".")[2] for info in store.list("ledger")] == ["parquet"]


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


def test_a_damaged_entry_is_named_with_its_remedy(place):
    store = Store.open(place)
    store.put("ledger/apply/1/a-0-0.jsonl", b'{"shard": [0')
    with pytest.raises(InputError, match=r"a-0-0\.jsonl: not JSON lines.*Delete that object"):
        Ledger(store, "apply", 1).records()
