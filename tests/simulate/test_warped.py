"""Warped cases are one CT that was bent and never torn, and the same for ever."""

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from raysegclean.errors import ConfigError, InputError
from raysegclean.simulate import warped
from raysegclean.simulate.made_archive import Scan
from raysegclean.simulate.warped import (
    Variety,
    grouped,
    read_scan,
    warped_case,
    write_warped_archive,
)
from raysegclean.store.archive import Archive
from raysegclean.store.index import load_index

SPACING = (3.0, 2.0, 2.0)
WHOLE = Variety(cut=0.0)
HU = {0: -1000, 1: 100, 2: -800, 3: 400, 4: 200}


@pytest.fixture(scope="module")
def scan():
    """A body (1) with one thing inside (2) that holds another (3), and a rod beside them (4)."""
    z, y, x = np.indices((30, 60, 60), np.float32)
    label = np.zeros((30, 60, 60), np.uint8)
    label[(y - 30) ** 2 + (x - 30) ** 2 < 26**2] = 1
    label[(1.5 * (z - 15)) ** 2 + (y - 26) ** 2 + (x - 20) ** 2 < 12**2] = 2
    label[(1.5 * (z - 15)) ** 2 + (y - 26) ** 2 + (x - 20) ** 2 < 6**2] = 3
    label[(y - 34) ** 2 + (x - 44) ** 2 < 6**2] = 4
    image = np.select([label == v for v in HU], [*HU.values()]).astype(np.int16)
    affine = np.diag([-2.0, -2.0, 3.0, 1.0])
    affine[:3, 3] = 10, 20, 30
    return Scan(image, {"organs": label, "fast": label[:, ::-1]}, SPACING, affine)


def test_a_case_is_a_function_of_seed_and_number(scan):
    one, again, other = (warped_case(scan, seed, 3) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.image_zyx, again.image_zyx)
    np.testing.assert_array_equal(one.labels_zyx["organs"], again.labels_zyx["organs"])
    assert one.image_zyx.shape != other.image_zyx.shape or (one.image_zyx != other.image_zyx).any()
    assert (one.image_zyx.dtype, one.labels_zyx["organs"].dtype) == (np.int16, np.uint8)


def test_slabs_do_not_show(monkeypatch, scan):
    whole = warped_case(scan, 1, 0)
    monkeypatch.setattr(warped, "SLAB_VOXELS", 1)
    slabs = warped_case(scan, 1, 0)
    np.testing.assert_array_equal(slabs.labels_zyx["organs"], whole.labels_zyx["organs"])
    assert np.abs(slabs.image_zyx.astype(int) - whole.image_zyx).max() <= 1  # float32 rounding


def test_labels_stay_in_step_with_the_image(scan):
    for number in range(6):
        case = warped_case(scan, 5, number, WHOLE)
        label = case.labels_zyx["organs"]
        for value, hu in HU.items():
            core = ndimage.binary_erosion(label == value, np.ones((1, 3, 3)))
            found = float(np.median(case.image_zyx[core]))
            assert found == pytest.approx(hu, abs=90), f"class {value} of case {number}"


def test_anatomy_keeps_its_order_and_no_class_vanishes(scan):
    """What encloses still encloses, and the rod stays on its side."""
    for number in range(8):
        label = warped_case(scan, 7, number, Variety(warp_mm=40.0, cut=0.0)).labels_zyx["organs"]
        assert set(np.unique(label)) == {0, 1, 2, 3, 4}
        around = ndimage.binary_dilation(label == 3) & (label != 3)
        assert set(np.unique(label[around])) <= {2}
        left, right = (np.argwhere(label == value)[:, 2].mean() for value in (2, 4))
        assert left < right


def test_nothing_folds_even_where_warps_are_as_large_as_they_may_be(scan):
    wild = Variety(warp_mm=500.0, cut=0.0, rotation_deg=0.0)
    for number in range(3):
        case = warped._draw(np.random.default_rng([2, number]), scan, wild)
        where = warped._where(case, scan, 0, case.shape_zyx[0])
        steps = [np.gradient(one) for one in where]
        jacobian = np.moveaxis(np.array(steps), (0, 1), (-2, -1))
        assert np.linalg.det(jacobian).min() > 0


def test_spacing_shape_and_field_of_view_vary_and_the_affine_follows(scan):
    cases = [warped_case(scan, 1, number) for number in range(16)]
    assert len({case.spacing_mm for case in cases}) > 6
    depths_mm = [case.image_zyx.shape[0] * case.spacing_mm[0] for case in cases]
    assert min(depths_mm) < 75
    assert max(depths_mm) > 85
    for case in cases:
        np.testing.assert_allclose(
            np.abs(np.diag(case.affine)[:3]), case.spacing_mm[::-1], rtol=1e-6
        )
        assert case.affine[2, 3] >= 30
        assert np.sign(np.diag(case.affine)).tolist() == [-1, -1, 1, 1]


def test_contrast_differs_between_cases_by_class(scan):
    cases = [warped_case(scan, 1, number, WHOLE) for number in range(8)]
    shifts = [
        np.median(c.image_zyx[c.labels_zyx["organs"] == 1])
        - np.median(c.image_zyx[c.labels_zyx["organs"] == 4])
        for c in cases
    ]
    assert np.std(shifts) > 5


def test_groups_name_classes_in_their_order_and_leave_out_the_rest(scan):
    merged = grouped(scan, {"rod": [4], "inner": [2, 3]})
    given, made = scan.labels_zyx["organs"], merged.labels_zyx["organs"]
    np.testing.assert_array_equal(made, np.select([given == 4, given == 2, given == 3], [1, 2, 2]))
    with pytest.raises(ConfigError, match=r"\[2\] are in more than one"):
        grouped(scan, {"a": [2], "b": [2, 3]})


def test_an_archive_grows_and_is_the_same_again(scan, tmp_path):
    few = write_warped_archive(tmp_path / "a", scan, 2, seed=4)
    more = write_warped_archive(tmp_path / "a", scan, 3, seed=4)
    assert few.done == {"warped-0000": "written", "warped-0001": "written"}
    assert more.done == dict.fromkeys(few.done, "reused") | {"warped-0002": "written"}
    archive = Archive.open(tmp_path / "a")
    assert [info.patient for info in load_index(archive)] == list(more.done)
    assert archive.label_names("warped-0000") == ("fast", "organs")
    case = warped_case(scan, 4, 1)
    np.testing.assert_array_equal(archive.image("warped-0001").read_all(), case.image_zyx)
    np.testing.assert_array_equal(archive.affine("warped-0001"), case.affine)
    other = Scan(scan.image_zyx + 1, scan.labels_zyx, SPACING, scan.affine)
    assert "Choose another place" in str(write_warped_archive(tmp_path / "a", other, 1).failed[0])


def test_too_small_a_scan_is_refused():
    scan = Scan(np.zeros((9, 40, 40), np.int16), {"a": np.ones((9, 40, 40), np.uint8)}, SPACING)
    with pytest.raises(ConfigError, match="Give a larger one"):
        [warped_case(scan, 0, number) for number in range(20)]


def test_files_become_a_scan_or_say_what_is_wrong(scan, tmp_path):
    for name, array in (("ct", scan.image_zyx), ("organs", scan.labels_zyx["organs"])):
        nib.save(nib.Nifti1Image(array.T, scan.affine), tmp_path / f"{name}.nii.gz")
    nib.save(nib.Nifti1Image(scan.image_zyx.T, np.eye(4)), tmp_path / "moved.nii.gz")
    ct, organs, moved = (f"{tmp_path}/{name}.nii.gz" for name in ("ct", "organs", "moved"))
    found = read_scan(ct, {"organs": organs})
    np.testing.assert_array_equal(found.image_zyx, scan.image_zyx)
    np.testing.assert_array_equal(found.labels_zyx["organs"], scan.labels_zyx["organs"])
    assert found.spacing_mm == SPACING
    with pytest.raises(InputError, match="does not lie on"):
        read_scan(ct, {"organs": moved})
    with pytest.raises(InputError, match="no such file"):
        read_scan(f"{tmp_path}/none.nii", {})
