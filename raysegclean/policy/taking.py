"""How voxels take another class, and the reason for it; shared by all edits."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from raysegclean.policy.edits import Reason
from raysegclean.voxels.channels import CHANNELS

__all__ = ["take", "take_open"]

Label = NDArray[np.uint8]


def take(
    label: Label,
    reason: NDArray[np.uint8],
    new: Label,
    where: NDArray[np.bool_],
    why: Reason | NDArray[np.uint8],
) -> None:
    """Write `new` and the reason into both arrays, in place; all have axes z, y, x."""
    label[where] = new[where]
    reason[where] = np.broadcast_to(np.asarray(why, np.uint8), where.shape)[where]


def take_open(
    label: Label,
    reason: NDArray[np.uint8],
    given: Label,
    new: Label,
    where: NDArray[np.bool_],
    reasons: Mapping[int, Reason],
) -> None:
    """Do so where every foreground class of the change from `given` is one of `reasons`.

    The reason is that of the given class, or of the new one where the given is background. `given`
    may be the `label` that is written.
    """
    codes = np.zeros(CHANNELS, np.uint8)
    for channel, why in reasons.items():
        codes[channel] = why
    is_open = codes > 0
    is_open[0] = True
    where = where & is_open[given] & is_open[new]
    take(label, reason, new, where, codes[np.where(given > 0, given, new)])
