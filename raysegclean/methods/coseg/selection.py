"""Which samples of a batch are worth learning from: Co-Seg's selection by small loss.

Not guaranteed: that a dropped sample is wrong; a hard but right case looks the same.
"""

import math
from typing import Any

import torch

from raysegclean.errors import ConfigError
from raysegclean.nets.batch import Batch
from raysegclean.nets.losses import sample_score

__all__ = ["SmallLoss"]

_LEVEL_MEMORY = 50
"""Samples after which the running mean of all scores forgets."""


class SmallLoss:
    """Keep the samples of the `keep` share of cases that the network explains best.

    The score of a sample is its cross-entropy per foreground voxel (`sample_score`), divided by
    its running mean over all samples, because scores fall while a network learns and cases are
    seen at different times. Scores are averaged per case: a batch of four has no quantile, the
    cases seen so far have one. Nothing is dropped before `start_step`, in patches without
    foreground, or of cases not seen before.

    Source: Co-Seg (Huang et al. 2021, arXiv 2102.00523), step 2: alpha = keep = 1 - noise level.
    """

    def __init__(self, keep: float, start_step: int = 0, memory: int = 8) -> None:
        """`memory`: a case's mean forgets beyond about this many visits."""
        if not 0.0 < keep <= 1.0:
            raise ConfigError(f"train: keep must be in (0, 1], got {keep}; 1 keeps everything")
        self.keep = keep
        self.start_step = start_step
        self.memory = memory
        self.seen = 0
        self.level = 0.0
        self.means: dict[str, float] = {}
        self.visits: dict[str, int] = {}

    def on_batch(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Update the running means, then return (B,) 1 for samples to keep and 0 for the others."""
        scores = sample_score(logits, batch.label).tolist()
        for case, score in zip(batch.case, scores, strict=True):
            if not math.isnan(score):  # a patch without foreground has no opinion
                self._see(case, score)
        if batch.step < self.start_step or len(self.means) < 2:
            return torch.ones(len(batch.case), device=logits.device)
        bound = float(torch.quantile(torch.tensor(list(self.means.values())), self.keep))
        means = [self.means.get(case, 0.0) for case in batch.case]
        bound = max(bound, min(means))  # one sample at least is kept
        return torch.tensor([float(mean <= bound) for mean in means], device=logits.device)

    def _see(self, case: str, score: float) -> None:
        self.seen += 1
        self.level += (score - self.level) / min(self.seen, _LEVEL_MEMORY)
        relative = score / max(self.level, 1e-8)
        visits = self.visits.get(case, 0) + 1
        mean = self.means.get(case, 0.0)
        self.means[case] = mean + (relative - mean) / min(visits, self.memory)
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
