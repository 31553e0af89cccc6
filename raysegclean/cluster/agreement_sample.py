"""The fixed patches on which a training measures how far it agrees with labels it does not learn.

They are drawn as those that are learnt, with a key of their own, from the cases that the networks
will judge; half of them are centred on a voxel of some class, so rare classes are seen, too. They
are cut once and kept, in memory of no more than `MOST_BYTES`.

The cost: a patch that is only predicted takes about a third of one that is learnt. The sample is
measured every `STEPS_PER_BATCH` steps for each of its batches, so it takes a third of a step in
five, 7 % of the training, whatever its size; less where a method asks a network several times a
step.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from raysegclean.cluster.patches import PatchSource, Rows
from raysegclean.nets.batch import Batch

__all__ = ["AgreementSample"]

STEPS_PER_BATCH = 5
LEAST_STEPS = 25
LEAST_BATCHES, MOST_BATCHES = 4, 16
MOST_BYTES = 256 << 20


@dataclass(frozen=True)
class AgreementSample:
    """Batches as `PatchSource.cut` returns them: a data-parallel rank's part of each."""

    batches: tuple[Rows, ...]

    @classmethod
    def cut(cls, source: PatchSource, rank: int = 0, ranks: int = 1) -> "AgreementSample":
        """Cut the sample; patches of damaged cases are empty, and count for nothing."""
        count = batches_of(source)
        return cls(tuple(source.cut(number, rank, ranks) for number in range(count)))

    @property
    def every(self) -> int:
        """Steps from one evaluation to the next."""
        return max(LEAST_STEPS, STEPS_PER_BATCH * len(self.batches))

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches."""
        for number, rows in enumerate(self.batches):
            yield Batch(
                image=torch.from_numpy(rows["image"]),
                label=torch.from_numpy(rows["label"]).long(),
                case=[""] * len(rows["case"]),
                step=number,
            )


def batches_of(source: PatchSource) -> int:
    """Return how many batches draw each class once, on average, within bounds.

    A patch shows more classes than the one that it was drawn for.
    """
    wanted = -(-(len(source.classes) - 1) // ((source.batch + 1) // 2))
    room = MOST_BYTES // (source.batch * source.patch_bytes)
    return max(1, min(max(LEAST_BATCHES, min(wanted, MOST_BATCHES)), room))
