"""Test-time views: the same image seen flipped, turned or in another light, as further passes.

A view is a change of the window that the network reads and its reverse, which brings the answer
back into the original orientation. Where the views disagree, the label is not in the image as this
network sees it.

A view of the whole volume is defined on the padded volume (inference.py): turn it, predict, turn
back. A window begins and ends at multiples of the stride and so does what is left beside it, so a
turned window lies on the lattice of the turned volume, and its borders that are true ones stay so.
Hence tiles equal the whole volume in every view, as they do in the plain pass.

Not guaranteed: that a network gives a good answer in a view. Left against right carries the label
in most anatomy; flip only along axes that the network was trained to be flipped along. Intensity
views move by a tenth of the deviation of normalised intensities, about the differences between
scanners, and suit every archive.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from raysegclean.errors import ConfigError
from raysegclean.nets.voters import Voter
from raysegclean.voxels.geometry import Box, Index3, triple

__all__ = ["ViewsVoter", "halo_of_views", "parse_views", "resolve_views"]

Change = Callable[[Tensor], Tensor]
Place = Callable[[Box, Index3], Box]
"""Where a box of a window of this shape lies in the view."""

TRAINED_FLIPS = "flips"
"""Stands for a flip along each axis that the network was trained to be flipped along."""

_SHIFT = 0.1
_GAIN = 1.1


def _flip(axis: int) -> tuple[Change, Change, Place]:
    def place(box: Box, shape: Index3) -> Box:
        start, stop = list(box.start_zyx), list(box.stop_zyx)
        start[axis], stop[axis] = shape[axis] - stop[axis], shape[axis] - start[axis]
        return Box.of(start, stop)

    return lambda image: image.flip(axis), lambda prob: prob.flip(axis), place


def _quarters(count: int) -> tuple[Change, Change, Place]:
    """Return the turn by quarters in the y-x plane, and the turn back."""

    def place(box: Box, shape: Index3) -> Box:
        for _ in range(count):
            (z0, y0, x0), (z1, y1, x1), (depth, height, width) = box.start_zyx, box.stop_zyx, shape
            box = Box((z0, width - x1, y0), (z1, width - x0, y1))
            shape = (depth, width, height)
        return box

    return (
        lambda image: torch.rot90(image, count, (-2, -1)),
        lambda prob: torch.rot90(prob, -count, (-2, -1)),
        place,
    )


def _light(gain: float, shift: float) -> tuple[Change, Change, Place]:
    return lambda image: gain * image + shift, lambda prob: prob, lambda box, _: box


_CHANGES: Mapping[str, tuple[Change, Change, Place]] = {
    "flip_z": _flip(-3),
    "flip_y": _flip(-2),
    "flip_x": _flip(-1),
    "rot90": _quarters(1),
    "rot180": _quarters(2),
    "rot270": _quarters(3),
    "brighter": _light(1.0, _SHIFT),
    "darker": _light(1.0, -_SHIFT),
    "contrast": _light(_GAIN, 0.0),
}
_SWAPPING = frozenset({"rot90", "rot270"})

VIEWS = tuple(_CHANGES)
"""Names of all views."""


class ViewsVoter:
    """A voter asked about the plain window, and then about each view of it."""

    def __init__(self, member: Voter, views: Sequence[str]) -> None:
        """Raise ConfigError for an unknown view, or one that does not fit the member's stride."""
        resolve_views(views, (), (member.stride_zyx,))
        self.name = f"{member.name} in {1 + len(views)} views"
        self.member = member
        self.views = tuple(views)
        self.n_passes = member.n_passes * (1 + len(self.views))
        self.stride_zyx = member.stride_zyx

    @property
    def halo_vox(self) -> Index3:
        """How far the member looks, along y as far as along x where a view swaps them."""
        return halo_of_views(self.member.halo_vox, self.views)

    @property
    def head(self) -> nn.Module | None:
        """The last layer of the member's network, which reads the plain window first."""
        return getattr(self.member, "head", None)

    def passes(self, window_czyx: Tensor, core: Box | None = None) -> Iterator[Tensor]:
        """Yield the member's passes of the plain window, then those of each view."""
        yield from self.member.passes(window_czyx, core)
        for view in self.views:
            there, back, place = _CHANGES[view]
            part = core and place(core, triple(window_czyx.shape[1:]))
            # Networks of users may ask for contiguous memory, as `view` does.
            for prob_kzyx in self.member.passes(there(window_czyx).contiguous(), part):
                yield back(prob_kzyx)


def halo_of_views(halo_vox: Index3, views: Collection[str]) -> Index3:
    """Return the halo (z, y, x) that `views` need of a network that needs `halo_vox`."""
    z, y, x = halo_vox
    return (z, y, x) if _SWAPPING.isdisjoint(views) else (z, max(y, x), max(y, x))


def parse_views(text: str) -> tuple[str, ...]:
    """Return the views that a text names, separated by spaces.

    Raises ConfigError for unknown or repeated names.

    >>> parse_views("flips brighter")
    ('flips', 'brighter')
    """
    views = tuple(text.split())
    known = (TRAINED_FLIPS, *VIEWS)
    unknown = [view for view in views if view not in known]
    if unknown or len(set(views)) < len(views):
        wrong = f"{unknown[0]!r} is no view" if unknown else "a view is named twice"
        raise ConfigError(
            f"params.views: {wrong} in {text!r}. Expected names out of {', '.join(known)}, "
            "separated by spaces."
        )
    return views


def resolve_views(
    views: Sequence[str], flip_axes: Collection[int], strides: Collection[Index3]
) -> tuple[str, ...]:
    """Return `views` with `flips` replaced by flips along `flip_axes` (0 z, 1 y, 2 x).

    `strides` are those between the network's levels. Raises ConfigError for an unknown view, and
    for a quarter turn of a network that steps differently along y and x.
    """
    trained = [f"flip_{'zyx'[axis]}" for axis in sorted(flip_axes)]
    named = [v for view in views for v in (trained if view == TRAINED_FLIPS else [view])]
    found = parse_views(" ".join(dict.fromkeys(named)))
    if views and not found:
        raise ConfigError(
            "params.views: `flips` alone stands for the axes of train.flips, which names none. "
            "Name another view, or set train.flips to the axes along which the network may flip."
        )
    uneven = [stride for stride in strides if stride[1] != stride[2]]
    swapping = _SWAPPING.intersection(found)
    if swapping and uneven:
        raise ConfigError(
            f"params.views: {min(swapping)} turns y into x, and the network steps by {uneven[0]} "
            "(z, y, x). Set network.strides with equal y and x, or leave rot90 and rot270 out."
        )
    return found
