"""Co-Seg while a network learns: small-loss samples go to the peer."""

from typing import Any, ClassVar

import torch

from raysegclean.methods.coseg.selection import SmallLoss
from raysegclean.nets.batch import Batch
from raysegclean.nets.hooks import Exchanges, HookContext, Lesson, PlainHook

__all__ = ["CosegHook"]


class CosegHook(PlainHook):
    """Co-Seg: the samples of the cases that this network explains best are its peer's lesson."""

    exchanges: ClassVar[Exchanges] = "samples"

    def __init__(self, context: HookContext, keep: float = 1.0, start_epoch: int = 1) -> None:
        """`keep`: share of cases, from epoch `start_epoch` on."""
        super().__init__(context)
        self.selection = SmallLoss(keep, start_epoch * context.epoch_steps)

    def lesson(
        self,
        net: torch.nn.Module,  # noqa: ARG002
        logits: torch.Tensor,
        batch: Batch,
    ) -> Lesson:
        """Return weights 1 for samples to keep and 0 for the others."""
        return Lesson(batch.label, self.selection.on_batch(logits, batch))

    def state(self) -> dict[str, Any]:
        """Return the running means of the cases."""
        return self.selection.state()

    def load(self, state: dict[str, Any]) -> None:
        """Continue from saved means."""
        self.selection.load(state)
