"""Relabelling while a network learns, by the uncertainty of its own predictions.

Redekop & Chernyavskiy 2021 relabel at an epoch and train on. Here the label is changed in each
batch, anew from the given one: nothing is stored, and what the network no longer believes in is
gone. Several passes, which differ in the channels that dropout cuts, give Kwon's aleatoric
uncertainty U of every voxel; the pass that is learnt from is the first of them.

The start: let u_n be the mean U of epoch n, and M_n the mean of u_0 to u_n, the mean cumulative
uncertainty. The poster takes the epoch with the smallest relative change
r_n = (M_n - M_(n-1)) / M_(n-1), which is where uncertainty falls fastest. While learning, only the
past is known: relabelling starts with the epoch after the first n for which r_n >= r_(n-1), so in
epoch 3 at the earliest. Where r falls to the end it never starts.

Not guaranteed: the same start on every data-parallel rank, because each sees its own patches.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from raysegclean.errors import ConfigError
from raysegclean.nets.batch import Batch
from raysegclean.nets.dropout import dropout_masks
from raysegclean.nets.hooks import Hook, HookContext, Lesson
from raysegclean.nets.networks import begin, deepen, has_dropout
from raysegclean.nets.scales import unmoved_statistics
from raysegclean.voxels.channels import IGNORE

__all__ = ["RelabelHook", "relabelled", "start_epoch"]


class RelabelHook(Hook):
    """Learn the given label where the network is uncertain or agrees, and else its prediction."""

    def __init__(
        self,
        context: HookContext,
        start: int | str = "auto",
        rule: Literal["safe", "published"] = "safe",
        delta: float = 0.1,
        passes: int = 4,
    ) -> None:
        """`start`: an epoch, or auto. Raises ConfigError for what binary labels alone allow."""
        if rule == "published" and context.classes != 2:
            raise ConfigError(
                f"params.rule: published flips binary labels, and this label has "
                f"{context.classes - 1} classes. Use rule: safe or rule: default."
            )
        super().__init__(context)
        self.start = None if start == "auto" else int(start)
        self.rule, self.delta, self.passes = rule, delta, passes
        self._sums: list[float] = []
        self._voxels: list[int] = []
        self._epochs: list[int] = []

    def lesson(self, net: nn.Module, logits: Tensor, batch: Batch) -> Lesson:
        """Return the given label, relabelled from the start epoch on."""
        plain = super().lesson(net, logits, batch)
        epoch = batch.step // self.context.epoch_steps
        if self.start is not None and epoch < self.start:
            return plain
        uncertainty, predicted = self._ask(net, logits, batch)
        self._note(epoch, uncertainty, batch.label)
        start = self.starts_at
        if start is None or epoch < start:
            return plain
        label = relabelled(batch.label, predicted, uncertainty, self.rule, self.delta)
        return Lesson(label, plain.weights)

    @property
    def starts_at(self) -> int | None:
        """The epoch that was set or found, None as long as it is not known."""
        if self.start is not None:
            return self.start
        found = start_epoch(self.means[:-1])  # the last one may not be over
        return None if found is None else self._epochs[found]

    @property
    def means(self) -> list[float]:
        """The mean uncertainty of each epoch in which it was measured."""
        return [total / max(1, n) for total, n in zip(self._sums, self._voxels, strict=True)]

    def _ask(self, net: nn.Module, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the aleatoric uncertainty and the predicted channel, each (B, Z, Y, X)."""
        prob = torch.softmax(logits.float(), dim=1)
        total, squares, passes = prob, prob.square(), 1
        bf16 = logits.dtype == torch.bfloat16
        with (
            unmoved_statistics(net),
            torch.autocast(batch.image.device.type, torch.bfloat16, enabled=bf16),
        ):
            finest = begin(net, batch.image)
            for number in range(1, self.passes if has_dropout(net) else 1):
                with dropout_masks(net, (batch.step, number), per_sample=True):
                    prob = torch.softmax(deepen(net, finest).float(), dim=1)
                total, squares, passes = total + prob, squares + prob.square(), passes + 1
        aleatoric = (total - squares).sum(dim=1).clamp(min=0) / (2 * passes)
        return aleatoric, total.argmax(dim=1)

    def _note(self, epoch: int, uncertainty: Tensor, label: Tensor) -> None:
        if not self._epochs or self._epochs[-1] != epoch:
            self._epochs.append(epoch)
            self._sums.append(0.0)
            self._voxels.append(0)
        known = label != IGNORE
        self._sums[-1] += float(torch.where(known, uncertainty, 0.0).sum())
        self._voxels[-1] += int(known.sum())

    def state(self) -> dict[str, Any]:
        """Return the uncertainty of each epoch, as sums and voxels."""
        return {
            "epochs": list(self._epochs),
            "sums": list(self._sums),
            "voxels": list(self._voxels),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from saved sums."""
        self._epochs = [int(epoch) for epoch in state["epochs"]]
        self._sums = [float(total) for total in state["sums"]]
        self._voxels = [int(count) for count in state["voxels"]]

    def report(self) -> dict[str, Any]:
        """Return the mean uncertainty by epoch, and where relabelling started (None: nowhere)."""
        means = dict(zip(self._epochs, self.means, strict=True))
        return {"uncertainty": means, "relabelled_from": self.starts_at}


def start_epoch(means: Sequence[float]) -> int | None:
    """Return the epoch that relabelling starts with, from the mean U of all epochs that are over.

    None as long as the relative change of the mean cumulative uncertainty falls.

    >>> start_epoch([0.20, 0.18, 0.10, 0.06, 0.05])
    4
    """
    cumulative = np.cumsum(means) / np.arange(1, len(means) + 1)
    before = cumulative[:-1]
    change = np.divide(np.diff(cumulative), before, out=np.zeros_like(before), where=before > 0)
    rising = np.flatnonzero(np.diff(change) >= 0)
    return int(rising[0]) + 3 if len(rising) else None


def relabelled(
    label: Tensor,
    predicted: Tensor,
    uncertainty: Tensor,
    rule: Literal["safe", "published"],
    delta: float,
) -> Tensor:
    """Return the label to learn; all arguments and the result are (B, Z, Y, X).

    published: binary labels are flipped where U > delta, whatever is predicted. safe: the
    prediction replaces the label where it differs and U < delta. `IGNORE` stays.
    """
    if rule == "published":
        changed, new = uncertainty > delta, 1 - label
    else:
        changed, new = (predicted != label) & (uncertainty < delta), predicted
    return torch.where(changed & (label != IGNORE), new, label)
