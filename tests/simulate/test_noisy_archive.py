"""A simulated archive is the real one with a label that is wrong in a known way."""

import numpy as np
import pytest

from raysegclean.errors import ConfigError, InputError
from raysegclean.evaluate.metrics import dice
from raysegclean.evaluate.score import score_archive
from raysegclean.simulate.mixture import ErrorKind
from raysegclean.simulate.noise import case_rng, corrupt
from raysegclean.simulate.noisy_archive import load_simulated, simulate
from raysegclean.simulate.phantom import write_phantom_archive
from raysegclean.store.archive import Archive, write_case
from raysegclean.store.arrays import Volume
from raysegclean.store.index import load_index

SHAPE, SPACING = (8, 32, 32), (5.0, 2.0, 2.0)
AFFINE = np.diag([-2.0, 2.0, 5.0, 1.0])


def objects_of(archive):
    return {info.key: info.etag for info in archive.store.list()}


@pytest.fixture
def source(tmp_path):
    rng = np.random.default_rng(0)
    archive = Archive.open(tmp_path / "real")
    for number in range(6):
        label = np.zeros(SHAPE, np.uint16)
        label[2:6, 6:20, 6 + number : 20] = 1
        label[2:6, 6:20, 20:28] = 300
        image = rng.normal(0, 100, SHAPE).astype(np.int16)
        expert = np.where(label == 300, 0, label)
        write_case(
            archive,
            f"c{number}",
            image,
            {"organs": label, "expert": expert},
            spacing_mm=SPACING,
            affine=AFFINE,
            attributes={"patient": f"p{number // 2}"},
        )
    return archive


def test_half_of_the_cases_are_corrupted_and_all_keep_their_truth(source, tmp_path):
    before = objects_of(source)
    report = simulate(source, tmp_path / "noisy", "organs", noise="boundary", seed=1)
    copy = Archive.open(tmp_path / "noisy")
    assert objects_of(source) == before
    assert (len(report.corrupted), len(report.clean), report.failed) == (3, 3, ())
    assert set(load_simulated(copy)) == set(report.corrupted)
    for case in source.case_ids():
        truth, given = (copy.label(case, n).read_all() for n in ("organs_truth", "organs"))
        np.testing.assert_array_equal(truth, source.label(case, "organs").read_all())
        assert (given != truth).any() == (case in report.corrupted)
        assert given.dtype == np.uint16
        np.testing.assert_array_equal(
            copy.label(case, "expert").read_all(), source.label(case, "expert").read_all()
        )
        np.testing.assert_array_equal(copy.image(case).read_all(), source.image(case).read_all())
        np.testing.assert_array_equal(copy.affine(case), AFFINE)
        assert copy.spacing_mm(case) == SPACING
    assert [info.patient for info in load_index(copy)] == ["p0", "p0", "p1", "p1", "p2", "p2"]


def test_a_corruption_depends_on_seed_and_case_alone(source, tmp_path):
    report = simulate(
        source, tmp_path / "noisy", "organs", noise="polygon", seed=3, params={"vertices": 4}
    )
    copy = Archive.open(tmp_path / "noisy")
    case = report.corrupted[0]
    truth = source.label(case, "organs").read_all()
    expected = corrupt(truth, "polygon", case_rng(3, case), SPACING, vertices=4)
    np.testing.assert_array_equal(copy.label(case, "organs").read_all(), expected)
    told = load_simulated(copy)[case]
    assert (told["noise"], told["params"], told["seed"]) == ("polygon", {"vertices": 4}, 3)
    assert told["dice"] == {str(k): v for k, v in dice(truth, expected).items()}
    assert report.dice.keys() == {1, 300}


def test_the_same_simulation_again_reuses_and_another_one_is_refused(source, tmp_path):
    place = tmp_path / "noisy"
    first = simulate(source, place, "organs", noise="bias", params={"amount": 1.0})
    before = objects_of(Archive.open(place))
    assert simulate(source, place, "organs", noise="bias", params={"amount": 1.0}) == first
    assert objects_of(Archive.open(place)) == before
    other = simulate(source, place, "organs", noise="bias", params={"amount": 2.0})
    assert {fault.case for fault in other.failed} == set(first.corrupted)
    assert "another simulation" in str(other.failed[0])


def test_simulating_again_reads_no_voxel(source, tmp_path, monkeypatch):
    first = simulate(source, tmp_path / "noisy", "organs", noise="shift")
    monkeypatch.setattr(Volume, "start", lambda volume, _: pytest.fail(f"{volume.uri} is read"))
    assert simulate(source, tmp_path / "noisy", "organs", noise="shift") == first


def test_another_source_into_the_same_place_is_refused(source, tmp_path):
    place = tmp_path / "noisy"
    first = simulate(source, place, "organs", noise="shift")
    other = Archive.open(tmp_path / "other")
    for case in source.case_ids():
        label = source.label(case, "organs").read_all()
        label[0, 0, 0] = 1
        image = source.image(case).read_all()
        write_case(other, case, image, {"organs": label}, spacing_mm=SPACING)
    before = objects_of(Archive.open(place))
    refused = simulate(other, place, "organs", noise="shift")
    assert [fault.case for fault in refused.failed] == other.case_ids()
    assert "another simulation or source" in refused.failed[0].reason
    assert objects_of(Archive.open(place)) == before
    assert simulate(source, place, "organs", noise="shift") == first


def test_an_older_copy_that_does_not_tell_its_source_is_reused(source, tmp_path):
    copy = Archive.open(tmp_path / "noisy")
    first = simulate(source, copy.store.uri, "organs", noise="shift")
    for case in source.case_ids():
        record = copy.attributes(case)["simulated"]
        del record["source"]
        copy.set_attributes(case, {"simulated": record})
    again = simulate(source, copy.store.uri, "organs", noise="shift")
    assert (again.corrupted, again.clean, again.failed) == (first.corrupted, first.clean, ())


def test_a_label_that_was_never_published_is_not_corrupted(source, tmp_path):
    source.begin_label("c0", "organs_clean", like="organs")
    report = simulate(source, tmp_path / "noisy", "organs_clean", noise="shift", cases=["c0"])
    assert "begun but not published" in report.failed[0].reason
    assert Archive.open(tmp_path / "noisy").case_ids() == []


def test_a_fraction_of_zero_is_an_archive_without_noise(source, tmp_path):
    report = simulate(source, tmp_path / "clean", "organs", noise="shift", fraction=0.0)
    assert report.corrupted == ()
    rows = score_archive(Archive.open(tmp_path / "clean"), "organs", "organs_truth").rows
    assert {row.dice for row in rows} == {1.0}


def test_a_case_without_the_label_is_reported_and_the_others_go_on(source, tmp_path):
    write_case(source, "bare", np.zeros(SHAPE, np.int16), {}, spacing_mm=SPACING)
    report = simulate(source, tmp_path / "noisy", "organs", noise="drop")
    (fault,) = report.failed
    assert fault.case == "bare"
    assert "organs" in fault.reason
    assert len(report.corrupted) + len(report.clean) == 6


def test_labels_that_a_run_made_are_not_copied(source, tmp_path):
    source.begin_label("c0", "organs_clean", like="organs")
    source.publish_label("c0", "organs_clean")
    simulate(source, tmp_path / "noisy", "organs", noise="boundary")
    names = Archive.open(tmp_path / "noisy").label_names("c0")
    assert names == ("expert", "organs", "organs_truth")


def test_impossible_simulations_are_refused_before_anything_is_written(source, tmp_path):
    place = tmp_path / "noisy"
    with pytest.raises(ConfigError, match="did you mean 'polygon'"):
        simulate(source, place, "organs", noise="polygn")
    with pytest.raises(ConfigError, match="'another_label' needs name"):
        simulate(source, place, "organs", noise="another_label")
    with pytest.raises(ConfigError, match="n_max"):
        simulate(source, place, "organs", noise="boundary", params={"n_max": 0})
    with pytest.raises(ConfigError, match="fraction"):
        simulate(source, place, "organs", noise="boundary", fraction=1.5)
    with pytest.raises(ConfigError, match="are one"):
        simulate(source, source.store.uri, "organs", noise="boundary")
    with pytest.raises(InputError, match="none: no case here"):
        simulate(Archive.open(tmp_path / "none"), place, "organs", noise="boundary")
    assert not place.exists()


def test_a_mixture_gives_each_case_its_own_kind_of_error(source, tmp_path):
    kinds = (
        ErrorKind("drop", 0.2, {"value": 300}, name="forgotten"),
        ErrorKind("another_label", 0.2, {"name": "expert"}),
        ErrorKind("another_case", 0.2),
    )
    report = simulate(source, tmp_path / "noisy", "organs", noise=kinds, seed=2)
    copy = Archive.open(tmp_path / "noisy")
    told = load_simulated(copy)
    noises = sorted(one["noise"] for one in told.values())
    assert noises == ["another_case", "another_case", "another_label", "drop"]
    assert {one.get("kind") for one in told.values()} == {"forgotten", None}
    for case, one in told.items():
        given = copy.label(case, "organs").read_all()
        if one["noise"] == "another_case":
            following = f"c{(int(case[1]) + 1) % 6}"
            np.testing.assert_array_equal(given, source.label(following, "organs").read_all())
        else:
            np.testing.assert_array_equal(given, source.label(case, "expert").read_all())
    assert simulate(source, tmp_path / "noisy", "organs", noise=kinds, seed=2) == report


def test_a_label_of_another_case_is_stretched_to_the_shape(source, tmp_path):
    deep = np.zeros((16, 64, 64), np.uint8)
    deep[4:12, 12:40, 12:40] = 1
    write_case(source, "d", deep.astype(np.int16), {"organs": deep}, spacing_mm=SPACING)
    simulate(
        source, tmp_path / "n", "organs", noise="another_case", fraction=1.0, cases=["c0", "d"]
    )
    given = Archive.open(tmp_path / "n").label("c0", "organs").read_all()
    np.testing.assert_array_equal(given, deep[::2, ::2, ::2])


def test_a_simulation_of_a_simulation_is_refused(source, tmp_path):
    simulate(source, tmp_path / "a", "organs", noise="boundary")
    again = simulate(Archive.open(tmp_path / "a"), tmp_path / "b", "organs", noise="boundary")
    assert len(again.failed) == 6
    assert "simulation itself" in again.failed[0].reason


def test_phantom_archives_grow_and_are_the_same_again(place):
    few = write_phantom_archive(place, 2, shape_zyx=SHAPE, spacing_mm=SPACING, seed=4)
    more = write_phantom_archive(place, 3, shape_zyx=SHAPE, spacing_mm=SPACING, seed=4)
    assert few.done == {"phantom-0000": "written", "phantom-0001": "written"}
    assert more.done == dict.fromkeys(few.done, "reused") | {"phantom-0002": "written"}
    index = load_index(Archive.open(place))
    assert [info.patient for info in index] == list(more.done)
    assert set(index.cases[0].label("organs").voxels) == {0, 1, 2, 3, 4}
    other = write_phantom_archive(place, 1, shape_zyx=SHAPE, spacing_mm=SPACING, seed=5)
    assert "Choose another place" in str(other.failed[0])


def test_an_archive_of_bodies_is_another_one(tmp_path):
    made = write_phantom_archive(
        tmp_path / "a", 2, shape_zyx=SHAPE, spacing_mm=SPACING, bodies=True
    )
    assert len(made.done) == 2
    plain = write_phantom_archive(tmp_path / "a", 1, shape_zyx=SHAPE, spacing_mm=SPACING)
    assert "Choose another place" in str(plain.failed[0])


def test_impossible_phantoms_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="at least one case"):
        write_phantom_archive(tmp_path / "a", 0)
    with pytest.raises(ConfigError, match="8, 32, 32"):
        write_phantom_archive(tmp_path / "a", 1, shape_zyx=(4, 32, 32))
