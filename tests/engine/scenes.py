"""Small archives and lent networks, so that engine tests spend their time on the engine.

`lend_networks` makes a run folder that holds finished networks with random weights: what they
predict is nonsense, but it is the same nonsense on every tile, worker and resume, which is what
the tests are about.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from raysegclean.cluster.train_loop import model_key
from raysegclean.config.settings import Config, make_config
from raysegclean.nets.networks import build_network
from raysegclean.nets.unet import NetworkSpec
from raysegclean.nets.weights import save_network
from raysegclean.runs.preflight import prepare
from raysegclean.store.archive import Archive, write_case
from raysegclean.store.run import RunFolder
from raysegclean.voxels.geometry import Index3

LABEL = "organs"
NETWORK = {"widths": [4, 8], "strides": [[1, 2, 2]], "dropout": 0.2}
BY_INTENSITY = {"name": "tests.engine.scenes:by_intensity", "widths": [4], "strides": []}
"""The network that `teach` teaches."""


@dataclass
class Chosen:
    """What fixtures choose for the configs of their tests."""

    executor: str = "ray"


chosen = Chosen()


@dataclass(frozen=True)
class Scene:
    """Shape and spacing of one case to be."""

    case: str
    shape_zyx: Index3
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)


def two_blobs(scene: Scene, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return image and label of a case with two classes; every case another place and noise."""
    rng = np.random.default_rng([seed, *scene.shape_zyx])
    grids = np.meshgrid(*(np.linspace(-1, 1, n) for n in scene.shape_zyx), indexing="ij")
    label = np.zeros(scene.shape_zyx, np.uint8)
    for value in (1, 2):
        centre = rng.uniform(-0.4, 0.4, 3)
        distance = sum((g - c) ** 2 for g, c in zip(grids, centre, strict=True))
        label[distance < rng.uniform(0.15, 0.3)] = value
    image = label * 60.0 + rng.normal(0, 20, scene.shape_zyx)
    return image.astype(np.int16), label


def write_archive(uri: str | Path, scenes: Sequence[Scene], seed: int = 0) -> Archive:
    """Write the scenes as an archive with the label `organs`."""
    archive = Archive.open(str(uri))
    for number, scene in enumerate(scenes):
        image, label = two_blobs(scene, seed + number)
        write_case(archive, scene.case, image, {LABEL: label}, spacing_mm=scene.spacing_mm)
    return archive


def config_for(archive: Archive, run: str | Path, **changes: Any) -> Config:
    """Return a config on `archive` with the small network; `changes` are dotted settings."""
    values: dict[str, Any] = {
        "archive": archive.store.uri,
        "label": LABEL,
        "run": str(run),
        "group": "case",
        "network": NETWORK,
        "train": {"steps": 8, "batch": 2, "patch_zyx": [8, 16, 16]},
        "params": {},
        "resources": {"executor": chosen.executor},
    }
    for name, value in changes.items():
        place, *rest = name.split("__")
        if rest:
            values.setdefault(place, {})[rest[0]] = value
        else:
            values[place] = value
    return make_config(values)


def lend_networks(config: Config, uri: str | Path) -> str:
    """Write a run folder with random finished networks for `config`; return its URI."""
    prepared = prepare(config)
    plan = prepared.plan(config, gpu=False)
    run = RunFolder(str(uri))
    key = plan.train_key()
    run.freeze({"identity": {}, "plan": plan.to_json(), "train_key": key})
    for fold in range(plan.folds):
        for member in range(plan.voters.members):
            network = build_network(plan.network, seed=100 * fold + member)
            run.store.put(model_key(key, fold, member), save_network(network, plan.network))
    return run.uri


def outputs(config: Config) -> Mapping[str, tuple[bytes, bytes]]:
    """Return the published label and reasons of every case, as bytes."""
    archive = Archive.open(config.archive)
    name = config.output.label
    return {
        case: (
            archive.label(case, name).read_all().tobytes(),
            archive.label(case, f"{name}.reason").read_all().tobytes(),
        )
        for case in archive.case_ids()
        if name in archive.label_names(case)
    }


class ByIntensity(nn.Module):
    """Knows the class from the intensity alone, and is sure of it."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.head = nn.Conv3d(1, spec.classes, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits: for each class a line that lies highest near the class's intensity."""
        logits: torch.Tensor = self.head(image)
        return logits


def by_intensity(spec: NetworkSpec) -> nn.Module:
    """Build it, as the config names it."""
    return ByIntensity(spec)


def teach(config: Config, lender: str, archive: Archive) -> None:
    """Write networks that know the intensities of the classes in the place of random ones."""
    prepared = prepare(config)
    plan = prepared.plan(config, gpu=False)
    case = plan.cases[0]
    values = plan.normaliser.apply(archive.image(case.case).read_all()[None], case.intensity)[0]
    label = archive.label(case.case, LABEL).read_all()
    levels = torch.tensor([float(values[label == value].mean()) for value in plan.classes])
    network = build_network(plan.network, seed=0)
    with torch.no_grad():
        # -50 (x - level)^2 less what all classes share, which is no matter to a softmax.
        network.head.weight.copy_(100 * levels.reshape(-1, 1, 1, 1, 1))
        network.head.bias.copy_(-50 * levels**2)
    for fold in range(plan.folds):
        for member in range(plan.voters.members):
            key = model_key(plan.train_key(), fold, member)
            RunFolder(lender).store.put(key, save_network(network, plan.network))


def taught_run(archive: Archive, folder: Path, **settings: Any) -> Config:
    """Return the config of a run whose lent networks know the intensities of the classes."""
    lent = config_for(archive, folder / "none", **settings)
    lender = lend_networks(lent, folder / "lender")
    teach(lent, lender, archive)
    return config_for(archive, folder / "run", models=lender, **settings)
