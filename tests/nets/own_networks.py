"""Networks as users bring them, good ones and bad ones; named as `tests.nets.own_networks:NAME`."""

import torch
from torch import nn
from torch.nn import functional as F

from raysegclean.nets.unet import NetworkSpec, UNet

PATH = "tests.nets.own_networks"


class Plain(nn.Module):
    """Convolutions, and nothing that the engine knows by name."""

    def __init__(self, spec: NetworkSpec, norm: type[nn.Module] | None = None) -> None:
        super().__init__()
        width = spec.widths[0]
        self.first = nn.Conv3d(spec.in_channels, width, spec.kernel_zyx, padding="same")
        self.norm = norm(width) if norm else nn.Identity()
        self.second = nn.Conv3d(width, spec.classes, spec.kernel_zyx, padding="same")

    def forward(self, image):
        return self.second(F.relu(self.norm(self.first(image))))


class Pooling(nn.Module):
    """Max pooling down and trilinear interpolation up, which look further than kernel = stride."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.stride_zyx = spec.stride_zyx
        width = spec.widths[0]
        self.first = nn.Conv3d(spec.in_channels, width, 3, padding=1)
        self.deep = nn.Conv3d(width, width, 3, padding=1)
        self.last = nn.Conv3d(2 * width, spec.classes, 1)

    def forward(self, image):
        fine = F.relu(self.first(image))
        coarse = F.relu(self.deep(F.max_pool3d(fine, self.stride_zyx)))
        up = F.interpolate(coarse, image.shape[2:], mode="trilinear")
        return self.last(torch.cat([fine, up], dim=1))


class Placed(Plain):
    """Adds where it is: the same window elsewhere in it has another answer."""

    def forward(self, image):
        ramp = torch.arange(image.shape[-1], dtype=image.dtype, device=image.device)
        return super().forward(image) + 0.1 * ramp


class Gated(Plain):
    """Adds the mean of its window, as far as a learnt number says; none at first."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, image):
        return super().forward(image) + self.gate * image.mean(dim=(2, 3, 4), keepdim=True)


class Squeezed(Plain):
    """Squeeze and excitation: channels are weighed by their mean over the window."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        width = spec.widths[0]
        self.squeeze = nn.Conv3d(width, width // 4, 1)
        self.excite = nn.Conv3d(width // 4, width, 1)

    def forward(self, image):
        found = F.relu(self.first(image))
        weights = self.excite(F.relu(self.squeeze(found.mean(dim=(2, 3, 4), keepdim=True))))
        return self.second(found * torch.sigmoid(weights))


class Forgetful(Plain):
    """Plain dropout, which draws from torch's generator."""

    def forward(self, image):
        return self.second(F.dropout(F.relu(self.first(image)), 0.5, self.training))


class Restless(Plain):
    """Drops values while it is asked, too."""

    def forward(self, image):
        return F.dropout(super().forward(image), 0.5, training=True)


class Slices(nn.Module):
    """Two-dimensional layers, over the slices of a window."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(spec.in_channels, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, spec.classes, 1),
        )

    def forward(self, image):
        slices = image.transpose(1, 2).flatten(0, 1)
        logits = self.layers(slices)
        return logits.unflatten(0, (len(image), -1)).transpose(1, 2)


def unkept(spec):
    return Plain(spec, lambda width: nn.BatchNorm3d(width, track_running_stats=False))


def restless(spec):
    return Restless(spec)


def slices(spec):
    return Slices(spec)


def plain(spec):
    return Plain(spec)


def pooling(spec):
    return Pooling(spec)


def instance(spec):
    return Plain(spec, lambda width: nn.InstanceNorm3d(width, affine=True))


def batch(spec):
    return Plain(spec, nn.BatchNorm3d)


def placed(spec):
    return Placed(spec)


def gated(spec):
    return Gated(spec)


def squeezed(spec):
    return Squeezed(spec)


def forgetful(spec):
    return Forgetful(spec)


class Hidden(nn.Module):
    """A U-Net that shows nothing but its forward pass."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.inner = UNet(spec)

    def forward(self, image):
        return self.inner(image)


def hidden(spec):
    return Hidden(spec)


def unbuilt(spec: NetworkSpec) -> nn.Module:
    return nn.Conv3d(spec.in_channels, spec.classes, kernel=3)  # it is kernel_size


def no_module(spec):
    return "a network"


def several_outputs(spec):
    net = Plain(spec)
    net.register_forward_hook(lambda module, inputs, out: [out, out])
    return net


def too_few_classes(spec):
    return nn.Conv3d(spec.in_channels, spec.classes - 1, 1)


def shrinking(spec):
    return nn.Conv3d(spec.in_channels, spec.classes, 3)


def breaking(spec):
    net = Plain(spec)
    net.register_forward_pre_hook(lambda module, inputs: 1 / 0)
    return net


def unseeded(spec):
    net = Plain(spec)
    with torch.no_grad():
        net.first.bias.fill_(float(torch.Generator().seed() % 1000))
    return net


NOT_CALLABLE = 3


def dynunet(spec, norm="INSTANCE"):
    """MONAI's form of nnU-Net's network."""
    from monai.networks.nets import DynUNet

    strides = [(1, 1, 1), *spec.strides]
    return DynUNet(
        spatial_dims=3,
        in_channels=spec.in_channels,
        out_channels=spec.classes,
        kernel_size=[spec.kernel_zyx for _ in strides],
        strides=strides,
        upsample_kernel_size=strides[1:],
        filters=spec.widths,
        norm_name=(norm, {"affine": True}),
    )


def dynunet_batch(spec):
    return dynunet(spec, "BATCH")
