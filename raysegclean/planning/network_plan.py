"""Which network the voters are, what it trains on at once, and how its windows are laid.

All of it is decided before anything is computed, from the config, the index and the network itself:
a network that users bring is imported, built and tried on small windows here, so that what is wrong
with it is said at once and not on a worker.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median_high

import torch

from raysegclean.config.settings import Config
from raysegclean.errors import ConfigError, InputError, MissingObject
from raysegclean.evidence.cases import CaseImage, CaseInfo
from raysegclean.methods.base import Voters
from raysegclean.nets.inference import Tiling, padded_shape
from raysegclean.nets.memory import bytes_per_voxel
from raysegclean.nets.networks import (
    UNET,
    build_network,
    check_network,
    has_dropout,
    is_shipped,
)
from raysegclean.nets.receptive import Geometry, geometry_of, seam_error
from raysegclean.nets.torchscript import Script, inspect_script
from raysegclean.nets.unet import NetworkSpec
from raysegclean.nets.views import halo_of_views, resolve_views
from raysegclean.planning.capacity import (
    Capacity,
    fitted,
    patch_vox,
    plan_capacity,
    planned_preset,
)
from raysegclean.planning.spacing import plan_spacing
from raysegclean.planning.tiles import SUMS_BYTES, Windows
from raysegclean.store.objects import Store
from raysegclean.voxels.geometry import Box, Index3, triple
from raysegclean.voxels.resampling import Spacing, WorkingGrid

__all__ = [
    "NetworkPlan",
    "check_features",
    "network_notes",
    "plan_network",
    "read_script",
    "seam_error_of",
]

WINDOW_VOX_CPU = 3_000_000
WINDOW_VOX_GPU = 24_000_000
WINDOW_BYTES_CPU = 4 << 30
WINDOW_BYTES_GPU = 10 << 30
"""What one worker may take for a window; the device is not known yet, and small ones have 16 GB."""
AVERAGED_HALO = 4
"""Part of an averaged window's edge, on each side, that it shares with its neighbour."""


@dataclass(frozen=True, kw_only=True)
class NetworkPlan:
    """One network with nothing left open; lengths in voxels of the working grid."""

    network: NetworkSpec
    voters: Voters
    """With their views by name."""
    flips: tuple[int, ...]
    """Axes (0 z, 1 y, 2 x) along which patches are flipped."""
    patch_zyx: Index3
    batch: int = 4
    """Patches a step."""
    lr: float = 1e-2
    """Full learning rate that goes with the network's size."""
    deep_supervision: bool = False
    """Whether coarser levels of the network learn labels, too."""
    tile_zyx: Index3
    halo_vox: Index3
    stride_zyx: Index3 = (1, 1, 1)
    """Windows lie on multiples of this."""
    averaged: bool = False
    """Whether the network's answer depends on the window, so that overlapping ones are averaged."""
    tile_counts: bool = True
    """Whether the answer depends on the tile: windows are averaged, or halos shorter than the
    network sees. Plans that older versions froze do not say."""
    window_bytes_per_vox: float = 0.0
    """Memory that predicting takes, per voxel of a window (fp32)."""
    window_zyx: Index3 | None = None
    """The only size of window that the network reads (nnU-Net); None where others do."""
    spacing_mm: Spacing | None = None
    """Working spacing (z, y, x), 0 along an axis that stays native; None for native cases. Plans
    that older versions froze do not say, and are native."""

    def working_grid(self, case: CaseImage) -> WorkingGrid:
        """Return the grid on which networks see a case."""
        return WorkingGrid.of(case.shape_zyx, case.spacing_mm, self.spacing_mm)


def plan_network(
    config: Config,
    infos: Sequence[CaseInfo],
    classes: int,
    voters: Voters,
    *,
    gpu: bool,
    lent: NetworkPlan | None = None,
) -> NetworkPlan:
    """Return the network of the voters, which may be `lent`, that of an earlier run.

    Raises ConfigError for a network that cannot be loaded, or does not do what the method asks.
    """
    trains_on_gpu, votes_on_gpu = (
        gpu and wanted.gpus != 0 for wanted in (config.resources.train, config.resources.relabel)
    )
    spacing = _spacing(config, infos, gpu=trains_on_gpu) if lent is None else lent.spacing_mm
    shard = _shard(infos, spacing, config.relabel.shard_vox)
    infos = [_as_seen(info, spacing) for info in infos]
    capacity = _capacity(config, infos, voters, gpu=trains_on_gpu)
    if lent is not None:
        spec = _lent(config, voters, lent.network)
    else:
        spec = _spec(config, infos, classes, voters, capacity)
    if spec.script:
        geometry, bytes_per_vox = inspect_script(
            read_script(config), spec.in_channels, classes, _stride(config)
        )
        spec = replace(spec, widths=(1, 1), strides=(geometry.stride_zyx,))
    else:
        check_network(spec)
        geometry, bytes_per_vox = geometry_of(spec), bytes_per_voxel(spec)
    _check_dropout(spec, voters)
    stride, averaged = geometry.stride_zyx, geometry.radius_vox is None
    trained = tuple("zyx".index(axis) for axis in config.train.flips)
    flips = trained if lent is None else lent.flips
    views = resolve_views(voters.views, flips, (*spec.strides, stride))
    voters = replace(voters, views=views)
    patch = _patch(config, infos, stride, capacity) if lent is None else lent.patch_zyx
    budget_vox = _window_vox(bytes_per_vox + SUMS_BYTES * classes, gpu=votes_on_gpu)
    most = fitted(_largest_shape(infos), budget_vox, stride)
    # What a script was trained on is not known: then the more it sees at once, the better.
    usual = most if spec.script else patch
    halo = halo_of_views(_halo(config, geometry, usual), voters.views)
    windows = Windows(spec, stride, halo, _largest_shape(infos), bytes_per_vox)
    budget_bytes = WINDOW_BYTES_GPU if votes_on_gpu else WINDOW_BYTES_CPU
    if averaged:
        tile = _averaged_tile(config, usual, halo, stride)
    elif config.relabel.tile_zyx != "auto":
        tile = padded_shape(config.relabel.tile_zyx, stride)
    else:
        tile = windows.tile(shard, budget_bytes)
    return NetworkPlan(
        network=spec,
        voters=voters,
        flips=flips,
        stride_zyx=stride,
        patch_zyx=patch,
        batch=capacity.batch if lent is None else lent.batch,
        lr=capacity.lr if lent is None else lent.lr,
        deep_supervision=capacity.deep_supervision and spec.name == UNET and not spec.finished,
        tile_zyx=tile,
        halo_vox=halo,
        averaged=averaged,
        tile_counts=_tile_counts(halo, geometry, voters),
        window_bytes_per_vox=bytes_per_vox,
        spacing_mm=spacing,
    )


def read_script(config: Config) -> Script:
    """Return the TorchScript file that the config names; InputError when it cannot be read."""
    assert config.network.torchscript is not None
    folder, _, name = config.network.torchscript.rpartition("/")
    try:
        return Script.of(Store.open(folder or ".").get(name))
    except MissingObject as error:
        raise InputError(
            f"network.torchscript: {config.network.torchscript} is not there. Give the path or URI "
            "of a file that torch.jit.save wrote."
        ) from error


def seam_error_of(config: Config, network: NetworkSpec, tiling: Tiling) -> float | None:
    """Return how far neighbouring windows differ in probability, on noise; 0 where they do not.

    A network that is yet to be trained has fresh weights here; the run measures the trained ones.
    None for one of nnU-Net, which is only measured in the run: its windows take minutes on a CPU.
    """
    if not tiling.averaged:
        return 0.0
    if network.nnunet:
        return None
    net = read_script(config).load() if network.script else build_network(network).eval()
    window = triple(t + 2 * h for t, h in zip(tiling.tile_zyx, tiling.halo_vox, strict=True))
    window = padded_shape(window, tiling.stride_zyx)
    return seam_error(net, network.in_channels, window, tiling.tile_zyx)


def network_notes(network: NetworkSpec, *, averaged: bool) -> tuple[str, ...]:
    """Return what must be known of a network to judge a result, in sentences."""
    notes = []
    if network.finished:
        what = "a TorchScript file" if network.script else "a finished nnU-Net"
        notes.append(
            f"The voter is {what}: it may have been trained on the cases that it "
            "judges, and then it agrees with wrong labels too."
        )
    if averaged:
        what = "The TorchScript file" if network.script else f"The network {network.name}"
        notes.append(
            f"{what} looks at its whole window, so its answer depends on how windows are laid; "
            "overlapping windows were averaged."
        )
    return tuple(notes)


def _spacing(config: Config, infos: Sequence[CaseInfo], *, gpu: bool) -> Spacing | None:
    """Return the working spacing; what a TorchScript file was trained at is not known."""
    wanted = config.network
    if wanted.spacing_mm is None or (wanted.spacing_mm == "auto" and wanted.torchscript):
        return None
    if wanted.spacing_mm != "auto":
        z, y, x = wanted.spacing_mm
        return (0.0 if wanted.dims == 2 else z, y, x)
    return plan_spacing(infos, patch_vox(gpu=gpu), dims=wanted.dims)


def _as_seen(info: CaseInfo, spacing_mm: Spacing | None) -> CaseInfo:
    """Return a case as networks see it: shape and spacing of the working grid."""
    grid = WorkingGrid.of(info.shape_zyx, info.spacing_mm, spacing_mm)
    return replace(info, shape_zyx=grid.shape_zyx, spacing_mm=grid.seen_mm)


def _capacity(config: Config, infos: Sequence[CaseInfo], voters: Voters, *, gpu: bool) -> Capacity:
    """Return the planned size of the network; what the config gives wins over the preset."""
    wanted, train = config.network, config.train
    ships = wanted.name == UNET and not voters.network
    spacing, shape = _median_spacing(infos), _median_shape(infos)
    levels = len(wanted.strides) + 1 if wanted.strides != "auto" else None
    found = plan_capacity(
        planned_preset(shape, gpu=gpu, ships=ships) if wanted.preset == "auto" else wanted.preset,
        spacing,
        shape,
        gpu=gpu,
        dims=wanted.dims,
        patch_zyx=None if train.patch_zyx == "auto" else train.patch_zyx,
        levels=levels if wanted.widths == "auto" else len(wanted.widths),
    )
    return replace(
        found,
        widths=found.widths if wanted.widths == "auto" else wanted.widths,
        strides=found.strides if wanted.strides == "auto" else wanted.strides,
        batch=found.batch if train.batch == "auto" else train.batch,
    )


def _spec(
    config: Config, infos: Sequence[CaseInfo], classes: int, voters: Voters, capacity: Capacity
) -> NetworkSpec:
    wanted = config.network
    if voters.network and wanted.torchscript is not None:
        raise ConfigError(
            f"network.torchscript: the method {config.method} brings its own network, "
            f"{voters.network}, and trains it. Use another method, or drop network.torchscript."
        )
    if wanted.torchscript is not None:
        digest, channels = read_script(config).digest, infos[0].channels
        return NetworkSpec(3, channels, classes, (1,), (), 0.0, script=digest)
    return NetworkSpec(
        dims=wanted.dims,
        in_channels=infos[0].channels,
        classes=classes,
        widths=capacity.widths,
        strides=capacity.strides,
        residual=capacity.residual,
        dropout=wanted.dropout,
        name=voters.network or wanted.name,
    )


def _lent(config: Config, voters: Voters, lent: NetworkSpec) -> NetworkSpec:
    """Refuse what the lender's folder alone names: it would be imported, or run."""
    if lent.script:
        raise ConfigError(
            f"models: {config.models} lends a TorchScript file, which is code. Name the file "
            "itself as network.torchscript, without `models`."
        )
    if lent.nnunet:
        raise ConfigError(
            f"models: {config.models} lends networks of nnU-Net. Name their folder as "
            "network.nnunet, without `models`."
        )
    named = voters.network or config.network.name
    if lent.name != named and not (is_shipped(lent.name) and not voters.network):
        raise ConfigError(
            f"models: {config.models} lends networks {lent.name!r}, expected {named!r}. Set "
            f"network.name: {lent.name} if you trust that module, or train."
        )
    return lent


def _stride(config: Config) -> Index3 | None:
    strides = config.network.strides
    if strides == "auto":
        return None
    return triple(math.prod(stride[axis] for stride in strides) for axis in range(3))


def _check_dropout(spec: NetworkSpec, voters: Voters) -> None:
    if not voters.passes:
        return
    if spec.script or not has_dropout(build_network(spec)):
        what = "a TorchScript file" if spec.script else f"the network {spec.name}"
        raise ConfigError(
            f"method: dropout voters need dropout that can be keyed, and {what} with dropout "
            f"{spec.dropout} has none. Set network.dropout above 0 (a network of your own needs "
            "ChannelDropout layers from raysegclean.nets.dropout), or use ensemble voters."
        )


def check_features(config: Config, spec: NetworkSpec, *, averaged: bool) -> None:
    """Raise ConfigError unless the network shows what its last layer reads, voxel by voxel."""
    if spec.script:
        lacks = f"the TorchScript file {config.network.torchscript} does not show them"
    elif averaged:
        lacks = f"the network {spec.name} looks at its whole window, so a voxel has none of its own"
    elif not isinstance(getattr(build_network(spec), "head", None), torch.nn.Module):
        lacks = f"the network {spec.name} has no layer `head`"
    else:
        return
    raise ConfigError(
        f"method: {config.method} compares the features that the last layer reads, and {lacks}. "
        "Use network.name: unet, or a network without instance norm or attention whose last "
        "1x1x1 layer is named `head`; or use another method."
    )


def _halo(config: Config, geometry: Geometry, window_zyx: Index3) -> Index3:
    wanted = config.relabel.halo
    if wanted != "auto":
        return (wanted, wanted, wanted) if isinstance(wanted, int) else wanted
    if geometry.radius_vox is not None:
        return geometry.radius_vox
    return triple(n // AVERAGED_HALO for n in window_zyx)


def _tile_counts(halo: Index3, geometry: Geometry, voters: Voters) -> bool:
    """Tell whether the answer depends on the tile: the halo is shorter than a voter sees."""
    if geometry.radius_vox is None:
        return True
    seen = halo_of_views(geometry.radius_vox, voters.views)
    return any(have < needed for have, needed in zip(halo, seen, strict=True))


def _averaged_tile(config: Config, window: Index3, halo: Index3, stride: Index3) -> Index3:
    """Return the step between windows, which are of the size that the network was trained on."""
    if config.relabel.tile_zyx != "auto":
        return padded_shape(config.relabel.tile_zyx, stride)
    return triple(
        max((n - 2 * h) // s * s, s) for n, h, s in zip(window, halo, stride, strict=True)
    )


def _patch(config: Config, infos: Sequence[CaseInfo], stride: Index3, capacity: Capacity) -> Index3:
    """Return the typical case, shrunk evenly to the budget, in multiples of the total stride."""
    if config.train.patch_zyx != "auto":
        return padded_shape(config.train.patch_zyx, stride)
    return fitted(_median_shape(infos), capacity.patch_vox, stride)


def _shard(infos: Sequence[CaseInfo], spacing_mm: Spacing | None, shard_vox: int) -> Index3:
    """Return the working voxels that the largest shard needs to be answered for, axis by axis."""
    found = set()
    for shape, size in {(info.shape_zyx, info.spacing_mm) for info in infos}:
        native = Box.whole(triple(min(shard_vox, n) for n in shape))
        found.add(WorkingGrid.of(shape, size, spacing_mm).needed_working(native).shape_zyx)
    return triple(map(max, zip(*found, strict=True)))


def _window_vox(bytes_per_vox: float, *, gpu: bool) -> int:
    """Return the voxels of the largest window that a worker has memory for."""
    most, budget = (WINDOW_VOX_GPU, WINDOW_BYTES_GPU) if gpu else (WINDOW_VOX_CPU, WINDOW_BYTES_CPU)
    return min(most, int(budget / bytes_per_vox))


def _median_shape(infos: Sequence[CaseInfo]) -> Index3:
    """Return edges that cases have: no mean of two of them, which no case need have."""
    return triple(map(median_high, zip(*(info.shape_zyx for info in infos), strict=True)))


def _median_spacing(infos: Sequence[CaseInfo]) -> tuple[float, float, float]:
    return triple(map(median_high, zip(*(info.spacing_mm for info in infos), strict=True)))


def _largest_shape(infos: Sequence[CaseInfo]) -> Index3:
    return triple(map(max, zip(*(info.shape_zyx for info in infos), strict=True)))
