"""Cases that are one scan go to one fold; others are dealt by patient."""

from raysegclean.evidence.cases import CaseInfo, Intensity
from raysegclean.planning.folds import dealt_folds, with_twins_joined


def info(case: str, mean: float) -> CaseInfo:
    grey = Intensity(0.0, 1.0, 9.0, 10.0, mean, 2.0)
    return CaseInfo(
        case=case, shape_zyx=(4, 5, 6), spacing_mm=(1.0, 1.0, 1.0), intensity=grey, patient=None,
        site=None, annotator=None, channels=1, image_dtype="int16", labels=(), image_version="",
    )  # fmt: skip


def test_one_scan_under_two_ids_is_one_group_with_all_of_both_patients() -> None:
    infos = [info("a", 1.0), info("b", 2.0), info("twin", 1.0), info("d", 4.0), info("e", 5.0)]
    groups = {"a": "p1", "b": "p1", "twin": "p2", "d": "p2", "e": "p3"}
    joined = with_twins_joined(groups, infos)
    assert len({joined[case] for case in ("a", "b", "twin", "d")}) == 1
    assert joined["e"] == "p3"
    folds = dealt_folds(list(joined.values()), 2, seed=0)
    assert folds[joined["a"]] == folds[joined["twin"]]


def test_chains_of_twins_end_in_one_group() -> None:
    scans = {"a": 1.0, "b": 1.0, "c": 2.0, "d": 2.0, "e": 3.0, "f": 3.0}
    infos = [info(case, mean) for case, mean in scans.items()]
    groups = {"a": "p", "b": "q", "c": "q", "d": "r", "e": "r", "f": "s"}
    assert len(set(with_twins_joined(groups, infos).values())) == 1


def test_an_image_that_most_cases_share_joins_none() -> None:
    infos = [info(case, 1.0) for case in "abc"]
    groups = {case: case for case in "abc"}
    assert with_twins_joined(groups, infos) == groups
