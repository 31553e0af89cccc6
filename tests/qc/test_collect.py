"""Facts of a case are read region by region, whatever its size."""

import numpy as np
import pytest

import raysegclean.qc.collect as module
from raysegclean.qc.collect import about_case, collect_statistics
from raysegclean.qc.label_statistics import label_statistics
from raysegclean.simulate.phantom import phantom_case
from raysegclean.store.archive import Archive, write_case
from raysegclean.store.index import load_index

SHAPE, SPACING = (12, 70, 66), (3.0, 2.0, 1.5)
AFFINE = np.array([[-1.5, 0, 0, 4], [0, 2.0, 0, 5], [0, 0, 3.0, 6], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    archive = Archive.open(tmp_path_factory.mktemp("facts") / "a")
    image, label = phantom_case(0, 0, SHAPE, SPACING)
    two = np.stack([image, image[::-1] // 2])
    write_case(archive, "one", image, {"organs": label}, spacing_mm=SPACING, affine=AFFINE)
    write_case(archive, "two", two, {"organs": label}, spacing_mm=SPACING)
    return archive


def test_a_case_cut_into_regions_has_the_facts_of_the_whole(archive, monkeypatch):
    infos = {info.case: info for info in load_index(archive)}
    whole = collect_statistics(archive, infos["one"], "organs")
    monkeypatch.setattr(module, "_REGION_ZYX", (5, 32, 17))
    read = []
    real = module.read_block_statistics

    def counted(label, image, case, core):
        read.append(core)
        return real(label, image, case, core)

    monkeypatch.setattr(module, "read_block_statistics", counted)
    assert collect_statistics(archive, infos["one"], "organs") == whole
    assert len(read) == 3 * 3 * 4
    assert whole.affine == tuple(map(tuple, AFFINE.tolist()))


def test_of_several_channels_the_first_is_looked_at(archive):
    infos = {info.case: info for info in load_index(archive)}
    one, two = (collect_statistics(archive, infos[case], "organs") for case in ("one", "two"))
    raw = [case.intensity.mean + case.intensity.std * case.classes[1].grey for case in (one, two)]
    assert raw[0] == pytest.approx(raw[1], abs=3)
    assert one.label_key == two.label_key
    assert one.image_key != two.image_key
    assert two.affine is None


def test_without_the_image_no_image_is_read(archive, monkeypatch):
    info = load_index(archive).cases[0]
    monkeypatch.setattr(Archive, "image", lambda *_: pytest.fail("the image was opened"))
    facts = collect_statistics(archive, info, "organs", with_image=False)
    assert np.isnan(facts.classes[1].grey)
    assert facts.classes[1].voxels == info.label("organs").voxels[1]


def test_a_case_without_label_voxels_has_no_classes():
    info = type("Known", (), {})()
    info.case, info.shape_zyx, info.spacing_mm, info.intensity = "a", SHAPE, SPACING, None
    assert label_statistics([], about_case(info, None)).classes == {}
