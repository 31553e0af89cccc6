"""What became of cases and classes adds up, and says where to look."""

from typing import Any

from raysegclean.runs.tally import STATES, tally


def row(case: str, cls: int, action: str, changed_vox: int = 0) -> dict[str, Any]:
    about = {"case": case, "class": cls, "action": action, "changed_vox": changed_vox}
    return about | {"why": f"{action} it"}


def test_every_class_and_every_case_is_counted() -> None:
    found = tally(
        [
            row("right", 1, "keep"),
            row("right", 2, "not judged"),
            row("moved", 1, "shift", 9),
            row("moved", 2, "keep"),
            row("odd", 1, "review"),
            row("odd", 2, "keep"),
            row("blank", 1, "not judged"),
        ]
    )
    assert found.cases == {"kept": 1, "changed": 1, "review": 1, "not judged": 1}
    assert found.classes == {"kept": 3, "changed": 1, "review": 1, "not judged": 2}
    assert found.look_at == ("odd, class 1: review it",)


def test_what_was_changed_and_is_in_doubt_counts_as_both() -> None:
    found = tally([row("a", 1, "review", 5), row("a", 2, "not judged")])
    assert found.cases == {"kept": 0, "changed": 1, "review": 1, "not judged": 0}
    assert found.classes == {"kept": 0, "changed": 1, "review": 1, "not judged": 1}


def test_an_edit_that_changed_no_voxel_leaves_the_class_kept() -> None:
    assert tally([row("a", 1, "replace")]).cases["kept"] == 1


def test_many_cases_in_review_are_cut_short_with_their_number() -> None:
    found = tally([row(f"c{n:02d}", cls, "review") for n in range(14) for cls in (1, 2)])
    assert len(found.look_at) == 11
    assert found.look_at[-1] == "and 4 more cases: action is review in cases.parquet"


def test_nothing_is_counted_where_there_is_nothing() -> None:
    assert tally([]).cases == dict.fromkeys(STATES, 0)
