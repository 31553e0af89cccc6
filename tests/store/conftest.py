"""Fixtures of the store's tests: every place an archive can be, and a small case."""

import numpy as np
import pytest

from tests.s3_server import s3_bucket, s3_server

__all__ = ["place", "s3_bucket", "s3_server", "small_case"]


@pytest.fixture(params=["files", pytest.param("s3", marks=pytest.mark.s3)])
def place(request, tmp_path):
    """Yield a URI, once in a folder and once in a bucket."""
    if request.param == "files":
        return str(tmp_path / "archive")
    return request.getfixturevalue("s3_bucket")


@pytest.fixture
def small_case():
    """An odd-shaped CT-like image and a label with two organs."""
    rng = np.random.default_rng(7)
    image = rng.normal(0, 200, (37, 70, 65)).astype(np.int16)
    label = np.zeros(image.shape, np.uint8)
    label[5:20, 10:40, 12:50] = 1
    label[25:30, 50:70, 40:65] = 3
    return image, label
