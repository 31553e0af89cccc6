"""What a label must be to be one of its image."""

import numpy as np
import pytest

from raysegclean.errors import CaseError
from raysegclean.store.fit import as_label


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (np.array([[[0, 3]]], np.int64), "uint8"),
        (np.array([[[0, 300]]], np.int16), "uint16"),
        (np.array([[[0, 1]]], np.uint32), "uint32"),
        (np.array([[[0.0, 70000.0]]]), "uint32"),
        (np.array([[[True, False]]]), "uint8"),
    ],
)
def test_labels_become_the_smallest_unsigned_integers(values, dtype):
    assert str(as_label("c", "l", values, values.shape).dtype) == dtype


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (np.array([[[0.5, 1]]]), "no whole numbers"),
        (np.array([[[np.nan, 1]]]), "holds NaN in 1 voxels, .* Set them to 0"),
        (np.array([[[-1, 1]]]), "holds -1"),
        (np.array([[[np.inf, 1]]]), r"holds inf, expected whole numbers below 2\^53"),
        (np.array([[[-np.inf, 1]]]), "holds -inf"),
        (np.array([[[2.0**53, 1]]]), r"below 2\^53"),
        (np.zeros((2, 2, 2), np.uint8), r"has \(2, 2, 2\) voxels"),
        (np.zeros((3, 1, 1, 2), np.uint8), "has 3 channels .* save their argmax"),
    ],
)
def test_what_is_no_label_is_refused_with_case_and_reason(values, text):
    with pytest.raises(CaseError, match=f"case c: .*{text}"):
        as_label("c", "l", values, (1, 1, 2))


@pytest.mark.parametrize(("stored", "scale"), [(np.uint16, 3.06e-5), (np.uint8, 2 / 255)])
def test_what_a_headers_scale_has_blurred_is_rounded(stored, scale):
    whole = np.array([[[0, 1, 2]]])
    blurred = np.rint(whole / scale).astype(stored).astype(np.float32) * np.float32(scale)
    assert not np.array_equal(blurred, whole)
    assert np.array_equal(as_label("c", "l", blurred, (1, 1, 3), scale), whole)
    with pytest.raises(CaseError, match="probability map"):
        as_label("c", "l", blurred, (1, 1, 3))


def test_what_a_headers_scale_has_spoilt_is_refused_with_that_cause():
    with pytest.raises(CaseError, match=r"scales what is stored by 1\.2 .*Save it again as int"):
        as_label("c", "l", np.array([[[0, 1.2]]], np.float32), (1, 1, 2), 1.2)
