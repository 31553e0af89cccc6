"""Co-Seg while a network learns: small-loss samples go to the peer.

Not guaranteed: that a dropped sample is wrong; a hard but right case looks the same.
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from raysegclean.nets.batch import Batch
from raysegclean.nets.hooks import Exchanges, Hook, HookContext, Lesson
from raysegclean.nets.losses import sample_score

__all__ = ["CosegHook"]

_LEVEL_MEMORY = 50
"""Samples after which the running mean of all scores forgets."""
_CASE_MEMORY = 8
"""Visits after which the mean of a case forgets."""


class CosegHook(Hook):
    """The samples of the `keep` share of cases that this network explains best go to its peer.

    The score of a sample is its cross-entropy per foreground voxel (`sample_score`), divided by
    its running mean over all samples, because scores fall while a network learns and cases are
    seen at different times. Scores are averaged per case: a batch of four has no quantile, the
    cases seen so far have one. Nothing is dropped before `start_epoch`, in patches without
    foreground, or of cases not seen before.

    Source: Co-Seg (Huang et al. 2021, arXiv 2102.00523), step 2: alpha = keep = 1 - noise level.
    """

    exchanges: ClassVar[Exchanges] = "samples"

    def __init__(self, context: HookContext, keep: float = 1.0, start_epoch: int = 1) -> None:
        super().__init__(context)
        self.keep = keep
        self.start_step = start_epoch * context.epoch_steps
        self.seen = 0
        self.level = 0.0
        self.means: dict[str, float] = {}
        self.visits: dict[str, int] = {}

    def lesson(self, net: nn.Module, logits: Tensor, batch: Batch) -> Lesson:
        """Update the running means, then return weights 1 for samples to keep and 0 for others."""
        plain = super().lesson(net, logits, batch)
        scores = sample_score(logits, batch.label).tolist()
        for case, score in zip(batch.case, scores, strict=True):
            if not math.isnan(score):  # a patch without foreground has no opinion
                self._see(case, score)
        if batch.step < self.start_step or len(self.means) < 2:
            return plain
        bound = float(torch.quantile(torch.tensor(list(self.means.values())), self.keep))
        means = [self.means.get(case, 0.0) for case in batch.case]
        bound = max(bound, min(means))  # one sample at least is kept
        kept = torch.tensor([float(mean <= bound) for mean in means], device=logits.device)
        return Lesson(batch.label, kept)

    def _see(self, case: str, score: float) -> None:
        self.seen += 1
        self.level += (score - self.level) / min(self.seen, _LEVEL_MEMORY)
        relative = score / max(self.level, 1e-8)
        visits = self.visits.get(case, 0) + 1
        mean = self.means.get(case, 0.0)
        self.means[case] = mean + (relative - mean) / min(visits, _CASE_MEMORY)
        self.visits[case] = visits

    def state(self) -> dict[str, Any]:
        """Return the running means."""
        return {
            "seen": self.seen,
            "level": self.level,
            "means": dict(self.means),
            "visits": dict(self.visits),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from saved means."""
        self.seen = int(state["seen"])
        self.level = float(state["level"])
        self.means = dict(state["means"])
        self.visits = dict(state["visits"])
