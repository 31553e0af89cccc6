"""Small patches whose labels hold planted errors, and trainings that take seconds."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from raysegclean.nets.batch import Batch
from raysegclean.nets.hooks import HookSpec, Lesson
from raysegclean.nets.trainer import TrainConfig, Trainer
from raysegclean.nets.unet import NetworkSpec
from raysegclean.nets.weights import load_state, save_state
from raysegclean.voxels.channels import IGNORE

SPEC = NetworkSpec(classes=3, widths=(4, 6), strides=((2, 2, 2),), dropout=0.1)
SIDE = 12


@dataclass(frozen=True)
class Scene:
    """One step: what the network sees, what it is told, and what is true."""

    batch: Batch
    truth: torch.Tensor

    @property
    def wrong(self) -> torch.Tensor:
        """Where the given label is not the truth."""
        return (self.batch.label != self.truth) & (self.batch.label != IGNORE)


def scene_at(step: int) -> Scene:
    """Return a bright and a dark block on noise, in four cases; a pure function of the step.

    Labels of case "cut" lack half of the bright block (class 1), those of case "lacks" all of the
    dark one (class 2), those of case "salted" a tenth of all voxels, drawn anew.
    """
    rng = np.random.default_rng(step)
    truth = np.zeros((4, SIDE, SIDE, SIDE), np.int64)
    for sample in range(4):
        z, y, x = rng.integers(0, SIDE - 5, 3)
        truth[sample, z : z + 6, y : y + 6, x // 2 : x // 2 + 4] = 1
        truth[sample, z : z + 5, y : y + 5, 8:] = 2
    image = rng.normal(0, 0.5, truth.shape) + 2.0 * (truth == 1) - 2.0 * (truth == 2)
    label = truth.copy()
    halves = np.arange(SIDE)[:, None, None] < np.array(
        [np.median(np.nonzero(one == 1)[0]) for one in truth]
    ).reshape(4, 1, 1, 1)
    label[1][(truth[1] == 1) & halves[1]] = 0
    label[2][truth[2] == 2] = 0
    salted = rng.random(truth[3].shape) < 0.1
    label[3][salted] = (truth[3][salted] + rng.integers(1, 3, salted.sum())) % 3
    label[:, 0, 0, 0] = IGNORE
    batch = Batch(
        torch.from_numpy(image[:, None].astype(np.float32)),
        torch.from_numpy(label),
        ["clean", "cut", "lacks", "salted"],
        step,
        [False, False, True, True],
    )
    return Scene(batch, torch.from_numpy(truth))


PRESENT = {"clean": (0, 1, 2), "cut": (0, 1, 2), "lacks": (0, 1), "salted": (0, 1, 2)}
SPACING_MM = dict.fromkeys(PRESENT, (1.0, 1.0, 1.0))


def trainer_of(hook: HookSpec, steps: int, spec: NetworkSpec = SPEC, **changes) -> Trainer:
    usual = {"steps": steps, "batch": 4, "seed": 5, "hook": hook, "epoch_steps": steps // 10}
    config = TrainConfig(**(usual | changes))
    return Trainer(spec, config, present=PRESENT, spacing_mm=SPACING_MM)


def run(
    trainer: Trainer, stop: int, scenes: Callable[[int], Scene] = scene_at
) -> Iterator[tuple[Scene, Lesson]]:
    """Train up to `stop`; yield what each step was, and its lesson where it had one."""
    hook = trainer.members[0].hook
    taken: list[Lesson] = []
    teach = hook.lesson

    def listen(*args) -> Lesson:
        taken.append(teach(*args))
        return taken[-1]

    hook.lesson = listen
    while trainer.at_step < stop:
        scene = scenes(trainer.at_step)
        trainer.step(scene.batch)
        if taken:
            yield scene, taken.pop()


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.nets[0].state_dict().items()}


def assert_resumes_alike(
    hook: HookSpec,
    steps: int,
    halves: list[int],
    scenes: Callable[[int], Scene] = scene_at,
    **changes,
) -> None:
    """Train through, and on from what was saved at each of `halves`: the same bits, memory too."""
    straight, saved = trainer_of(hook, steps, **changes), {}
    for half in halves:
        list(run(straight, half, scenes))
        saved[half] = save_state(straight.state())
    list(run(straight, steps, scenes))
    for half, state in saved.items():
        second = trainer_of(hook, steps, **changes)
        second.load(load_state(state))
        assert second.at_step == half
        list(run(second, steps, scenes))
        for name, value in weights_of(straight).items():
            assert torch.equal(value, weights_of(second)[name]), (half, name)
        assert second.members[0].hook.state() == straight.members[0].hook.state()
