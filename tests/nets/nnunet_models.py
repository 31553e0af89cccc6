"""A small results folder of nnU-Net, as its trainer leaves it, with weights drawn at random."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

LABELS = {"background": 0, "Liver": 1, "left kidney": 2, "spleen": 3}
INTENSITIES = {"mean": 90.0, "std": 35.0, "percentile_00_5": -40.0, "percentile_99_5": 260.0}


def settings_of(name: str = "PlainConvUNet", dims: int = 3) -> dict[str, Any]:
    """Return the arguments of a small network as plans hold them."""
    blocks = "n_conv_per_stage" if name == "PlainConvUNet" else "n_blocks_per_stage"
    return {
        "n_stages": 2,
        "features_per_stage": [4, 6],
        "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
        "kernel_sizes": [[3] * dims, [3] * dims],
        "strides": [[1] * dims, [2] * dims],
        blocks: [1, 1],
        "n_conv_per_stage_decoder": [1],
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }


def plain_network(seed: int, outputs: int, name: str = "PlainConvUNet", dims: int = 3) -> nn.Module:
    """Return the package's own network, made without ours."""
    from dynamic_network_architectures.architectures import unet

    parts = {"conv_op": nn.Conv2d if dims == 2 else nn.Conv3d, "nonlin": nn.LeakyReLU}
    parts["norm_op"] = nn.InstanceNorm2d if dims == 2 else nn.InstanceNorm3d
    settings = settings_of(name, dims) | parts
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net: nn.Module = getattr(unet, name)(1, num_classes=outputs, **settings)
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.4)
    return net.eval()


def write_folder(
    folder: Path,
    *,
    folds: Sequence[str] = ("0",),
    labels: Mapping[str, Any] = LABELS,
    name: str = "PlainConvUNet",
    dims: int = 3,
    plans: Mapping[str, Any] | None = None,
    configuration: Mapping[str, Any] | None = None,
    dataset: Mapping[str, Any] | None = None,
    trainer: str = "nnUNetTrainer",
    weights_of: str = "PlainConvUNet",
) -> dict[str, Any]:
    """Write the folder; return the config's section that names it. Fold n has the seed n."""
    stem = "dynamic_network_architectures.architectures.unet."
    chosen = {
        "patch_size": [12, 16][:1] * (dims - 2) + [16, 16],
        "spacing": [2.0, 1.0, 1.0][-dims:],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "architecture": {"network_class_name": stem + name, "arch_kwargs": settings_of(name, dims)},
    }
    kind = "2d" if dims == 2 else "3d_fullres"
    document = {
        "configurations": {kind: chosen | dict(configuration or {})},
        "transpose_forward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {"0": INTENSITIES},
    }
    folder.mkdir(exist_ok=True)
    (folder / "plans.json").write_text(json.dumps(document | dict(plans or {})))
    (folder / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "CT"}, "labels": labels} | dict(dataset or {}))
    )
    outputs = len(set(labels) - {"ignore"})
    weights = name if weights_of == "PlainConvUNet" else weights_of
    for fold in folds:
        seed = int(fold) if fold.isdecimal() else 9
        state = {
            "network_weights": plain_network(seed, outputs, weights, dims).state_dict(),
            "logging": {"mean_fg_dice": [np.float64(0.5)], "ema": [np.float32(0.5)]},
            "_best_ema": np.float64(0.5),
            "current_epoch": 3,
            "init_args": {"configuration": kind, "fold": fold, "device": torch.device("cpu")},
            "trainer_name": trainer,
            "inference_allowed_mirroring_axes": (0, 1, 2),
        }
        (folder / f"fold_{fold}").mkdir(exist_ok=True)
        torch.save(state, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return {"nnunet": str(folder)}
