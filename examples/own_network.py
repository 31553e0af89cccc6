"""A network of your own: residual blocks at one resolution, dilated instead of strided.

Run it with `network: {name: "own_network:build"}` and this folder on PYTHONPATH;
docs/own-network.md explains what is asked of it.
"""

import torch
from torch import nn

from raysegclean.nets.dropout import ChannelDropout
from raysegclean.nets.unet import NetworkSpec


class Block(nn.Module):
    """Two convolutions and a way around them; the size stays."""

    def __init__(self, width: int, dilation: int, spec: NetworkSpec, name: str) -> None:
        super().__init__()
        kernel = spec.kernel_zyx  # (1, 3, 3) where `network.dims` is 2
        self.body = nn.Sequential(
            nn.Conv3d(width, width, kernel, padding="same", dilation=dilation, bias=False),
            nn.BatchNorm3d(width),
            nn.LeakyReLU(0.01),
            nn.Conv3d(width, width, kernel, padding="same", bias=False),
            nn.BatchNorm3d(width),
        )
        self.dropout = ChannelDropout(spec.dropout, name)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (B, C, Z, Y, X) to the same shape."""
        return self.dropout(nn.functional.leaky_relu(features + self.body(features), 0.01))


class Network(nn.Module):
    """(B, C, Z, Y, X) to logits (B, K, Z, Y, X)."""

    stride_zyx = (1, 1, 1)  # it never strides, whatever `network.strides` says

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        width = spec.widths[0]
        self.stem = nn.Conv3d(spec.in_channels, width, spec.kernel_zyx, padding="same")
        self.blocks = nn.Sequential(
            *(Block(width, 2**level, spec, f"block{level}") for level in range(len(spec.widths)))
        )
        self.head = nn.Conv3d(width, spec.classes, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return self.head(self.blocks(self.stem(image)))


def build(spec: NetworkSpec) -> nn.Module:
    """Return a fresh network; its weights come from torch's global random state, as usual."""
    return Network(spec)
