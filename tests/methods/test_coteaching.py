"""Co-teaching on voxels: exactly the share, within the class, the same on every resume."""

import queue
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegclean.errors import ConfigError
from raysegclean.methods.base import load_method, make_params
from raysegclean.methods.coteaching.hook import without_largest
from raysegclean.methods.coteaching.method import COTEACHING
from raysegclean.nets.batch import Batch
from raysegclean.nets.hooks import HookContext, HookSpec, make_hook
from raysegclean.nets.losses import segmentation_loss
from raysegclean.nets.trainer import Place, TrainConfig, Trainer
from raysegclean.voxels.channels import IGNORE

from .training_scenes import SPEC, assert_resumes_alike, run, scene_at, trainer_of

pytestmark = pytest.mark.numeric
torch.set_num_threads(1)

PATH = "coteaching"
CONTEXT = HookContext(classes=3, steps=100, epoch_steps=10, loss=segmentation_loss)


def hook_of(**params) -> HookSpec:
    return HookSpec.of(PATH, **params)


def lesson_of(logits: np.ndarray, label: np.ndarray, step: int, **params) -> np.ndarray:
    hook = make_hook(hook_of(**params), CONTEXT)
    logits = torch.from_numpy(logits.astype(np.float32))
    batch = Batch(torch.zeros(2, 1, 1, 1, 1), torch.from_numpy(label), ["a", "b"], step)
    lesson = hook.lesson(torch.nn.Identity(), logits, batch)
    assert torch.equal(lesson.weights, torch.ones(2))
    return lesson.label.numpy()


def entropies(logits: np.ndarray, label: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float32).astype(np.float64)
    log_prob = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    taken = np.take_along_axis(log_prob, np.maximum(label, 0)[:, None], axis=1)[:, 0]
    return -taken


@settings(max_examples=60)
@given(
    st.integers(0, 2**31),
    st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9]),
    st.integers(0, 40),
    st.sampled_from([(0, 1, 2), (0, 1), (0,), (2,), (IGNORE,)]),
)
def test_each_class_keeps_exactly_its_share_and_the_best_of_it(seed, forget, step, classes) -> None:
    rng = np.random.default_rng(seed)
    label = rng.choice([*classes, IGNORE], (2, 3, 4, 5))
    logits = rng.normal(size=(2, 3, 3, 4, 5)) * 3
    share = forget * min(1.0, step / 20)
    new = lesson_of(logits, label, step, forget=forget, ramp_epochs=2.0)
    cost = entropies(logits, label)
    foreground = int((label > 0).sum())
    for channel in (0, 1, 2):
        mine = label == channel
        kept = mine & (new == channel)
        voxels = foreground if channel == 0 and foreground < mine.sum() else int(mine.sum())
        assert mine.sum() - kept.sum() == int(share * voxels + 1e-9)
        if kept.any() and (mine & ~kept).any():
            assert cost[kept].max() <= cost[mine & ~kept].min() + 1e-6
    assert ((new == label) | (new == IGNORE)).all()


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.sampled_from([0.1, 0.4]))
def test_the_published_rule_ranks_all_voxels_together(seed, forget) -> None:
    rng = np.random.default_rng(seed)
    label = rng.choice([0, 1, 2, IGNORE], (2, 3, 4, 5))
    logits = rng.normal(size=(2, 3, 3, 4, 5)) * 3
    new = lesson_of(logits, label, 99, forget=forget, by_class=False)
    known, cost = label != IGNORE, entropies(logits, label)
    worst = np.sort(cost[known])[known.sum() - int(forget * known.sum()) :]
    dropped = known & (new == IGNORE)
    np.testing.assert_allclose(np.sort(cost[dropped]), worst)


@pytest.mark.parametrize(("by_class", "lost"), [(True, 0.2), (False, 1.0)])
def test_a_small_organ_is_dropped_first_as_published_and_not_by_default(by_class, lost) -> None:
    # The network explains background well, and the organ, right as its label is, less well.
    label = np.zeros((2, 10, 10, 10), np.int64)
    label[:, :1] = 1
    logits = np.random.default_rng(0).normal(size=(2, 3, 10, 10, 10))
    logits[:, 0] += 8
    new = lesson_of(logits, label, 99, forget=0.2, by_class=by_class)
    assert ((new == IGNORE) & (label == 1)).sum() == lost * (label == 1).sum()


def test_of_equal_costs_the_later_voxel_is_dropped() -> None:
    label = torch.tensor([1, 0, 1, 1, IGNORE, 1])
    cost = torch.tensor([2.0, 9.0, 2.0, 1.0, 9.0, 2.0])
    assert without_largest(label, cost, label, [0, 2]).tolist() == [1, 0, -100, 1, -100, -100]
    assert label.tolist() == [1, 0, 1, 1, IGNORE, 1], "the batch's own label is left alone"


def test_a_background_that_is_large_loses_no_more_than_the_foreground() -> None:
    label = np.zeros((2, 10, 10, 10), np.int64)
    label[0, :2] = 1
    logits = np.random.default_rng(0).normal(size=(2, 3, 10, 10, 10))
    new = lesson_of(logits, label, 99, forget=0.2)
    assert ((new == IGNORE) & (label == 1)).sum() == 40
    assert ((new == IGNORE) & (label == 0)).sum() == 40


def test_nothing_is_dropped_at_first_and_the_share_grows_linearly() -> None:
    hook = make_hook(hook_of(forget=0.3, ramp_epochs=2.0), CONTEXT)
    assert [hook.forget_at(step) for step in (0, 5, 10, 20, 99)] == [0, 0.075, 0.15, 0.3, 0.3]
    assert make_hook(hook_of(forget=0.3, ramp_epochs=0.0), CONTEXT).forget_at(0) == 0.3


def test_wrong_voxels_are_dropped_more_often_than_right_ones() -> None:
    trainer = trainer_of(hook_of(forget=0.2, ramp_epochs=1.0), 80, peers=2)
    rates = []
    for scene, lesson in run(trainer, 60):
        if scene.batch.step >= 40:
            dropped = (lesson.label == IGNORE) & (scene.batch.label != IGNORE)
            right = (scene.batch.label == scene.truth) & (scene.batch.label != IGNORE)
            rates.append([float(dropped[where].float().mean()) for where in (scene.wrong, right)])
    wrong, right = np.mean(rates, axis=0)
    assert wrong > 4 * right


def test_a_resumed_training_is_the_same_bit_for_bit() -> None:
    assert_resumes_alike(hook_of(forget=0.3, ramp_epochs=2.0), 20, [1, 7, 16], peers=2)


def test_peers_in_one_process_equal_peers_in_two_ranks_bit_for_bit() -> None:
    config = TrainConfig(
        steps=12, batch=4, seed=5, peers=2, hook=hook_of(forget=0.3, ramp_epochs=1.0), epoch_steps=2
    )
    boxes = [queue.Queue(), queue.Queue()]

    class End:
        def __init__(self, peer: int) -> None:
            self.peer = peer

        def swap(self, picks):
            boxes[1 - self.peer].put(picks[self.peer].clone())
            return {self.peer: boxes[self.peer].get(timeout=60)}

    def go(trainer: Trainer) -> None:
        for step in range(12):
            trainer.step(scene_at(step).batch)

    together = Trainer(SPEC, config)
    go(together)
    ranks = [Trainer(SPEC, config, place=Place((peer,), End(peer))) for peer in (0, 1)]
    threads = [threading.Thread(target=go, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    for peer, rank in enumerate(ranks):
        for name, value in rank.nets[peer].state_dict().items():
            assert torch.equal(value, together.nets[peer].state_dict()[name]), (peer, name)


def test_the_method_has_two_peers_that_exchange_voxels() -> None:
    method = load_method("coteaching")
    assert method is COTEACHING
    default = method.voters(make_params(method, {}))
    assert default.members == 2
    assert default.hook == hook_of(forget=0.2, ramp_epochs=3.0, by_class=True)
    published = method.voters(make_params(method, {"rule": "published", "forget": 0.4}))
    assert published.hook == hook_of(forget=0.4, ramp_epochs=3.0, by_class=False)
    with pytest.raises(ConfigError, match="set peers: 2"):
        TrainConfig(steps=10, hook=default.hook)


@pytest.mark.parametrize(
    "values",
    [{"forget": 1.0}, {"forget": -0.1}, {"ramp_epochs": -1}, {"confidence": 0}, {"rule": "bold"}],
)
def test_values_outside_their_range_are_refused_by_name(values) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        make_params(COTEACHING, values)
