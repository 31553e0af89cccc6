"""2D archives out of 3D ones show the same structure, on finer pixels."""

from pathlib import Path

import numpy as np
from slices import EDGE_PIXELS, write_slices

from raysegclean.store.archive import Archive, write_case


def test_a_slice_shows_the_class_at_its_place_and_in_its_size(tmp_path: Path):
    source, target = Archive.open(tmp_path / "3d"), Archive.open(tmp_path / "2d")
    label = np.zeros((6, 100, 90), np.uint8)
    label[1:5, 30:70, 20:50] = 5
    label[:, :10, :10] = 3
    image = np.where(label == 5, 100, -50).astype(np.int16)
    write_case(source, "a", image, {"organs": label}, spacing_mm=(5.0, 3.0, 3.0))
    write_slices(source, target, "organs", 5, seed=1)
    drawn, seen = target.label("a", "organs").read_all(), target.image("a").read_all()
    assert drawn.shape == seen.shape == (1, EDGE_PIXELS, EDGE_PIXELS)
    assert set(np.unique(drawn)) == {0, 1}
    area_mm2 = drawn.sum() * np.prod(target.spacing_mm("a")[1:])
    assert abs(area_mm2 / (120 * 90) - 1) < 0.02
    centre = np.argwhere(drawn[0]).mean(axis=0) - (EDGE_PIXELS - 1) / 2
    assert np.allclose(centre * 336 / 256, (0.0, -30.0), atol=1.0)
    assert seen[drawn == 1].mean() > 95
    write_slices(source, target, "organs", 5, seed=1)
    assert target.case_ids() == ["a"]
