"""ADELE while a network learns: correct the labels of a class once it has been learnt.

Source: Liu et al., CVPR 2022, sections 4.1 and 4.2. What differs, and why, is said in
`methods.adele.method`. Not guaranteed: that a correction is right; it is what the network itself
believes.
"""

from typing import Any

import torch
from torch import Tensor, nn

from raysegclean.errors import ConfigError
from raysegclean.methods.adele.onset import IouWatch
from raysegclean.nets.batch import Batch
from raysegclean.nets.hooks import Hook, HookContext, Lesson
from raysegclean.nets.relabel import batch_confusion, corrected, present_classes
from raysegclean.nets.scales import at_scales, disagreement

__all__ = ["AdeleHook", "other_scales"]


def other_scales(text: str) -> tuple[float, ...]:
    """Return the scales beside 1."""
    try:
        scales = [float(word) for word in text.split()]
    except ValueError:
        scales = []
    if scales.count(1.0) != 1 or min(scales) < 0.25 or max(scales) > 4:
        raise ConfigError(
            f'params.scales: expected numbers from 0.25 to 4 with 1 among them, as "0.7 1 1.5", '
            f"got {text!r}."
        )
    return tuple(scale for scale in scales if scale != 1.0)


class AdeleHook(Hook):
    """Learn what the network itself corrects, class by class from its onset on."""

    def __init__(
        self,
        context: HookContext,
        tau: float = 0.8,
        ratio: float = 0.9,
        epochs: int = 40,
        scales: str = "1",
        consistency: float = 1.0,
        rho: float = 0.8,
    ) -> None:
        """Take the method's settings; lengths follow from the context's steps."""
        super().__init__(context)
        self.tau, self.rho, self.weight = tau, rho, consistency
        self.scales = other_scales(scales)
        length = max(1, context.steps // epochs)
        most = -(-(context.most_steps or context.steps) // length)
        self.watch = IouWatch(context.classes, epochs=most, epoch_steps=length, ratio=ratio)
        self._others: tuple[Tensor, ...] = ()

    def lesson(self, net: nn.Module, logits: Tensor, batch: Batch) -> Lesson:
        """Return the given label, corrected in the classes that are on."""
        # The loss needs the same views with gradients: computing them twice would cost a third.
        with torch.enable_grad():
            self._others = at_scales(
                net,
                batch.image,
                self.scales,
                self.context.stride_zyx,
                bf16=logits.dtype == torch.bfloat16,
            )
        self.watch.see(batch.step, batch_confusion(logits, batch.label))
        views = [logits.float(), *(view.detach() for view in self._others)]
        prob = torch.stack([torch.softmax(view, dim=1) for view in views]).mean(dim=0)
        on = torch.from_numpy(self.watch.on).to(logits.device)
        present = present_classes(batch, self.context.present, self.context.classes)
        label = corrected(prob, batch.label, on=on, present=present, tau=self.tau)
        return Lesson(label, torch.ones(len(batch.case), device=logits.device))

    def loss(self, net: nn.Module, logits: Tensor, lesson: Lesson, batch: Batch) -> Tensor:  # noqa: ARG002
        """Return the configured loss, averaged over the scales, and their disagreement."""
        views = [logits.float(), *self._others]
        self._others = ()
        supervised = torch.stack([self.context.loss(view, lesson.label) for view in views])
        if len(views) == 1:
            return supervised[0]
        return supervised.mean(dim=0) + self.weight * disagreement(views, batch.label, self.rho)

    def state(self) -> dict[str, Any]:
        """Return the counts of hits and the classes that are on."""
        return self.watch.state()

    def load(self, state: dict[str, Any]) -> None:
        """Continue from saved counts."""
        self.watch.load(state)

    def report(self) -> dict[str, Any]:
        """Return the onset of each class that is on, in epochs."""
        return {"onset": self.watch.onset}
