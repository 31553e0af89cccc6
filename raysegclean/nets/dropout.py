"""Channel dropout whose masks are a function of names and numbers, never of a hidden state.

A mask is drawn by the counter-based generator Philox (Salmon et al., SC 2011) from a hash of
(key, layer name), so it is the same in every window, process and device, on every resume, and
does not depend on how many random numbers anything else has used. Whole channels are dropped
(Tompson et al., CVPR 2015), because dropping single voxels of a correlated feature map changes
little and would make the answer depend on the window.

Guaranteed: the masks of a key never change between versions of numpy (only raw 64-bit output is
used). Not guaranteed: statistical independence between keys beyond that of the hash.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

__all__ = ["ChannelDropout", "channel_mask", "dropout_masks"]

_UNIT = 2.0**-53


def channel_mask(
    key: tuple[int, ...], layer: str, shape: tuple[int, int], drop: float
) -> NDArray[np.float32]:
    """Return scales of `shape` (samples, channels): 0 where dropped, else 1 / (1 - drop).

    Depends on nothing but the arguments.

    >>> channel_mask((7, 0), "up0", (1, 4), 0.5).tolist()
    [[0.0, 2.0, 2.0, 0.0]]
    """
    text = "/".join([*(str(int(k)) for k in key), layer])
    digest = blake2b(text.encode(), digest_size=16).digest()
    raw = np.random.Philox(key=int.from_bytes(digest, "little")).random_raw(shape[0] * shape[1])
    uniform = (raw >> np.uint64(11)).astype(np.float64) * _UNIT
    kept = np.where(uniform >= drop, np.float32(1.0 / (1.0 - drop)), np.float32(0.0))
    return kept.reshape(shape).astype(np.float32)


class ChannelDropout(nn.Module):
    """Multiply channels by the mask of the current key; the identity while there is no key.

    It ignores `train()` and `eval()`: only `dropout_masks` switches it on, so that a network used
    as an ensemble member can never drop channels by accident.
    """

    def __init__(self, drop: float, layer: str) -> None:
        super().__init__()
        self.drop = drop
        self.layer = layer
        self.key: tuple[int, ...] | None = None
        self.per_sample = False

    def forward(self, features: Tensor) -> Tensor:
        """Scale the channels of (B, C, Z, Y, X)."""
        if self.key is None or self.drop == 0.0:
            return features
        samples, channels = features.shape[:2]
        rows = samples if self.per_sample else 1
        mask = torch.from_numpy(channel_mask(self.key, self.layer, (rows, channels), self.drop))
        return features * mask.to(features)[:, :, None, None, None]


@contextmanager
def dropout_masks(
    net: nn.Module, key: tuple[int, ...], *, per_sample: bool = False
) -> Iterator[None]:
    """Use the masks of `key` in every dropout layer of `net` while the context lasts.

    At inference the key is (seed, pass) and all samples share a mask. In training it names the
    step as well, and each sample of the batch has its own mask (`per_sample`).
    """
    layers = [module for module in net.modules() if isinstance(module, ChannelDropout)]
    for layer in layers:
        layer.key, layer.per_sample = key, per_sample
    try:
        yield
    finally:
        for layer in layers:
            layer.key, layer.per_sample = None, False
