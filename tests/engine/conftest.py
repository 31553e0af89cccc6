"""One Ray for all engine tests that can share it."""

from collections.abc import Iterator

import pytest

from raysegclean.cluster.connection import connect, shutdown_if_ours

from ..s3_server import s3_bucket, s3_server

__all__ = ["s3_bucket", "s3_server"]


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    facts = connect()
    yield
    shutdown_if_ours(facts)
