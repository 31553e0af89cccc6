"""A network that learns where classes are from which classes are present (Multi-SA).

The source (multi-layer self-attention for weakly supervised segmentation) is known to us by its
abstract alone: attach self-attention to several layers of a classifier, stack the attention maps,
threshold them into pseudo labels. The equations are the usual ones: CAM_c = w_c F,
A = softmax(Q K^T / sqrt(d)), M_c = mean over layers of resize(A CAM_c).

Two things differ, so that the answer does not depend on the window. Attention looks at a bounded
neighbourhood of a pooled grid, not at the whole image, which is also what makes it affordable in
three dimensions. And the threshold is a channel of its own: background is one learned number, so
that the maps are logits like any other network's, and argmax is the pseudo label.

Guaranteed: translation-equivariant at inference, with a finite receptive radius (receptive.py
measures it). Not guaranteed: outlines. The maps are as coarse as the grids they come from.
"""

import math
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raysegclean.nets.scales import resized
from raysegclean.nets.unet import ConvUnit, NetworkSpec
from raysegclean.voxels.geometry import Index3

__all__ = ["LocalAttention", "MultisaNet"]

_REACH: Index3 = (1, 2, 2)
"""Cells of a pooled grid that attention looks at to each side."""
_NEVER = -1e9


class LocalAttention(nn.Module):
    """Self-attention over a bounded neighbourhood of each cell: A V, with A = softmax(Q K^T)."""

    def __init__(self, channels: int, reach_zyx: Index3) -> None:
        super().__init__()
        self.reach_zyx = reach_zyx
        size = max(4, channels // 2)
        self.query = nn.Conv3d(channels, size, 1)
        self.key = nn.Conv3d(channels, size, 1)

    def forward(self, features: Tensor, values: Tensor) -> Tensor:
        """Return `values` (B, K, Z, Y, X) averaged by what `features` (B, C, Z, Y, X) resemble.

        Cells beyond the grid are not looked at.
        """
        query = self.query(features) / math.sqrt(self.query.out_channels)
        key, mask = self.key(features), torch.ones_like(features[:, :1])
        scores = torch.stack(
            [
                (query * near).sum(dim=1) + (1 - there[:, 0]) * _NEVER
                for near, there in zip(self._near(key), self._near(mask), strict=True)
            ]
        )
        weights = torch.softmax(scores, dim=0)
        out = torch.zeros_like(values)
        for weight, near in zip(weights, self._near(values), strict=True):
            out = out + weight[:, None] * near
        return out

    def _near(self, grid: Tensor) -> list[Tensor]:
        """Return the grid as seen from each cell by every neighbour; zero beyond its ends."""
        z, y, x = self.reach_zyx
        padded = F.pad(grid, (x, x, y, y, z, z))
        depth, height, width = grid.shape[2:]
        return [
            padded[:, :, dz : dz + depth, dy : dy + height, dx : dx + width]
            for dz, dy, dx in product(range(2 * z + 1), range(2 * y + 1), range(2 * x + 1))
        ]


class MultisaNet(nn.Module):
    """(B, C, Z, Y, X) to logits (B, K, Z, Y, X): background is constant, the others are maps."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        kernel, ones = spec.kernel_zyx, (1, 1, 1)
        reach = (0, *_REACH[1:]) if spec.dims == 2 else _REACH
        self.stride_zyx = spec.stride_zyx
        self.trunk = nn.ModuleList()
        self.attention = nn.ModuleList()
        self.maps = nn.ModuleList()
        before = spec.in_channels
        for level, width in enumerate(spec.widths):
            units = []
            if level:
                stride = spec.strides[level - 1]
                units.append(ConvUnit((before, before), stride, stride))
            units.append(ConvUnit((before, width), kernel, ones))
            units.append(ConvUnit((width, width), kernel, ones))
            self.trunk.append(nn.Sequential(*units))
            self.maps.append(nn.Conv3d(width, spec.classes - 1, 1))
            # The finest grid is not pooled; attention there would see grain, at the highest price.
            self.attention.append(LocalAttention(width, reach) if level else nn.Identity())
            before = width
        self.background = nn.Parameter(torch.zeros(1))

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        layers, features = [], image
        z, y, x = image.shape[2:]
        for trunk, head, attention in zip(self.trunk, self.maps, self.attention, strict=True):
            features = trunk(features)
            values = head(features)
            if isinstance(attention, LocalAttention):
                values = attention(features, values)
            layers.append(resized(values, (z, y, x)))
        stacked = torch.stack(layers).mean(dim=0)
        background = self.background.to(stacked).expand(stacked[:, :1].shape)
        return torch.cat([background, stacked], dim=1)
