"""The reference that archives are read and written with in tests: zarr-python itself."""

import zarr.storage
from obstore.store import from_url

__all__ = ["as_zarr"]


def as_zarr(store):
    """Return a zarr-python store over the same place."""
    if "://" in store.uri:
        return zarr.storage.ObjectStore(from_url(store.uri))
    return zarr.storage.LocalStore(store.uri)
