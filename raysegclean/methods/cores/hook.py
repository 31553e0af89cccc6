"""CORES while a network learns: a confidence regulariser, a sieve, consistency on what it drops.

Source: Cheng et al., ICLR 2021, sections 3 and 4, for voxels in place of images. What differs, and
why, is said in `methods.cores.method`. Not guaranteed: that what is sieved out is wrong; a class
that is hard to see is disbelieved too.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raysegclean.nets.batch import Batch
from raysegclean.nets.hooks import Hook, HookContext, Lesson
from raysegclean.nets.relabel import masked_mean, passes_sieve
from raysegclean.nets.scales import at_scales, disturbed
from raysegclean.voxels.channels import IGNORE

__all__ = ["CoresHook"]

_RAMP = (0.1, 0.4)
"""Shares of the training between which beta grows from 0."""
_MOST_BETA = 0.5
"""Upper bound of beta times the prior of any class."""
_LEARNT = 0.5
"""A class of which a smaller share passes is not sieved."""
_TINY = 1e-8

Shares = NDArray[np.float64]


class CoresHook(Hook):
    """Confidence regulariser, sieve, and consistency on what was sieved out."""

    def __init__(
        self,
        context: HookContext,
        beta: float = 2.0,
        sieve_from: float = 0.4,
        level: float = 0.5,
        consistency: float = 0.4,
        consistency_from: float = 0.5,
    ) -> None:
        """Take the method's settings; the times are shares of the training."""
        super().__init__(context)
        self.beta, self.level, self.weight = beta, level, consistency
        self.sieve_step = round(sieve_from * context.steps)
        self.consistency_step = round(consistency_from * context.steps)
        self._epoch = 0
        self._counts = np.zeros((2, context.classes), np.int64)
        self._passed = np.ones(context.classes)

    def lesson(self, net: nn.Module, logits: Tensor, batch: Batch) -> Lesson:  # noqa: ARG002
        """Return the given label without the voxels that do not pass."""
        passes = passes_sieve(logits, batch.label, self.level)
        self._count(batch, passes)
        weights = torch.ones(len(batch.case), device=logits.device)
        if batch.step < self.sieve_step:
            return Lesson(batch.label, weights)
        learnt = torch.from_numpy(self._passed >= _LEARNT).to(logits.device)
        dropped = ~passes & learnt[batch.label.clamp(min=0)]
        return Lesson(torch.where(dropped, IGNORE, batch.label), weights)

    def loss(self, net: nn.Module, logits: Tensor, lesson: Lesson, batch: Batch) -> Tensor:
        """Return the configured loss with the regulariser, and the consistency."""
        loss = self.context.loss(logits, lesson.label)
        beta = self.beta_at(batch.step)
        if beta > 0:
            log_prob = (torch.softmax(logits.float(), dim=1) + _TINY).log()
            prior = torch.from_numpy(self.prior).to(log_prob)
            others = -torch.einsum("k,bkzyx->bzyx", prior, log_prob)
            loss = loss - beta * masked_mean(others, lesson.label != IGNORE)
        sieved = (lesson.label == IGNORE) & (batch.label != IGNORE)
        if batch.step < self.consistency_step or not self.weight or not bool(sieved.any()):
            return loss
        bf16 = logits.dtype == torch.bfloat16
        image = disturbed(batch.image, batch.step)
        (other,) = at_scales(net, image, (1.0,), self.context.stride_zyx, bf16=bf16)
        before = torch.log_softmax(logits.detach().float(), dim=1)
        parted = (before.exp() * (before - torch.log_softmax(other, dim=1))).sum(dim=1)
        # Per labelled voxel, as the cross-entropy: a mean over few sieved ones would outweigh it.
        return loss + self.weight * masked_mean(parted * sieved, batch.label != IGNORE)

    @property
    def prior(self) -> Shares:
        """(K,): classes alike, each as far as it passed the sieve in the last epoch."""
        shares: Shares = np.maximum(self._passed, _TINY)
        return np.asarray(shares / shares.sum())

    def beta_at(self, step: int) -> float:
        """Return the weight of the regulariser: 0, then a ramp, then the cap or `beta`."""
        start, stop = _RAMP
        ramp = (step / self.context.steps - start) / (stop - start)
        most = min(self.beta, _MOST_BETA / float(self.prior.max()))
        return most * min(1.0, max(0.0, ramp))

    def _count(self, batch: Batch, passes: Tensor) -> None:
        epoch = batch.step // self.context.epoch_steps
        if epoch > self._epoch:
            seen, passed = self._counts
            self._passed = np.where(seen > 0, passed / np.maximum(seen, 1), self._passed)
            self._counts = np.zeros_like(self._counts)
            self._epoch = epoch
        known = batch.label != IGNORE
        classes = self.context.classes
        for row, where in enumerate((known, known & passes)):
            count = torch.bincount(batch.label[where], minlength=classes)
            self._counts[row] += count.cpu().numpy()

    def state(self) -> dict[str, Any]:
        """Return the counts of this epoch and the rates of the last one."""
        return {
            "epoch": self._epoch,
            "counts": self._counts.tolist(),
            "passed": self._passed.tolist(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self._epoch = int(state["epoch"])
        self._counts = np.array(state["counts"], np.int64)
        self._passed = np.array(state["passed"], np.float64)

    def report(self) -> dict[str, Any]:
        """Return the share of each class that was sieved out in the last whole epoch."""
        return {"sieved": [1 - float(share) for share in self._passed]}
