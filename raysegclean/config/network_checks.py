"""What no setting of the network can know by itself: which of them exclude each other."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from raysegclean.config.yaml_source import KeyPath

if TYPE_CHECKING:
    from raysegclean.config.settings import Config

__all__ = ["network_problems"]


def network_problems(config: "Config") -> Iterator[tuple[KeyPath, str]]:
    """Yield the path of the setting to change, and why."""
    network = config.network
    strides, widths = network.strides, network.widths
    if network.torchscript is not None and network.name != "unet":
        text = "a TorchScript file takes the place of a network. Keep one of name and torchscript."
        yield ("network", "torchscript"), text
    if network.torchscript is not None and config.models is not None:
        text = "networks of an earlier run vote already. Keep one of models and torchscript."
        yield ("network", "torchscript"), text
    own = network.torchscript is None
    if own and strides != "auto" and widths != "auto" and len(strides) != len(widths) - 1:
        text = f"expected {len(widths) - 1} triples for {len(widths)} widths; got {len(strides)}."
        yield ("network", "strides"), text
    if network.nnunet is not None:
        yield from _beside_nnunet(config)
    elif network.classes:
        text = "these are labels of an nnU-Net folder. Set network.nnunet, or leave them out."
        yield ("network", "classes"), text


def _beside_nnunet(config: "Config") -> Iterator[tuple[KeyPath, str]]:
    network, relabel = config.network, config.relabel
    others = {"name": network.name != "unet", "torchscript": network.torchscript is not None}
    for name in (name for name, is_set in others.items() if is_set):
        text = f"an nnU-Net folder takes the place of a network. Keep one of {name} and nnunet."
        yield ("network", name), text
    if config.models is not None:
        text = "networks of an earlier run vote already. Keep one of models and nnunet."
        yield ("network", "nnunet"), text
    text = "an nnU-Net folder says this itself. Leave it out, or drop network.nnunet."
    fixed = {"normalise": network.normalise != "auto", "widths": network.widths != "auto"}
    fixed |= {"spacing_mm": network.spacing_mm != "auto", "strides": network.strides != "auto"}
    for name in (name for name, is_set in fixed.items() if is_set):
        yield ("network", name), text
    windows = {"tile_zyx": relabel.tile_zyx != "auto", "halo": relabel.halo != "auto"}
    for name in (name for name, is_set in windows.items() if is_set):
        yield ("relabel", name), text
