"""What a hook needs that corrects or leaves out labels while a network learns: pure functions.

Nothing here is stored. A hook corrects the given label anew at every step, so a correction that the
network no longer believes in is gone, and a resumed training has nothing to restore.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysegclean.nets.batch import Batch
from raysegclean.voxels.channels import IGNORE

__all__ = ["batch_confusion", "corrected", "masked_mean", "passes_sieve", "present_classes"]

_TINY = 1e-8


def batch_confusion(logits: Tensor, label: Tensor) -> NDArray[np.int64]:
    """Return (K, K): voxels with given label i and predicted label j; unlabelled ones left out.

    logits: (B, K, Z, Y, X). label: (B, Z, Y, X).
    """
    classes = logits.shape[1]
    known = label != IGNORE
    pairs = label[known] * classes + logits.argmax(dim=1)[known]
    counts = torch.bincount(pairs, minlength=classes * classes).reshape(classes, classes)
    return np.asarray(counts.cpu().numpy(), np.int64)


def present_classes(batch: Batch, present: Mapping[str, Sequence[int]], classes: int) -> Tensor:
    """Return (B, K): the channels that the given label of each sample's whole case holds.

    `present` is `HookContext.present`; of a case that it lacks, only what the patch shows is known.
    """
    here = torch.zeros(len(batch.case), classes, dtype=torch.bool)
    here[:, 0] = True
    for row, case in enumerate(batch.case):
        shown = present[case] if case in present else batch.label[row].unique().tolist()  # type: ignore[no-untyped-call]  # torch
        here[row, [channel for channel in shown if channel != IGNORE]] = True
    return here.to(batch.label.device)


def corrected(prob: Tensor, label: Tensor, *, on: Tensor, present: Tensor, tau: float) -> Tensor:
    """Return the labels (B, Z, Y, X) with the network's class where it is sure enough.

    prob: (B, K, Z, Y, X). on: (K,) classes that may change. present: (B, K) classes of the case.
    Given and predicted class must each be on or background, and the predicted one present. A sample
    that would lose half of its foreground is left as given. Source: ADELE (Liu et al., CVPR 2022).
    """
    confidence, predicted = prob.max(dim=1)
    is_open = on.clone()
    is_open[0] = True
    samples = torch.arange(len(label), device=label.device)[:, None, None, None]
    change = (label != IGNORE) & (confidence > tau)
    change &= is_open[label.clamp(min=0)] & is_open[predicted] & present[samples, predicted]
    new = torch.where(change, predicted, label)
    before, after = ((one > 0).flatten(1).sum(dim=1) for one in (label, new))
    halved = (2 * after <= before) & (before > 0)
    return torch.where(halved[:, None, None, None], label, new)


def passes_sieve(logits: Tensor, label: Tensor, level: float = 0.5) -> Tensor:
    """Return (B, Z, Y, X) bool: log p(label) >= mean of log p over {label, predicted, background}.

    logits: (B, K, Z, Y, X). Each class counts once, as in `evidence.proposals.score_of`; voxels
    without a label pass. With two classes it is just "the prediction is the label". Below a `level`
    of one half a voxel passes unless it is disbelieved by so much: the level is that of the stored
    margin.
    """
    log_prob = torch.softmax(logits.float(), dim=1).clamp(min=_TINY).log()
    given = label.clamp(min=0)
    predicted = log_prob.argmax(dim=1)
    mine = log_prob.gather(1, given[:, None])[:, 0]
    best = log_prob.gather(1, predicted[:, None])[:, 0]
    third = (given != 0) & (predicted != 0)
    others = 1 + (predicted != given).int() + third.int()
    # Differences of close numbers are exact, sums are not.
    excess = (best - mine) * (predicted != given) + (log_prob[:, 0] - mine) * third
    return (label == IGNORE) | (excess <= others * math.log((1 - level) / level))


def masked_mean(values: Tensor, where: Tensor) -> Tensor:
    """Return (B,) means of (B, Z, Y, X) over the voxels that are marked; 0 where none is."""
    total = torch.where(where, values, values.new_zeros(())).flatten(1).sum(dim=1)
    return total / where.flatten(1).sum(dim=1).clamp(min=1)
