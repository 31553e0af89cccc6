"""How large a network is and what it trains on at once, from the data and the device.

As nnU-Net plans (Isensee et al. 2021): a patch as large as the budget, levels until the deepest
sees a few voxels of it, widths that double. Tried once each. On warped CTs a network like `base`
learnt 10 of 16 organs in 1,490 CPU seconds with 200,000 voxels a patch, at 6 mm, and 14 in 410 with
64,000, at 8 mm; three levels at 3 mm learnt 5. On hippocampi, which fit into one patch, `small`
reached an out-of-fold Dice of .80 in 135 s, `base` .64.

Pure: shapes in, numbers out. Lengths are voxels of the grid that networks see.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

from raysegclean.nets.inference import padded_shape
from raysegclean.nets.unet import plan_strides
from raysegclean.voxels.geometry import Index3, triple

__all__ = [
    "PATCH_VOX_CPU",
    "PATCH_VOX_GPU",
    "Capacity",
    "Preset",
    "fitted",
    "patch_vox",
    "plan_capacity",
    "planned_preset",
]

Preset = Literal["small", "base", "large"]

PATCH_VOX_CPU = 1 << 16
PATCH_VOX_GPU = 2_000_000
DEEPEST_VOX = 6
"""No level is added that would leave no edge of a patch as long as this."""


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """The size of a network, and of what it sees at once.

    residual: whether levels of the encoder add to what they read. deep_supervision: whether coarser
    levels of the decoder learn labels, too. patch_vox: at most so many voxels
    a patch. batch: patches a step. lr: full learning rate.
    """

    widths: tuple[int, ...]
    strides: tuple[Index3, ...] = ()
    residual: bool = False
    deep_supervision: bool = False
    patch_vox: int = PATCH_VOX_CPU
    batch: int
    lr: float


_PRESETS: dict[Preset, Capacity] = {
    "small": Capacity(widths=(8, 16, 32), batch=4, lr=1e-2),
    "base": Capacity(widths=(16, 32, 64, 128), batch=2, lr=3e-3),
    "large": Capacity(
        widths=(32, 64, 128, 256), residual=True, deep_supervision=True, batch=2, lr=3e-3
    ),
}


def patch_vox(*, gpu: bool) -> int:
    """Return how many voxels a patch may have at most."""
    return PATCH_VOX_GPU if gpu else PATCH_VOX_CPU


def plan_capacity(
    preset: Preset,
    spacing_mm: tuple[float, float, float],
    shape_zyx: Index3,
    *,
    gpu: bool,
    dims: int = 3,
    patch_zyx: Index3 | None = None,
    levels: int | None = None,
) -> Capacity:
    """Return the capacity of `preset` for typical cases of this spacing and shape.

    With `patch_zyx` or `levels` given, the rest follows from them. A preset has as many levels as
    the patch can feed, at most as many as it has widths.
    """
    whole = _PRESETS[preset]
    most_vox = patch_vox(gpu=gpu)
    seen = patch_zyx or fitted(shape_zyx, most_vox, (1, 1, 1))
    strides = plan_strides(spacing_mm, seen, levels or len(whole.widths), dims=dims)
    if levels is None and preset != "small":
        strides = strides[: _levels(seen, strides) - 1]
    widths = _widened(whole.widths, len(strides) + 1)
    return replace(whole, widths=widths, strides=strides, patch_vox=most_vox)


def planned_preset(shape_zyx: Index3, *, gpu: bool, ships: bool) -> Preset:
    """Return what `network.preset: auto` stands for; `ships` says that it is the default network.

    On a CPU that is `small` where its patch holds the typical case whole, `base` where context has
    to come from depth. Other networks mean other things by widths, and keep `small`.
    """
    whole = math.prod(shape_zyx) <= PATCH_VOX_CPU
    return "small" if not ships or (whole and not gpu) else "base"


def _levels(seen_zyx: Index3, strides: tuple[Index3, ...]) -> int:
    """Return how many levels the patch feeds."""
    edges = list(seen_zyx)
    for level, stride in enumerate(strides):
        edges = [-(-n // s) for n, s in zip(edges, stride, strict=True)]
        halved = [n for n, s in zip(edges, stride, strict=True) if s > 1]
        if max(halved, default=0) < DEEPEST_VOX:
            return level + 1
    return len(strides) + 1


def _widened(widths: tuple[int, ...], levels: int) -> tuple[int, ...]:
    """Return `levels` widths: the last is repeated where there are more."""
    return widths[:levels] + widths[-1:] * (levels - len(widths))


def fitted(shape_zyx: Index3, budget_vox: int, stride: Index3) -> Index3:
    """Return the shape rounded up to the stride, its longest edges shrunk until it fits."""
    edges = list(padded_shape(shape_zyx, stride))
    while math.prod(edges) > budget_vox:
        axis = max(range(3), key=lambda a: edges[a] / stride[a])
        smaller = -(-max(1, int(edges[axis] * 0.8)) // stride[axis]) * stride[axis]
        if smaller == edges[axis]:
            smaller -= stride[axis]
        if smaller < stride[axis]:
            break
        edges[axis] = smaller
    return triple(edges)
