"""Items and identities: plans that do not depend on who works."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysegclean.identity import differing_parts, digest
from raysegclean.planning.items import Item, plan_items
from raysegclean.voxels.geometry import Grid, output_shard_zyx

edge = st.integers(1, 600)
shapes = st.lists(st.tuples(edge, edge, edge), min_size=1, max_size=12)


@given(shapes, st.integers(1, 1 << 24))
def test_every_shard_lies_in_exactly_one_item(
    cases: list[tuple[int, int, int]], target_vox: int
) -> None:
    grids = [(f"c{n}", Grid(shape, output_shard_zyx(shape))) for n, shape in enumerate(cases)]
    items = plan_items(grids, target_vox)
    names = [task.name for item in items for task in item.tasks]
    assert sorted(names) == sorted(
        f"{case}/{z}.{y}.{x}" for case, grid in grids for z, y, x in grid.indices()
    )
    assert len({item.name for item in items}) == len(items)
    for item in items:
        several = {task.case for task in item.tasks if len(dict(grids)[task.case]) > 1}
        assert not several or len({task.case for task in item.tasks}) == 1


def test_an_item_crosses_processes_as_one_line() -> None:
    (item,) = plan_items([("a/b", Grid((3, 4, 5), (64, 64, 64)))])
    assert Item.from_json(item.to_json()) == item
    assert "\n" not in item.to_json()


def test_a_resumed_item_holds_only_what_is_missing() -> None:
    (item,) = plan_items([("a", Grid((300, 60, 60), (256, 64, 64)))], 1 << 24)
    assert [task.name for task in item.without({"a/0.0.0"}).tasks] == ["a/1.0.0"]


def test_small_cases_share_items_of_at_most_256() -> None:
    grids = [(f"{n:03d}", Grid((4, 4, 4), (64, 64, 64))) for n in range(600)]
    assert [len(item.tasks) for item in plan_items(grids)] == [256, 256, 88]


@dataclass(frozen=True)
class _Value:
    a: int
    b: tuple[float, ...]


def test_an_identity_depends_on_values_and_not_on_order_or_container() -> None:
    assert digest({"x": 1, "y": (2, 3)}) == digest({"y": [2, 3], "x": 1})
    assert digest(_Value(1, (2.0,))) == digest({"a": 1, "b": [2.0]})
    assert digest(1, 2) != digest(2, 1)
    assert digest(frozenset({3, 1})) == digest({1, 3})
    with pytest.raises(TypeError, match="identity"):
        digest(object())


def test_what_differs_is_named_with_both_values() -> None:
    before = {"train": {"steps": 10, "seed": 0}, "label": "a"}
    now = {"train": {"steps": 20, "seed": 0}, "label": "a", "new": 1}
    assert differing_parts(before, now) == [
        "new was 'absent', is 1",
        "train.steps was 10, is 20",
    ]
