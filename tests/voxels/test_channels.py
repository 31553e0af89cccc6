"""Label values and channels, whatever the values are."""

import numpy as np
import pytest

from raysegclean.voxels.channels import IGNORE, channels_of


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "int64", "uint64"])
def test_every_integer_type_gives_the_same_channels(dtype):
    label = np.array([[[0, 7, 3, 9]]]).astype(dtype)
    assert channels_of(label, (0, 3, 7)).tolist() == [[[0, 2, 1, IGNORE]]]


def test_neighbouring_ids_that_no_float_can_tell_apart_stay_apart():
    ids = (0, 614454277, 2**53 + 1, 2**53 + 2, 2**63 + 5, 2**64 - 1)
    label = np.array([[ids]], np.uint64)
    assert channels_of(label, ids).ravel().tolist() == [0, 1, 2, 3, 4, 5]
    assert channels_of(label, (0, 2**53)).ravel().tolist() == [0] + 5 * [IGNORE]
