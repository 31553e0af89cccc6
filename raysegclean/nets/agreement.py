"""Agreement of a network with given labels: Dice per class over a fixed sample of patches.

Measured while the network learns, and of no effect on what it learns: no weight, no statistic and
no random state is touched.

Before its batch statistics are frozen, a network is asked with the statistics of the patches that
it is asked of, which are drawn and put together as those that it learns from. Its running
statistics would lag behind weights that move at the full rate, and tell of them, not of what was
learnt.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from raysegclean.nets.scales import unmoved_statistics
from raysegclean.voxels.channels import IGNORE

__all__ = ["Dices", "asked", "dice_of", "hits", "mean_dice"]

Dices = tuple[float, ...]
"""Dice of each class but the background; NaN where the sample has no voxel of it."""


@contextmanager
def asked(net: nn.Module, *, frozen: bool) -> Iterator[None]:
    """Ask `net` without teaching it; `frozen` tells whether its batch statistics are final."""
    net.eval()
    for module in () if frozen else net.modules():
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            module.train()
    with torch.no_grad(), unmoved_statistics(net):
        yield


def hits(logits: Tensor, label: Tensor) -> Tensor:
    """Return (3, K) float64 counts of voxels: hit, predicted and given, of each class.

    logits (B, K, Z, Y, X), label (B, Z, Y, X); voxels of `IGNORE` are not counted.
    """
    classes, known = logits.shape[1], label != IGNORE
    given, predicted = label[known], logits.argmax(dim=1)[known]
    kinds = (given[given == predicted], predicted, given)
    return torch.stack([torch.bincount(kind, minlength=classes) for kind in kinds]).double()


def dice_of(counts: Tensor) -> Dices:
    """Return the Dice of each class from the sums of what `hits` returns."""
    rows = zip(*counts[:, 1:].tolist(), strict=True)
    return tuple(
        2 * hit / (predicted + given) if given else math.nan for hit, predicted, given in rows
    )


def mean_dice(dices: Dices) -> float:
    """Return the mean over the classes that the sample holds; 0 where it holds none."""
    known = [dice for dice in dices if not math.isnan(dice)]
    return math.fsum(known) / len(known) if known else 0.0
