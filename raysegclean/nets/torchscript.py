"""A TorchScript file as a voter: a finished network of which only the forward pass is known.

TorchScript is code. Loading a file runs what it says, with the rights of the process; there is no
`weights_only` for it. Load a file only from someone whose program you would run. A run copies the
file into its folder and refuses any other bytes under that name later.

The file maps an image (1, C, Z, Y, X), normalised as the config says, to logits (1, K, Z, Y, X),
background first. Its stride is the one that the config names, or else the smallest power of two by
which its answer moves with the image. How far it looks is measured with the weights as they are,
so it may be less than the architecture allows, by influences too small for fp32.

It runs without the optimiser of TorchScript, which changes the arithmetic after the first calls:
the same window gives the same bits, whichever worker reads it first.
"""

import hashlib
import io
import warnings
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor, nn

from raysegclean.errors import ConfigError, InputError
from raysegclean.nets.memory import forward_bytes_per_voxel
from raysegclean.nets.networks import forward_checked
from raysegclean.nets.receptive import Geometry, Trial
from raysegclean.nets.unet import NetworkSpec
from raysegclean.nets.voters import NetworkVoter
from raysegclean.voxels.geometry import Index3

__all__ = ["Script", "ScriptVoter", "inspect_script"]

_STRIDES = (1, 2, 4, 8, 16, 32)
_WHAT = "network.torchscript"


@dataclass(frozen=True)
class Script:
    """The bytes of a file; two are the same when their digests are."""

    data: bytes = field(repr=False, compare=False)
    digest: str

    @classmethod
    def of(cls, data: bytes) -> "Script":
        """Return the script of a file's bytes."""
        return cls(data, hashlib.sha256(data).hexdigest())

    @classmethod
    def trusted(cls, data: bytes, digest: str) -> "Script":
        """Return the script of the bytes that `digest` names; anything else would be other code.

        Raises InputError for other bytes.
        """
        script = cls.of(data)
        if script.digest != digest:
            raise InputError(
                f"{_WHAT}: the file in the run folder has SHA-256 {script.digest}, expected "
                f"{digest}. Somebody changed it: start a new run from the file that you trust."
            )
        return script

    def load(self, device: torch.device | str = "cpu") -> nn.Module:
        """Return the module in eval mode; InputError when the bytes are not TorchScript."""
        try:
            with warnings.catch_warnings():
                # Torch 2.13 warns that TorchScript will go; who brings a file cannot help it here.
                warnings.simplefilter("ignore", DeprecationWarning)
                module: nn.Module = torch.jit.load(  # type: ignore[no-untyped-call]
                    io.BytesIO(self.data), map_location=device
                )
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"{_WHAT}: {len(self.data)} bytes are not a TorchScript file "
                f"({str(error).splitlines()[0]}). Save one with torch.jit.trace or "
                "torch.jit.script, then torch.jit.save; a state_dict is not one."
            ) from error
        for parameter in module.parameters():  # `requires_grad_` of a script is refused
            parameter.requires_grad_(False)
        return module.eval()


class ScriptVoter(NetworkVoter):
    """A TorchScript module, one pass, always in fp32."""

    name = "torchscript"

    def __init__(
        self, script: Script, spec: NetworkSpec, *, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(_Plain(script.load(device)), spec, device=device)
        self._script = script

    @property
    def halo_vox(self) -> Index3:
        """The receptive radius; measured when it is asked for."""
        spec = self._spec
        placed, _ = inspect_script(self._script, spec.in_channels, spec.classes, spec.stride_zyx)
        return placed.radius_vox or (0, 0, 0)


class _Plain(nn.Module):
    """A scripted module without the optimiser of TorchScript."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, image: Tensor) -> Tensor:
        """Return whatever the module returns."""
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            logits: Tensor = self.module(image)
        return logits


@lru_cache(maxsize=4)
def inspect_script(
    script: Script, channels: int, classes: int, stride_zyx: Index3 | None
) -> tuple[Geometry, float]:
    """Return how windows of a script must be placed, and their memory in bytes per voxel.

    stride_zyx: what the config names; None: found by trying. Raises ConfigError when the script
    does not read `channels`, does not answer with logits of `classes` channels, or reads no windows
    of other sizes than those it was traced with.
    """
    net = _Plain(script.load())
    if stride_zyx is None:
        geometry = _found_geometry(net, channels, classes)
    else:
        _check(net, channels, classes, stride_zyx)
        try:
            geometry = Geometry(stride_zyx, Trial(net, channels, stride_zyx).radius())
        except RuntimeError as error:
            raise _reads_too_little(f"the stride {stride_zyx} of network.strides", error) from error
    return geometry, forward_bytes_per_voxel(net, channels, geometry.stride_zyx)


def _reads_too_little(strides: str, error: Exception | None) -> ConfigError:
    # TorchScript tells the code that failed first and why last.
    why = str(error).strip().splitlines()[-1] if error else "its answers have another shape"
    return ConfigError(
        f"{_WHAT}: it cannot read windows of every multiple of {strides} ({why}). Name the "
        "network's own stride in network.strides; if sizes were baked in when it was traced, save "
        "it with torch.jit.script."
    )


def _found_geometry(net: nn.Module, channels: int, classes: int) -> Geometry:
    """Return the smallest stride by which the answer moves; averaged where there is none."""
    runs: Index3 | None = None
    answered = False
    failure: Exception | None = None
    for step in _STRIDES:
        stride = (step, step, step)
        try:
            with torch.no_grad():
                shape = net(torch.zeros(1, channels, *(2 * s for s in stride))).shape
            if tuple(shape[2:]) != (2 * step,) * 3:
                continue
            _check(net, channels, classes, stride)
            answered = True
            trial = Trial(net, channels, stride)
            reach = trial.reach()
            runs = runs or stride
            if reach is None:
                break  # a larger stride does not make it look less far
            if trial.moves(reach):
                return Geometry(stride, reach)
        except RuntimeError as error:
            failure = error
    if runs is None:
        if not answered:
            _check(net, channels, classes, (_STRIDES[-1],) * 3)
        raise _reads_too_little(f"a stride up to {_STRIDES[-1]}", failure)
    return Geometry(runs, None)


def _check(net: nn.Module, channels: int, classes: int, stride_zyx: Index3) -> None:
    shape = (1, channels, *(2 * s for s in stride_zyx))
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    logits = forward_checked(net, image, classes, _WHAT)
    if bool((logits >= 0).all()) and torch.allclose(logits.sum(dim=1), torch.ones(()), atol=1e-3):
        raise ConfigError(
            f"{_WHAT}: its answers add up to 1, so they are probabilities. Expected logits: save "
            "the network without its last softmax."
        )
