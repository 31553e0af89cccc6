"""What lies beside the data and is not taken: nothing is left out without a word.

Names alone are looked at. A pair is lost where an image and a label of one name are both there in a
form that is not read; of all else one line with counts is said.
"""

import re
from collections import Counter
from collections.abc import Iterable

__all__ = ["lost_cases", "lost_pairs", "summary"]

_VOLUME = re.compile(
    r"\.(nii|nrrd|nhdr|mha|mhd|hdr|img|mgz|mgh|gipl|dcm|ima|tiff?|npy|npz|h5|hdf5|zarr)"
    r"(\.(gz|bz2|xz|zst|zip))?$",
    re.IGNORECASE,
)
"""Endings of files that hold voxels."""
_ZARR = re.compile(r"^(.+?)(\.ome)?\.zarr(\.zip|\.tar|\.tgz|\.tar\.gz)?$", re.IGNORECASE)
_SHOWN = 3


def lost_pairs(images: Iterable[str], labels: Iterable[str]) -> dict[str, str]:
    """Return the ids of pairs among files that were not taken, each with the image's key."""
    mine, other = (
        {_stem(key): key for key in keys if _VOLUME.search(key)} for keys in (images, labels)
    )
    return {stem: mine[stem] for stem in sorted(mine.keys() & other.keys())}


def lost_cases(names: Iterable[str], cases: Iterable[str]) -> dict[str, str]:
    """Return id -> name of what is a case by another name; `cases` are the ids of those taken."""
    taken = set(cases)
    found = {match[1]: name for name in sorted(names) if (match := _ZARR.match(name))}
    return {case: name for case, name in found.items() if case not in taken}


def summary(where: str, keys: Iterable[str]) -> str:
    """Return one line that counts what was not taken, by ending and folder; empty for nothing."""
    left = sorted(keys)
    if not left:
        return ""
    counts = Counter(_kind(key) for key in left)
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    shown = ", ".join(left[:_SHOWN]) + (" ..." if len(left) > _SHOWN else "")
    return f"{where}: not taken are {kinds} ({shown})"


def _kind(key: str) -> str:
    folder, divider, _ = key.rpartition("/")
    if divider:
        return f"in the folder {folder.partition('/')[0]}/"
    match = _VOLUME.search(key) or re.search(r"\.[^.]+$", key)
    return match[0] if match else "without an ending"


def _stem(key: str) -> str:
    return re.sub(r"\.seg$", "", _VOLUME.sub("", key))
