"""A results folder of nnU-Net v2 as voters: what it says is read, checked, and brought to a plan.

The folder holds `plans.json`, `dataset.json` and `fold_*/checkpoint_final.pth`. Spacing,
normalisation, window and network are its own; its classes are joined to the archive's by name.
Everything that does not fit is refused here, before anything is computed. Every fold votes.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from raysegclean.config.settings import Config
from raysegclean.errors import ConfigError, InputError, MissingObject
from raysegclean.evidence.cases import CaseInfo
from raysegclean.methods.base import Voters
from raysegclean.nets.networks import build_network
from raysegclean.nets.nnunet import (
    Architecture,
    check_weights,
    read_checkpoint,
    window_bytes_per_voxel,
)
from raysegclean.nets.normalise import Normaliser
from raysegclean.nets.unet import NetworkSpec
from raysegclean.nets.views import resolve_views
from raysegclean.nets.weights import save_network
from raysegclean.planning.network_plan import AVERAGED_HALO, NetworkPlan
from raysegclean.store.objects import ObjectInfo, Store
from raysegclean.voxels.geometry import Index3, triple
from raysegclean.voxels.resampling import Spacing

__all__ = ["NnunetFolder", "adopted", "plan_nnunet", "read_nnunet"]

_WHAT = "network.nnunet"
_CHECKPOINT = "checkpoint_final.pth"


@dataclass(frozen=True, kw_only=True)
class NnunetFolder:
    """A results folder, read and checked; lengths in the archive's axes."""

    folds: tuple[str, ...]
    digests: tuple[str, ...]
    """SHA-256 of each fold's checkpoint."""
    name: str
    settings: Mapping[str, Any]
    """Class and arguments of the network."""
    axes: Index3
    """The archive's axis that each axis of the network is."""
    labels: Mapping[str, int]
    """Name -> output of the network, background included."""
    window_zyx: Index3
    spacing_mm: Spacing
    """0 along an axis that stays native."""
    normaliser: Normaliser

    def spec(
        self, classes: Sequence[int], names: Mapping[int, str], wanted: Mapping[str, int]
    ) -> NetworkSpec:
        """Return the network that answers for `classes`, the archive's values with background.

        names: what the values are called. wanted: name of the network -> value, which wins over
        equal names. Outputs that belong to no value are background. Raises ConfigError when the
        network cannot tell one of the values.
        """
        outputs = self._joined(classes, names, wanted)
        return Architecture(
            name=self.name,
            settings=self.settings,
            outputs=len(self.labels),
            classes=tuple(outputs[value] for value in classes),
            axes=self.axes,
            digests=self.digests,
        ).spec()

    def _joined(
        self, classes: Sequence[int], names: Mapping[int, str], wanted: Mapping[str, int]
    ) -> dict[int, tuple[int, ...]]:
        strange = sorted(set(wanted) - set(self.labels))
        if strange:
            raise ConfigError(
                f"network.classes: dataset.json has no label {', '.join(strange)}; it has "
                f"{_listed(self.labels)}."
            )
        values = {_plain(name): value for value, name in names.items()}
        found: dict[int, list[int]] = {value: [] for value in classes}
        for name, output in sorted(self.labels.items(), key=lambda item: item[1]):
            value = wanted.get(name, values.get(_plain(name), 0)) if output else 0
            found[value if value in found else 0].append(output)
        lacking = {value: names.get(value, "") for value, group in found.items() if not group}
        if lacking:
            told = ", ".join(f"{value} {name}".strip() for value, name in lacking.items())
            raise ConfigError(
                f"{_WHAT}: no label of dataset.json is joined to the archive's {told}. The "
                f"network has {_listed(self.labels)}. Say which is which: "
                f"network.classes: {{NAME: {min(lacking)}}}, or name the archive's values in "
                "classes."
            )
        return {value: tuple(group) for value, group in found.items()}


def _plain(name: str) -> str:
    """Return a name without what spellings differ in: case, spaces, hyphens."""
    return re.sub(r"[\s_-]+", "_", name.strip().casefold())


def _listed(labels: Mapping[str, int]) -> str:
    return ", ".join(name for name, output in labels.items() if output)


def read_nnunet(config: Config) -> NnunetFolder:
    """Return the folder that the config names; InputError or ConfigError when it cannot vote."""
    assert config.network.nnunet is not None
    store = Store.open(config.network.nnunet)
    plans, dataset = (_document(store, name) for name in ("plans.json", "dataset.json"))
    found = _checkpoints(store)
    configurations = sorted({one.configuration for one in found.values()})
    if len(configurations) > 1:
        raise ConfigError(
            f"{_WHAT}: the folds of {store.uri} were trained in different configurations, "
            f"{', '.join(configurations)}. Give a folder of one training."
        )
    try:
        folder = _folder(plans, dataset, configurations[0], tuple(found))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(
            f"{_WHAT}: plans.json or dataset.json of {store.uri} is not as nnU-Net v2 writes it "
            f"({type(error).__name__}: {error})."
        ) from error
    return replace(folder, digests=tuple(one.digest for one in found.values()))


def _document(store: Store, name: str) -> Any:
    try:
        return store.get_json(name)
    except MissingObject as error:
        raise InputError(
            f"{_WHAT}: {store.uri} has no {name}. Give the folder that nnU-Net v2 trained into, "
            "as nnUNet_results/Dataset.../nnUNetTrainer__nnUNetPlans__3d_fullres."
        ) from error


@dataclass(frozen=True)
class _Fold:
    digest: str
    configuration: str


def _checkpoints(store: Store) -> dict[str, _Fold]:
    """Return fold -> what its checkpoint says, for all folds that are finished."""
    folds = (name for name in store.folders() if name.startswith("fold_"))
    infos = {fold: store.head(f"{fold}/{_CHECKPOINT}") for fold in folds}
    found = {fold: _fold(store, info) for fold, info in infos.items() if info is not None}
    if not found:
        raise InputError(
            f"{_WHAT}: {store.uri} has no fold_*/{_CHECKPOINT}. nnU-Net writes it when a training "
            "ends; to use an earlier state, copy checkpoint_best.pth to that name."
        )
    return found


@lru_cache(maxsize=64)
def _fold(store: Store, info: ObjectInfo) -> _Fold:
    """Read a checkpoint once for each of its versions; some are 500 MB."""
    data = store.get(info.key)
    checkpoint = read_checkpoint(data, f"{_WHAT}: {info.key}")
    return _Fold(hashlib.sha256(data).hexdigest(), checkpoint.configuration)


def _folder(plans: Any, dataset: Any, name: str, folds: tuple[str, ...]) -> NnunetFolder:
    chosen = _configuration(plans["configurations"], name)
    if chosen.get("previous_stage"):
        raise ConfigError(
            f"{_WHAT}: {name} is a cascade: it also reads what {chosen['previous_stage']} "
            "predicted. Give the folder of a network that reads the image alone, as 3d_fullres."
        )
    channels = dataset.get("channel_names", dataset.get("modality", {}))
    if len(channels) != 1:
        raise ConfigError(
            f"{_WHAT}: the network reads {len(channels)} channels "
            f"({', '.join(map(str, channels.values()))}), expected one. Networks of several "
            "channels are not supported."
        )
    axes = triple(int(axis) for axis in plans.get("transpose_forward", (0, 1, 2)))
    is_2d = len(chosen["patch_size"]) == 2
    window = [1, *chosen["patch_size"]] if is_2d else chosen["patch_size"]
    spacing = [0.0, *chosen["spacing"][-2:]] if is_2d else chosen["spacing"]
    architecture = chosen.get("architecture") or _old_architecture(chosen)
    return NnunetFolder(
        folds=folds,
        digests=(),
        name=str(architecture["network_class_name"]),
        settings=dict(architecture["arch_kwargs"]),
        axes=axes,
        labels=_labels(dataset["labels"]),
        window_zyx=triple(int(window[axes.index(axis)]) for axis in range(3)),
        spacing_mm=triple(float(spacing[axes.index(axis)]) for axis in range(3)),
        normaliser=_normaliser(plans, chosen),
    )


def _configuration(configurations: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a configuration with what it inherits."""
    if name not in configurations:
        raise InputError(
            f"{_WHAT}: the checkpoints are of the configuration {name!r}, plans.json has "
            f"{', '.join(configurations)}. Give the plans that they were trained with."
        )
    own = dict(configurations[name])
    parent = own.pop("inherits_from", None)
    return own if parent is None else _configuration(configurations, parent) | own


def _old_architecture(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the network of plans older than nnU-Net 2.4.2, as its `plans_handler` does."""
    name, levels = str(chosen["UNet_class_name"]), len(chosen["n_conv_per_stage_encoder"])
    dims = len(chosen["patch_size"])
    base, most = chosen["UNet_base_num_features"], chosen["unet_max_num_features"]
    convolutions = "n_conv_per_stage" if name == "PlainConvUNet" else "n_blocks_per_stage"
    settings = {
        "n_stages": levels,
        "features_per_stage": [min(base * 2**level, most) for level in range(levels)],
        "conv_op": f"torch.nn.Conv{dims}d",
        "kernel_sizes": chosen["conv_kernel_sizes"],
        "strides": chosen["pool_op_kernel_sizes"],
        convolutions: chosen["n_conv_per_stage_encoder"],
        "n_conv_per_stage_decoder": chosen["n_conv_per_stage_decoder"],
        "conv_bias": True,
        "norm_op": f"torch.nn.InstanceNorm{dims}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    return {"network_class_name": name, "arch_kwargs": settings}


def _labels(labels: Mapping[str, Any]) -> dict[str, int]:
    """Return name -> output; an ignored value has none."""
    regions = [name for name, value in labels.items() if isinstance(value, list | tuple)]
    if regions:
        raise ConfigError(
            f"{_WHAT}: dataset.json has labels made of regions ({', '.join(regions)}), which "
            "overlap. Expected one value for each label; train without regions."
        )
    found = {name: int(value) for name, value in labels.items() if name != "ignore"}
    if sorted(found.values()) != list(range(len(found))) or len(found) < 2:
        raise InputError(
            f"{_WHAT}: dataset.json has the labels {found}, expected whole numbers from 0 without "
            "a gap, each once."
        )
    return found


def _normaliser(plans: Mapping[str, Any], chosen: Mapping[str, Any]) -> Normaliser:
    (scheme,), (masked,) = chosen["normalization_schemes"], chosen["use_mask_for_norm"]
    if scheme == "ZScoreNormalization" and not masked:
        return Normaliser("case")
    if scheme == "CTNormalization":
        known = plans["foreground_intensity_properties_per_channel"]["0"]
        low, high = known["percentile_00_5"], known["percentile_99_5"]
        return Normaliser("ct", float(low), float(high), float(known["mean"]), float(known["std"]))
    what = f"{scheme} inside the nonzero mask" if masked else scheme
    raise ConfigError(
        f"{_WHAT}: the network reads images after {what}, expected CTNormalization, or "
        "ZScoreNormalization of the whole image. Another is not supported."
    )


def plan_nnunet(
    config: Config,
    infos: Sequence[CaseInfo],
    classes: Sequence[int],
    names: Mapping[int, str],
    voters: Voters,
) -> tuple[NetworkPlan, Normaliser]:
    """Return the plan of the network that an nnU-Net folder holds, and how its images are scaled.

    Raises ConfigError or InputError for a folder that cannot vote on this archive.
    """
    _check_method(config, voters)
    if infos[0].channels != 1:
        raise ConfigError(
            f"{_WHAT}: the network reads one channel, the archive's images have "
            f"{infos[0].channels}. Ingest the channel that it was trained on alone."
        )
    folder = read_nnunet(config)
    spec = folder.spec(classes, names, config.network.classes)
    _check_weights(config, folder, spec)
    stride = Architecture.of(spec).stride_zyx
    halo = triple(edge // AVERAGED_HALO for edge in folder.window_zyx)
    flips = tuple("zyx".index(axis) for axis in config.train.flips)
    ones = (1, 1, 1)
    plan = NetworkPlan(
        network=spec,
        voters=replace(
            voters,
            members=len(folder.folds) if voters.members else 0,
            views=resolve_views(voters.views, flips, (stride,)),
        ),
        flips=flips,
        stride_zyx=ones,
        patch_zyx=folder.window_zyx,
        tile_zyx=triple(n - 2 * h for n, h in zip(folder.window_zyx, halo, strict=True)),
        halo_vox=halo,
        averaged=True,
        window_zyx=folder.window_zyx,
        window_bytes_per_vox=window_bytes_per_voxel(spec),
        spacing_mm=folder.spacing_mm,
    )
    return plan, folder.normaliser


def _check_method(config: Config, voters: Voters) -> None:
    if voters.network:
        raise ConfigError(
            f"{_WHAT}: the method {config.method} brings its own network, {voters.network}, and "
            f"trains it. Use another method, or drop {_WHAT}."
        )
    if voters.passes:
        raise ConfigError(
            "method: dropout voters need dropout that can be keyed, and networks of nnU-Net have "
            "none. Use ensemble voters: every fold of the folder is one."
        )


def _check_weights(config: Config, folder: NnunetFolder, spec: NetworkSpec) -> None:
    store = Store.open(str(config.network.nnunet))
    for fold in folder.folds:
        info = store.head(f"{fold}/{_CHECKPOINT}")
        assert info is not None
        _fits(store, info, spec)


@lru_cache(maxsize=64)
def _fits(store: Store, info: ObjectInfo, spec: NetworkSpec) -> None:
    what = f"{_WHAT}: {info.key}"
    check_weights(build_network(spec), read_checkpoint(store.get(info.key), what).weights, what)


def adopted(config: Config, spec: NetworkSpec) -> Iterator[tuple[str, bytes]]:
    """Yield fold and network of each checkpoint, as networks that are trained here are kept.

    Raises InputError where a checkpoint is another one than when the run was planned.
    """
    store = Store.open(str(config.network.nnunet))
    digests = Architecture.of(spec).digests
    for fold, digest in zip(_checkpoints(store), digests, strict=True):
        key = f"{fold}/{_CHECKPOINT}"
        data = store.get(key)
        if hashlib.sha256(data).hexdigest() != digest:
            raise InputError(
                f"{_WHAT}: {key} of {store.uri} changed while the run began. Start it again."
            )
        net = build_network(spec)
        check_weights(net, read_checkpoint(data, f"{_WHAT}: {key}").weights, f"{_WHAT}: {key}")
        yield fold, save_network(net, spec, {"fold": fold, "sha256": digest})
