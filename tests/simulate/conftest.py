"""Places for archives, as the store's tests have them."""

from tests.s3_server import s3_bucket, s3_server
from tests.store.conftest import place

__all__ = ["place", "s3_bucket", "s3_server"]
