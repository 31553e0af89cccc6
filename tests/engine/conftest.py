"""One Ray for all engine tests that can share it, and this process for those that need none."""

from collections.abc import Iterator

import pytest

from raysegclean.cluster.connection import connect, shutdown_if_ours

from ..s3_server import s3_bucket, s3_server
from .scenes import chosen

__all__ = ["s3_bucket", "s3_server"]


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    facts = connect()
    yield
    shutdown_if_ours(facts)


@pytest.fixture(scope="module")
def local_executor() -> Iterator[None]:
    """For whole modules: their configs name this process, unless they say otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chosen, "executor", "local")
        yield
