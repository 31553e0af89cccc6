"""Networks of nnU-Net v2 (Isensee et al. 2021): built as their plans say, with weights of a file.

The two architectures that nnU-Net plans come from its package `dynamic_network_architectures`,
which is imported only here. Its plans name layers by import path; of these a fixed few are known,
and nothing else is imported. A checkpoint is read with `torch.load(weights_only=True)`. So neither
a plan nor a checkpoint can run code.

The network reads and answers in the archive's axes and classes: axes are moved to nnU-Net's order
and back, and an archive's class has the probability of all outputs that belong to it, summed. A 2D
network reads slices one by one.

Not guaranteed: any window. nnU-Net's networks normalise over it, so it must be one of the size that
the plans name (`inference.Tiling.window_zyx`).
"""

import io
import json
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from raysegclean.errors import ConfigError, InputError, told
from raysegclean.nets.memory import forward_bytes_per_voxel
from raysegclean.nets.unet import NetworkSpec
from raysegclean.voxels.geometry import Index3, triple

__all__ = [
    "NNUNET",
    "Architecture",
    "Checkpoint",
    "build",
    "check_weights",
    "read_checkpoint",
    "window_bytes_per_voxel",
]

NNUNET = "nnunet"
"""Name of these networks in a spec."""
_WHAT = "network.nnunet"
_ARCHITECTURES = ("PlainConvUNet", "ResidualEncoderUNet")
_LAYERS = (
    *(nn.Conv2d, nn.Conv3d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.BatchNorm2d, nn.BatchNorm3d),
    *(nn.Dropout2d, nn.Dropout3d, nn.LeakyReLU, nn.ReLU),
)
_LAYER_SETTINGS = ("conv_op", "norm_op", "dropout_op", "nonlin")
_TRAINER = re.compile(
    r"nnUNetTrainer(?:_?(?:\d+ep(?:och)?s?|NoMirroring|onlyMirror01|noDummy2DDA|DA5\w*|DAOrd0|NoDA"
    r"|DASegOrd0|warmup|CosAnneal|Adan\w*|Adam\w*|VanillaAdam\w*|DiceLoss|DiceCELoss_noSmooth"
    r"|Topk10Loss\w*|DiceTopK10Loss|CELoss|NoDeepSupervision|probabilisticOversampling\w*"
    r"|Benchmark\w*))*"
)
"""nnU-Net's own trainers, but nnUNetTrainerBN: none builds another network than its plans say."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What decides the function of a network, but its weights.

    name, settings: class and arguments, as in the plans. outputs: channels of the last layer.
    classes: of each class of the archive the outputs that belong to it, background first. axes: the
    archive's axis that each axis of the network is. digests: SHA-256 of each fold's checkpoint.
    """

    name: str
    settings: Mapping[str, Any]
    outputs: int
    classes: tuple[tuple[int, ...], ...]
    axes: Index3
    digests: tuple[str, ...]

    @classmethod
    def of(cls, spec: NetworkSpec) -> "Architecture":
        """Return what `spec.nnunet` holds."""
        values = json.loads(spec.nnunet)
        values["classes"] = tuple(tuple(group) for group in values["classes"])
        return cls(**values | {name: tuple(values[name]) for name in ("axes", "digests")})

    def spec(self) -> NetworkSpec:
        """Return the spec of the network; it reads one channel."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        ones = (1, 1, 1)
        return NetworkSpec(3, 1, len(self.classes), (1, 1), (ones,), 0.0, NNUNET, nnunet=text)

    @property
    def is_2d(self) -> bool:
        """Whether the network reads slices."""
        return str(self.settings.get("conv_op", "")).endswith("Conv2d")

    @property
    def stride_zyx(self) -> Index3:
        """Downsampling of the deepest level, in the archive's axes."""
        steps = [np.broadcast_to(s, 2 if self.is_2d else 3) for s in self.settings["strides"]]
        total = np.prod(steps, axis=0).tolist()
        return _in_archive([1, *total] if self.is_2d else total, self.axes)


@dataclass(frozen=True)
class Checkpoint:
    """What a fold's file says that matters for predicting."""

    weights: Mapping[str, Tensor]
    trainer: str
    configuration: str


class _Network(nn.Module):
    """A network of nnU-Net in the axes and the classes of an archive."""

    stride_zyx = (1, 1, 1)  # its windows have one size, and may lie anywhere

    def __init__(self, net: nn.Module, architecture: Architecture) -> None:
        super().__init__()
        self.net = net
        self._is_2d = architecture.is_2d
        self._there = (0, 1, *(2 + axis for axis in architecture.axes))
        self._back = (0, 1, *(2 + architecture.axes.index(axis) for axis in range(3)))
        self._classes = architecture.classes

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, 1, Z, Y, X) to logits (B, K, Z, Y, X)."""
        seen = image.permute(self._there)
        outputs = (self._by_slices(seen) if self._is_2d else self.net(seen)).permute(self._back)
        logits = [outputs[:, group].logsumexp(dim=1) for group in map(list, self._classes)]
        return torch.stack(logits, dim=1)

    def _by_slices(self, image: Tensor) -> Tensor:
        samples, slices = image.shape[0], image.shape[2]
        outputs = cast(Tensor, self.net(image.movedim(2, 1).flatten(0, 1)))
        return outputs.reshape(samples, slices, *outputs.shape[1:]).movedim(1, 2)


def build(spec: NetworkSpec) -> nn.Module:
    """Return the network of a spec with fresh weights.

    Raises ConfigError where the package is missing, or the plans ask for what is not known.
    """
    architecture = Architecture.of(spec)
    make = _architecture_class(architecture.name)
    settings = {
        name: _layer(name, value) if name in _LAYER_SETTINGS else value
        for name, value in architecture.settings.items()
    }
    settings["deep_supervision"] = False
    try:
        net = make(input_channels=spec.in_channels, num_classes=architecture.outputs, **settings)
    except Exception as error:  # plans may hold anything
        raise ConfigError(
            f"{_WHAT}: {architecture.name} cannot be built as plans.json says ({told(error)}). "
            "Give a folder as nnU-Net v2 wrote it."
        ) from error
    return _Network(net, architecture)


def _architecture_class(path: str) -> Any:
    name = path.rpartition(".")[2]
    if name not in _ARCHITECTURES:
        raise ConfigError(
            f"{_WHAT}: plans.json names the network {path!r}, expected "
            f"{' or '.join(_ARCHITECTURES)}. Export another network with torch.jit, and name the "
            "file as network.torchscript."
        )
    try:
        from dynamic_network_architectures.architectures import unet
    except ImportError as error:
        raise ConfigError(
            f"{_WHAT}: the package dynamic_network_architectures is not installed ({error}). "
            "Install it here and for every worker: pip install 'raysegclean[nnunet]'."
        ) from error
    return getattr(unet, name)


def _layer(setting: str, path: str | None) -> type[nn.Module] | None:
    """Return the layer that plans name; nothing is imported by name."""
    if path is None:
        return None
    package, _, name = path.rpartition(".")
    for layer in _LAYERS:
        if layer.__name__ == name and package.startswith("torch.nn"):
            return layer
    raise ConfigError(
        f"{_WHAT}: plans.json sets {setting} to {path!r}, expected one of "
        f"{', '.join(layer.__name__ for layer in _LAYERS)} of torch.nn. Export such a network with "
        "torch.jit, and name the file as network.torchscript."
    )


def _in_archive(values: Sequence[int], axes: Index3) -> Index3:
    """Return values along the network's axes along those of the archive."""
    return triple(values[axes.index(axis)] for axis in range(3))


def read_checkpoint(data: bytes, what: str) -> Checkpoint:
    """Return what a fold's file holds; `what` names it in errors.

    Raises InputError for bytes that are no checkpoint, or hold more than tensors and plain values,
    and ConfigError for one of a trainer that may have changed the network.
    """
    try:
        with torch.serialization.safe_globals(_harmless()):
            found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        weights, trainer = dict(found["network_weights"]), str(found["trainer_name"])
        configuration = str(found["init_args"]["configuration"])
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{what}: this is no file of tensors and plain values ({reason}). Load it in nnU-Net's "
            "own environment and save network_weights, trainer_name and init_args alone."
        ) from error
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{what}: this is no checkpoint of nnU-Net v2 ({told(error)} is missing). Expected "
            "network_weights, trainer_name and init_args."
        ) from error
    if not _TRAINER.fullmatch(trainer):
        raise ConfigError(
            f"{what}: it was trained by {trainer}, which may build another network than plans.json "
            "says. Expected a trainer of nnU-Net itself that keeps to its plans. If yours does, "
            "save the checkpoint with trainer_name nnUNetTrainer."
        )
    plain = {name.removeprefix("module."): value for name, value in weights.items()}
    return Checkpoint(plain, trainer, configuration)


def _harmless() -> list[Any]:
    """Return the numpy scalars that nnU-Net logs beside the weights, under old and new names."""
    scalar = np.float64(0).__reduce__()[0]
    dtypes = {type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "?")}
    names = [f"{package}.multiarray.scalar" for package in ("numpy.core", "numpy._core")]
    return [*((scalar, name) for name in names), np.dtype, *dtypes]


def check_weights(net: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Load weights into a network that `build` made; ConfigError where they do not fit."""
    try:
        cast(_Network, net).net.load_state_dict(weights)
    except RuntimeError as error:
        _, *reasons = str(error).strip().splitlines()
        raise ConfigError(
            f"{what}: its weights do not fit the network that plans.json describes "
            f"({'; '.join(line.strip()[:200] for line in reasons[:2])}). Give the plans that it "
            "was trained with."
        ) from error


def window_bytes_per_voxel(spec: NetworkSpec) -> float:
    """Return the memory that predicting takes, in bytes (fp32) per voxel of a window.

    Counted without computing anything.
    """
    with torch.device("meta"):
        net = build(spec).eval()
        return forward_bytes_per_voxel(net, spec.in_channels, Architecture.of(spec).stride_zyx)
