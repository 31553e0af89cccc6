"""raysegclean cleans the segmentation labels of large CT archives, distributed on Ray."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("raysegclean")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
