"""What a method does while a network learns: it turns each batch into a lesson.

A hook sees what its network says of a batch and answers with a `Lesson`: the label to learn, voxel
by voxel (`IGNORE` where nothing is learnt), and a weight per sample. That one value covers a
selection of samples (Co-Seg), of voxels (co-teaching), a sieve (CORES), and relabelling during
training (ADELE, uncertainty). Where `exchanges` says so, the lesson goes to the *peer*
(trainer.py), because a network that chooses for itself confirms its own mistakes.

Each network has a hook of its own; its state is saved with the checkpoint. A hook draws no random
numbers but those keyed by the batch's step, so a resumed training goes on bit for bit.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from raysegclean.errors import ConfigError
from raysegclean.names import load
from raysegclean.nets.batch import Batch
from raysegclean.voxels.channels import IGNORE
from raysegclean.voxels.geometry import Index3

__all__ = [
    "PLAIN_HOOK",
    "Hook",
    "HookContext",
    "HookSpec",
    "Lesson",
    "Loss",
    "hook_class",
    "make_hook",
]

Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits (B, K, Z, Y, X), label (B, Z, Y, X)) to one loss per sample (B,)."""

Exchanges = Literal["nothing", "samples", "voxels"]


@dataclass(frozen=True)
class HookSpec:
    """Which hook, and its parameters: plain values that can be hashed."""

    name: str = "plain"
    """One of `names.BUILT_IN`, or an import path."""
    params: tuple[tuple[str, float | int | str | bool], ...] = ()

    @classmethod
    def of(cls, name: str, /, **params: float | str | bool) -> "HookSpec":
        """Return the spec with parameters by name.

        >>> HookSpec.of("my_package:MyHook", keep=0.8).params
        (('keep', 0.8),)
        """
        return cls(name, tuple(sorted(params.items())))


PLAIN_HOOK = HookSpec()


@dataclass(frozen=True)
class HookContext:
    """What every hook is told of its training; lengths in steps.

    Where the end is open, `steps` is the length of the shortest training, and an epoch a tenth of
    it. So whatever begins at a share of the steps, or at an epoch, begins before the stable phase
    can end, at the step at which it would in a training of that length, and then goes on as long as
    the training does; shares of `most_steps` might never come.
    """

    classes: int
    steps: int
    epoch_steps: int
    loss: Loss
    """The configured loss (`train.loss`)."""
    most_steps: int | None = None
    """The bound of a training with an open end."""
    stride_zyx: Index3 = (1, 1, 1)
    """The network reads images whose edges are multiples of this."""
    present: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Training case -> channels that its whole given label holds, background included; a patch
    shows only some of them."""
    spacing_mm: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    """Training case -> voxel size, z y x."""


@dataclass(frozen=True)
class Lesson:
    """What a network is to learn from a batch.

    label: (B, Z, Y, X) int64 channels, `IGNORE` where nothing is learnt. weights: (B,) >= 0, at
    least one positive. voxel_weights: (B, Z, Y, X) >= 0 for hooks whose own `loss` reads them; they
    are never exchanged.
    """

    label: Tensor
    weights: Tensor
    voxel_weights: Tensor | None = None

    def kept_of(self, label: Tensor) -> float:
        """Return the share of a batch's labelled voxels that are learnt from."""
        learnt = self.label != IGNORE
        if self.voxel_weights is not None:
            learnt &= self.voxel_weights > 0
        voxels = learnt.flatten(1).sum(dim=1)
        labelled = (label != IGNORE).sum().clamp(min=1)
        return float(voxels[self.weights > 0].sum() / labelled)


class Hook:
    """One per network, made as `Hook(context, **params)`; methods override what they do otherwise.

    As it stands it learns the given label of every sample alike.
    """

    exchanges: ClassVar[Exchanges] = "nothing"
    """What goes to the peer: nothing, the weights of samples, or the label of voxels as well."""
    needs_trusted: ClassVar[bool] = False
    """Whether every batch brings patches of trusted cases (`Batch.clean`)."""

    def __init__(self, context: HookContext) -> None:
        self.context = context

    def lesson(self, net: nn.Module, logits: Tensor, batch: Batch) -> Lesson:  # noqa: ARG002
        """Return what is to be learnt; called once per learning step, without gradients.

        logits (B, K, Z, Y, X) are those of `batch.image`, detached, on the device of `batch`. The
        network may be asked again, and must be left as it was.
        """
        return Lesson(batch.label, torch.ones(len(batch.case), device=logits.device))

    def loss(self, net: nn.Module, logits: Tensor, lesson: Lesson, batch: Batch) -> Tensor:  # noqa: ARG002
        """Return (B,) losses of `logits`, through which the gradient flows."""
        return self.context.loss(logits, lesson.label)

    def state(self) -> dict[str, Any]:
        """Return what has to be remembered: plain values and tensors."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""

    def report(self) -> dict[str, Any]:
        """Return, once training has ended, plain values that the policy is to know.

        They are saved beside the weights and reach it as `ArchiveEvidence.reports`.
        """
        return {}


def hook_class(spec: HookSpec) -> Callable[..., Hook]:
    """Return the class that `spec` names.

    Raises ConfigError when it cannot be imported.
    """
    try:
        found: Callable[..., Hook] = load("hook", spec.name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"hook: {spec.name!r} cannot be loaded ({error}). Expected package.module:NAME of a "
            "class that this Python, and every worker's, can import."
        ) from error
    return found


def make_hook(spec: HookSpec, context: HookContext) -> Hook:
    """Return a fresh hook of one network; raises ConfigError when its parameters do not fit."""
    try:
        return hook_class(spec)(context, **dict(spec.params))
    except TypeError as error:
        raise ConfigError(f"hook {spec.name}: {error}") from error
