"""Integrity checks: what breaks the archive's own rules is found, and nothing else."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegclean.evidence.cases import Intensity
from raysegclean.qc.findings import Feature, IntegrityParams
from raysegclean.qc.integrity import examine
from raysegclean.qc.label_statistics import LabelStatistics, block_statistics, label_statistics
from raysegclean.qc.orientation import Frame, orientation
from raysegclean.voxels.geometry import Box

SHAPE = (16, 40, 40)
SPACING = (3.0, 1.0, 1.0)
LPS = np.array([[-1.0, 0, 0, 20], [0, -1.0, 0, 20], [0, 0, 3.0, 0], [0, 0, 0, 1]])


def organs(seed=0):
    """Three organs: 1 and 2 side by side, 3 above; every case a little different."""
    rng = np.random.default_rng(seed)
    label = np.zeros(SHAPE, np.uint8)
    for value, (z, y, x), radius in (
        (1, (6, 20, 10), 6),
        (2, (6, 20, 30), 6),
        (3, (12, 14, 20), 4),
    ):
        centre = np.array((z, y, x)) + rng.normal(0, 0.4, 3)
        grid = np.indices(SHAPE).T - centre
        square = ((grid * (2, 1, 1)) ** 2).sum(-1).T
        label[square < (radius * rng.uniform(0.95, 1.05)) ** 2] = value
    return label


def image_of(label, seed=0):
    rng = np.random.default_rng(1000 + seed)
    return (100.0 * label + rng.normal(0, 10, label.shape)).astype(np.int16)


def facts(case, label, image=None, affine=LPS, **more):
    image = image_of(label, len(case)) if image is None else image
    low, high = float(image.min()), float(image.max())
    intensity = Intensity(low, low, high, high, float(image.mean()), float(image.std()))
    about = LabelStatistics(
        case=case,
        shape_zyx=label.shape,
        spacing_mm=SPACING,
        affine=None if affine is None else tuple(map(tuple, affine.tolist())),
        image_key=case,
        label_key="",
        intensity=intensity,
    )
    whole = Box.whole(label.shape)
    block = block_statistics(label, whole, whole, label.shape, image, intensity)
    return replace(label_statistics([block], about), **more)


def archive(count=20, affine=LPS):
    return [facts(f"c{n:02}", organs(n), affine=affine) for n in range(count)]


def about(examination, case):
    return [finding for finding in examination.findings if finding.case == case]


def test_an_ordinary_archive_has_no_findings_and_every_case_a_rank():
    found = examine(archive())
    assert found.findings == ()
    assert found.notes == ()
    assert sorted(found.worst_first()) == [f"c{n:02}" for n in range(20)]


@settings(max_examples=10)
@given(st.permutations(range(12)))
def test_the_answer_does_not_depend_on_the_order_of_the_cases(order):
    cases = [facts(f"c{n:02}", organs(n)) for n in range(11)]
    bad = organs(11)
    bad[bad == 2] = 0
    cases.append(facts("c11", bad))
    assert examine([cases[n] for n in order]) == examine(cases)


def damaged(kind, seed=77):
    label = organs(seed)
    if kind == "missing":
        label[label == 3] = 0
    elif kind == "swapped":
        label = np.array([0, 2, 1, 3])[label]
    elif kind == "skipped":
        label[5][label[5] == 1] = 0
    elif kind == "cut":
        label[..., 31:][label[..., 31:] == 2] = 0
    elif kind == "empty":
        label[:] = 0
    elif kind == "shrunk":
        label[(label == 1) & (np.indices(SHAPE)[1] > 17)] = 0
    elif kind == "specks":
        label[::5, ::9, ::9][label[::5, ::9, ::9] == 0] = 3
    elif kind == "stray":
        label[0, 0, 0] = 9
    return label.astype(np.uint8)


@pytest.mark.parametrize(
    ("kind", "says", "grave"),
    [
        ("missing", "class 3 is missing", True),
        ("swapped", "class 2 lies further right than class 1, the wrong way round", True),
        ("skipped", "class 1 skips slices", True),
        ("cut", "class 2 ends more flat than usual, at its high x end", False),
        ("empty", "the label is empty", True),
        ("shrunk", "class 1 is smaller than usual", False),
        ("specks", "class 3 is in more pieces than usual", False),
        ("stray", "value 9 is in this label", False),
    ],
)
def test_each_kind_of_damage_is_named_and_ranks_first(kind, says, grave):
    image = image_of(organs(77))
    found = examine([*archive(), facts("bad", damaged(kind), image)])
    assert found.worst_first()[0] == "bad"
    mine = [finding for finding in about(found, "bad") if finding.what.startswith(says)]
    assert [finding.grave for finding in mine] == [grave]
    assert mine[0].remedy
    assert not [finding for finding in found.findings if finding.case != "bad"]


def test_a_displaced_label_is_found_by_its_place_and_by_its_image():
    label = organs(77)
    away = np.roll(label, 6, axis=2)
    found = examine([*archive(), facts("bad", away, image_of(label))])
    said = " ".join(finding.what for finding in about(found, "bad"))
    assert "in the image" in said
    assert "follows edges of the image less" in said
    assert found.worst_first()[0] == "bad"


def test_one_displaced_class_is_blamed_and_not_the_others():
    label = organs(77)
    three = np.roll(np.where(label == 3, label, 0), -9, axis=1)
    found = examine([*archive(), facts("bad", np.maximum(label * (label != 3), three))])
    seen = [f for f in about(found, "bad") if "seen from the other classes" in f.what]
    assert [finding.label_value for finding in seen] == [3]
    assert "further front" in seen[0].what
    assert seen[0].value.startswith("9")


def test_a_case_stored_the_other_way_round_is_like_the_others_when_its_affine_says_so():
    label = organs(77)
    turned = LPS.copy()
    turned[0] *= -1
    turned[0, 3] = -20.0
    honest = facts("turned", label[:, :, ::-1].copy(), affine=turned)
    found = examine([*archive(), honest])
    assert not any(finding.grave for finding in about(found, "turned"))
    assert [f.what for f in about(found, "turned")] == [
        "the affine turns the image another way than in the other cases"
    ]
    lying = facts("turned", label, affine=turned)
    wrong = examine([*archive(), lying])
    assert any("the wrong way round" in f.what and f.grave for f in about(wrong, "turned"))


def test_without_affines_the_axes_are_those_of_the_voxels():
    found = examine([*archive(affine=None), facts("bad", damaged("swapped"), affine=None)])
    assert any("toward low x than class 1" in finding.what for finding in about(found, "bad"))
    assert "not every case has an affine" in found.notes[0]


def test_spacing_that_disagrees_is_grave():
    label = organs(77)
    scaled = LPS.copy()
    scaled[2, 2] = 5.0
    by_affine = about(examine([*archive(), facts("bad", label, affine=scaled)]), "bad")
    assert any("affine's spacing" in finding.what and finding.grave for finding in by_affine)


def test_declared_values_make_any_other_value_grave():
    cases = archive(3)
    assert not examine(cases, declared={1, 2, 3}).findings
    found = examine(cases, declared={1, 2}).findings
    assert {(f.case, f.label_value, f.grave) for f in found} == {
        (case.case, 3, True) for case in cases
    }


def test_twins_are_found_by_image_and_by_label():
    cases = archive()
    same_image = replace(facts("twin", organs(77)), image_key="c03")
    same_label = replace(facts("copy", organs(5), image_of(organs(5), 9)))
    found = examine([*cases, same_image, same_label])
    assert [(f.case, f.grave) for f in found.findings if "as case" in f.what] == [
        ("copy", True),
        ("twin", False),
    ]
    atlas = [facts(f"c{n}", organs(0), image_of(organs(0), n)) for n in range(10)]
    assert not [f for f in examine(atlas).findings if "same label" in f.what]


def test_two_cases_that_share_a_label_are_found_however_small_the_archive():
    shared = [facts(f"c{n}", organs(0), image_of(organs(0), n)) for n in range(2)]
    for others in ([], [facts("c9", organs(9))]):
        found = examine([*shared, *others]).findings
        assert [f.case for f in found if "same label as case c0" in f.what] == ["c1"]


def test_a_second_nodule_far_from_the_first_is_no_skipped_slice():
    cases = []
    for n in range(20):
        label = organs(n)
        label[(label != 0) & (label != 3)] = 0
        cases.append(facts(f"c{n:02}", label))
    two = organs(77)
    two[(two != 0) & (two != 3)] = 0
    two[0:4, 2:8, 2:8] = 3
    mine = about(examine([*cases, facts("two", two)]), "two")
    assert any("in parts far apart" in finding.what for finding in mine)
    assert not [finding for finding in mine if "skips slices" in finding.what]


def test_one_odd_voxel_does_not_make_an_archive_ct():
    label = organs(77)
    dark = image_of(label, 3) - 60 * (label == 1).astype(np.int16)
    cases = [*archive(), facts("dark", label, dark)]
    plain = about(examine(cases), "dark")
    odd = image_of(organs(5), 5)
    odd[0, 0, 0] = -1000
    cases[5] = facts("c05", organs(5), odd)
    assert [finding.what for finding in about(examine(cases), "dark")] == [
        finding.what for finding in plain
    ]
    assert any("darker" in finding.what for finding in plain)


def test_with_few_cases_nothing_is_usual_and_it_is_said_so():
    found = examine([*archive(3), facts("bad", damaged("shrunk"))])
    assert not found.findings
    assert "fewer than 8 cases have class 1, 2, 3" in found.notes[0]


def test_one_kidney_of_two_is_found():
    cases = []
    for n in range(12):
        label = organs(n)
        label[label == 2] = 1
        cases.append(facts(f"c{n:02}", label))
    alone = organs(77)
    alone[alone == 2] = 0
    found = examine([*cases, facts("bad", alone)])
    assert any("number of large parts" in finding.what for finding in about(found, "bad"))


class Counted(str):
    """A case id that counts how often it is compared."""

    __slots__ = ()
    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other):
        Counted.compared += 1
        return str.__eq__(self, other)


def test_the_work_grows_with_the_cases_and_not_with_their_square():
    one = facts("c", organs())
    fewer = {value: replace(facts, parts=2) for value, facts in one.classes.items()}
    many = 600
    cases = [
        replace(
            one,
            case=Counted(f"c{number:03}"),
            image_key=str(number),
            label_key=str(number),
            classes=one.classes if number % 20 else fewer,
        )
        for number in range(many)
    ]
    found = examine(cases).findings
    assert sum("number of large parts" in finding.what for finding in found) == 3 * many / 20
    assert Counted.compared < 10 * many


@given(st.floats(-50, 50), st.floats(0.1, 5))
def test_scores_are_distances_from_the_median_in_robust_sds(centre, spread):
    rng = np.random.default_rng(0)
    values = rng.normal(centre, spread, 400)
    values[7] = centre + 8 * spread
    one = Feature("{side}", ("low", "high"), "", values, "", floor=1e-3)
    assert one.scores(8)[7] == pytest.approx(8, rel=0.15)
    assert one.scores(500)[7] == 0
    (finding,) = one.findings([str(n) for n in range(400)], (1, "1"), [""] * 400, IntegrityParams())
    assert (finding.case, finding.what, finding.grave) == ("7", "high", False)


@pytest.mark.parametrize("code", ["RAS", "LPS", "LAS", "SAR", "PIR"])
def test_orientations_have_the_names_that_nibabel_gives_them(code):
    nibabel = pytest.importorskip("nibabel")
    affine = nibabel.orientations.inv_ornt_aff(
        nibabel.orientations.axcodes2ornt(tuple(code)), (10, 11, 12)
    )
    affine = np.linalg.inv(affine)
    affine[:3, :3] *= (1.0, 2.0, 3.0)
    expected = "".join(nibabel.aff2axcodes(affine))
    assert orientation(tuple(map(tuple, affine.tolist()))) == expected
    one = facts("a", organs(), affine=affine)
    frame = Frame([one])
    corners = np.array([[0.0, 0.0, 0.0], [n - 1.0 for n in SHAPE]])
    low, high = frame.place(one, corners)
    start, end = frame.centre_mm(one, corners)
    np.testing.assert_array_equal(high > low, end > start)


def test_findings_call_a_class_by_its_name():
    label = organs(9)
    cases = [*archive(), facts("bad", label * (label != 3))]
    found = about(examine(cases, names={3: "gallbladder {x}"}), "bad")
    assert "class 3 gallbladder {x} is missing" in {finding.what for finding in found}
    shrunk = about(
        examine([*archive(), facts("bad", damaged("shrunk"))], names={1: "a {x}"}), "bad"
    )
    assert any(finding.what.startswith("class 1 a {x} is smaller") for finding in shrunk)
