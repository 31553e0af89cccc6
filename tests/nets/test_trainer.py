"""The training loop: resumed, split over ranks and measured, it stays the same training."""

import queue
import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from raysegclean.errors import ConfigError, InputError
from raysegclean.nets.batch import Batch
from raysegclean.nets.hooks import Hook, HookContext, HookSpec, Lesson
from raysegclean.nets.place import LocalExchange, Place
from raysegclean.nets.trainer import TrainConfig, Trainer, TrainingDiverged, member_seed
from raysegclean.nets.unet import NetworkSpec
from raysegclean.nets.weights import load_state, save_state
from raysegclean.voxels.channels import IGNORE

pytestmark = pytest.mark.numeric
torch.set_num_threads(1)

SPEC = NetworkSpec(classes=2, widths=(4, 6), strides=((2, 2, 2),), dropout=0.3)
PLAIN = TrainConfig(steps=20, batch=4, seed=5)


def coseg(keep: float) -> HookSpec:
    return HookSpec.of("coseg", keep=keep, start_epoch=1)


COSEG = replace(PLAIN, peers=2, hook=coseg(0.5), epoch_steps=3)


def batch_at(step: int) -> Batch:
    """Return bright balls on noise, a pure function of the step; case c3 has a shifted label."""
    rng = np.random.default_rng(step)
    image = rng.normal(size=(4, 1, 8, 8, 8)).astype(np.float32)
    label = np.zeros((4, 8, 8, 8), np.int64)
    label[:, 2:6, 2:6, 2:6] = 1
    image[:, 0] += 2 * label
    label[3] = np.roll(label[3], 3, axis=0)
    label[:, 0, 0, 0] = IGNORE
    names = [f"c{i}" for i in range(4)]
    uniform = [False, False, True, True]
    return Batch(torch.from_numpy(image), torch.from_numpy(label), names, step, uniform)


def stream(start: int = 0) -> Iterator[Batch]:
    step = start
    while True:
        yield batch_at(step)
        step += 1


def run(trainer: Trainer, stop: int) -> Trainer:
    for batch in stream(trainer.at_step):
        if trainer.at_step == stop:
            return trainer
        trainer.step(batch)
    raise AssertionError


def assert_same(one: Trainer, other: Trainer) -> None:
    assert one.nets.keys() == other.nets.keys()
    for peer, net in one.nets.items():
        for name, value in net.state_dict().items():
            assert torch.equal(value, other.nets[peer].state_dict()[name]), (peer, name)


@pytest.mark.parametrize("config", [PLAIN, COSEG], ids=["plain", "coseg"])
def test_a_training_resumed_at_any_point_is_the_same_bit_for_bit(config) -> None:
    # Step 16 recalibrates batch statistics: resuming round that must work too.
    straight = Trainer(SPEC, config)
    saved = {half: save_state(run(straight, half).state()) for half in (1, 10, 15, 16, 17)}
    run(straight, 20)
    for half, state in saved.items():
        torch.rand(7)  # whatever else the new process does
        second = Trainer(SPEC, config)
        second.load(load_state(state))
        assert second.at_step == half
        assert_same(run(second, 20), straight)


class Wire:
    """Two ranks in two threads: each puts its picks and takes the other's."""

    def __init__(self) -> None:
        self.boxes = [queue.Queue(), queue.Queue()]

    def end(self, peer: int):
        wire = self

        class End:
            def swap(self, picks: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
                wire.boxes[1 - peer].put(picks[peer].clone())
                return {peer: wire.boxes[peer].get(timeout=60)}

            def mean(self, values: dict[int, torch.Tensor]) -> torch.Tensor:
                other = self.swap(values)[peer]
                pair = (values[peer], other) if peer == 0 else (other, values[peer])
                return torch.stack(pair).mean(dim=0)

        return End()


@pytest.mark.parametrize("hook", [coseg(0.5), HookSpec()], ids=["coseg", "plain"])
def test_peers_in_one_process_equal_peers_in_two_ranks_bit_for_bit(hook) -> None:
    config = replace(COSEG, hook=hook)
    together = run(Trainer(SPEC, config), 20)
    wire = Wire()
    ranks = [Trainer(SPEC, config, place=Place((peer,), wire.end(peer))) for peer in (0, 1)]
    threads = [threading.Thread(target=run, args=(rank, 20)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    for peer, rank in enumerate(ranks):
        for name, value in rank.nets[peer].state_dict().items():
            assert torch.equal(value, together.nets[peer].state_dict()[name]), (peer, name)


def test_peers_in_two_ranks_end_where_they_would_in_one_process() -> None:
    config = replace(COSEG, steps=40, max_steps=400, epoch_steps=4)
    together = run_open(Trainer(SPEC, config))
    wire = Wire()
    ranks = [Trainer(SPEC, config, place=Place((peer,), wire.end(peer))) for peer in (0, 1)]
    threads = [threading.Thread(target=run_open, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    for peer, rank in enumerate(ranks):
        assert rank.at_step == together.at_step < 400
        for name, value in rank.nets[peer].state_dict().items():
            assert torch.equal(value, together.nets[peer].state_dict()[name]), (peer, name)


def test_peers_choose_for_each_other() -> None:
    swapped = LocalExchange(2).swap({0: torch.tensor([1.0]), 1: torch.tensor([0.0])})
    assert swapped[0].item() == 0.0
    assert swapped[1].item() == 1.0


class Choosing(Hook):
    """Learns one sample, another one in every network, of a label that only it has."""

    exchanges = "samples"
    made = 0

    def __init__(self, context: HookContext) -> None:
        super().__init__(context)
        self.number = Choosing.made
        Choosing.made += 1
        self.learnt: list[Lesson] = []

    def lesson(self, net, logits, batch) -> Lesson:
        weights = torch.zeros(4)
        weights[self.number] = 1
        return Lesson(torch.full_like(batch.label, self.number), weights)

    def loss(self, net, logits, lesson, batch):
        self.learnt.append(lesson)
        return super().loss(net, logits, lesson, batch)


class ChoosingVoxels(Choosing):
    """The same, voxel by voxel."""

    exchanges = "voxels"


@pytest.mark.parametrize("kind", [Choosing, ChoosingVoxels])
def test_what_a_network_learns_is_what_its_peer_chose(kind) -> None:
    Choosing.made = 0
    hook = HookSpec.of(f"{__name__}:{kind.__name__}")
    trainer = Trainer(SPEC, replace(PLAIN, peers=2, hook=hook))
    batch = batch_at(0)
    trainer.step(batch)
    for peer, member in trainer.members.items():
        (lesson,) = member.hook.learnt
        chosen = 1 - peer
        assert lesson.weights.tolist() == [float(sample == chosen) for sample in range(4)]
        expected = torch.full_like(batch.label, chosen) if kind is ChoosingVoxels else batch.label
        assert torch.equal(lesson.label, expected)


def test_selection_starts_at_its_epoch_and_drops_the_wrong_case() -> None:
    trainer = Trainer(SPEC, replace(COSEG, steps=60, hook=coseg(0.7)))
    reports = [trainer.step(batch_at(step)) for step in range(60)]
    assert all(set(report.kept.values()) == {1.0} for report in reports[:3])
    late = [report.kept[0] for report in reports[30:45]]
    assert np.mean(late) == pytest.approx(0.75, abs=0.05)
    means = trainer.members[0].hook.state()["means"]
    assert max(means, key=means.get) == "c3"


def test_peers_start_apart_and_folds_too() -> None:
    seeds = {member_seed(5, fold, peer) for fold in (0, 1) for peer in (0, 1)}
    assert len(seeds) == 4
    nets = Trainer(SPEC, COSEG).nets
    assert not torch.equal(nets[0].head.weight, nets[1].head.weight)
    alone = Trainer(SPEC, PLAIN).nets[0]
    assert torch.equal(alone.head.weight, nets[0].head.weight), "more peers, same first member"


def test_the_network_learns() -> None:
    trainer = Trainer(SPEC, replace(PLAIN, steps=100))
    reports = [trainer.step(batch_at(step)) for step in range(100)]
    assert np.mean([report.losses[0] for report in reports[-5:]]) < 0.6 * reports[0].losses[0]


def test_statistics_are_recalibrated_on_uniform_samples_then_frozen() -> None:
    trainer = Trainer(SPEC, replace(PLAIN, steps=40))
    phases = trainer.members[0].course.phases
    assert (phases.recalibrate_at, phases.frozen_at) == (32, 34)
    run(trainer, 32)
    net = trainer.nets[0]
    weights = net.head.weight.clone()
    first = net.encoder[0].units[0]
    means, variances = [], []
    with torch.no_grad():
        for step in (32, 33):
            features = first.conv(batch_at(step).image[2:])  # the uniform half
            means.append(features.mean(dim=(0, 2, 3, 4)))
            variances.append(features.var(dim=(0, 2, 3, 4)))
    run(trainer, 34)
    assert torch.equal(net.head.weight, weights), "recalibrating must not learn"
    torch.testing.assert_close(first.norm.running_mean, sum(means) / 2)
    torch.testing.assert_close(first.norm.running_var, sum(variances) / 2)
    frozen = first.norm.running_mean.clone()
    run(trainer, 40)
    assert torch.equal(first.norm.running_mean, frozen)
    assert not torch.equal(net.head.weight, weights), "the rest of the steps learn on"


def test_ranks_that_draw_unequally_measure_what_all_uniform_samples_measure_together() -> None:
    # Of two ranks one draws nothing uniformly; it must not add its class-drawn patches.
    config = replace(PLAIN, steps=40)
    trainer = run(Trainer(SPEC, config), 32)
    first = trainer.nets[0].encoder[0].units[0]
    before = first.norm.running_mean.clone()

    class Other:
        """Stands for a rank that measured nothing: means count it with weight zero."""

        def mean_(self, tensors: list[torch.Tensor]) -> None:
            for tensor in tensors:
                tensor.div_(2)

    trainer.place = replace(trainer.place, replicas=Other())
    with torch.no_grad():
        seen = [first.conv(batch_at(step).image[2:]) for step in (32, 33)]
    expected = [features.mean(dim=(0, 2, 3, 4)) for features in seen]
    run(trainer, 34)
    torch.testing.assert_close(first.norm.running_mean, sum(expected) / 2)
    assert not torch.equal(first.norm.running_mean, before)


def test_a_batch_of_one_that_was_drawn_by_class_does_not_count() -> None:
    def one_at(step: int, *, uniform: bool) -> Batch:
        batch = batch_at(step)
        return Batch(batch.image[:1], batch.label[:1], ["c0"], step, [uniform])

    trainer = Trainer(SPEC, replace(PLAIN, steps=40, batch=1))
    for step in range(32):
        trainer.step(one_at(step, uniform=step % 2 == 1))
    first = trainer.nets[0].encoder[0].units[0]
    with torch.no_grad():
        expected = first.conv(batch_at(33).image[:1]).mean(dim=(0, 2, 3, 4))
    for step in (32, 33):
        trainer.step(one_at(step, uniform=step % 2 == 1))
    torch.testing.assert_close(first.norm.running_mean, expected)


def test_channels_are_dropped_in_training_but_not_while_recalibrating(monkeypatch) -> None:
    rates = []
    trainer = Trainer(SPEC, PLAIN)
    deep = trainer.nets[0].encoder[1].dropout
    deep.register_forward_hook(lambda _m, _i, out: rates.append((out == 0).float().mean().item()))
    run(trainer, 20)
    assert rates[16] < 0.01, "recalibration sees the whole network"
    assert max(rates[:16]) > 0.1


class MeanOfTwo:
    """Data-parallel ranks in two threads that really average."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(2)
        self.slots: dict[int, list[torch.Tensor]] = {}

    def end(self, rank: int):
        both = self

        class End:
            def mean_(self, tensors: list[torch.Tensor]) -> None:
                both.slots[rank] = [tensor.clone() for tensor in tensors]
                both.barrier.wait(60)
                for i, tensor in enumerate(tensors):
                    tensor.copy_((both.slots[0][i] + both.slots[1][i]) / 2)
                both.barrier.wait(60)

        return End()


def test_data_parallel_ranks_stay_equal() -> None:
    mean = MeanOfTwo()
    config = replace(PLAIN, steps=8)
    ranks = [
        Trainer(SPEC, config, place=Place((0,), LocalExchange(1), mean.end(r), rank=r))
        for r in (0, 1)
    ]

    def go(rank: int) -> None:
        for step in range(8):
            whole = batch_at(step)
            mine = slice(2 * rank, 2 * rank + 2)
            ranks[rank].step(
                Batch(whole.image[mine], whole.label[mine], whole.case[mine], step, [True, True])
            )

    threads = [threading.Thread(target=go, args=(r,)) for r in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    # The running statistics are made equal by recalibration, which is the last thing here.
    assert_same(*ranks)


def test_bf16_training_stays_finite_and_keeps_fp32_weights() -> None:
    trainer = run(Trainer(SPEC, replace(PLAIN, precision="bf16")), 20)
    for value in trainer.nets[0].state_dict().values():
        assert value.dtype in (torch.float32, torch.int64)
        assert torch.isfinite(value.float()).all()


OPEN = replace(PLAIN, steps=40, max_steps=400)
SAMPLE = [batch_at(step) for step in range(1000, 1003)]


def run_open(trainer: Trainer, stop: int = 10_000) -> Trainer:
    """Train, measuring every four steps, to the end or to `stop`."""
    for batch in stream(trainer.at_step):
        if trainer.at_step in (stop, trainer.steps):
            return trainer
        trainer.step(batch)
        if trainer.at_step % 4 == 0:
            trainer.judge(SAMPLE)
    raise AssertionError


@pytest.mark.parametrize("hook", [coseg(0.5), HookSpec()], ids=["coseg", "plain"])
def test_an_open_training_ends_early_and_resumed_at_any_point_it_is_the_same(hook) -> None:
    config = replace(OPEN, peers=2, hook=hook, epoch_steps=4)
    straight = Trainer(SPEC, config)
    assert straight.is_open
    saved = {half: save_state(run_open(straight, half).state()) for half in (6, 28, 41)}
    run_open(straight)
    assert not straight.is_open
    ends = {peer: member.course.phases.steps for peer, member in straight.members.items()}
    assert all(40 <= end < 400 for end in ends.values())
    assert len(set(ends.values())) == (1 if hook == coseg(0.5) else 2), "peers end together"
    for half, state in saved.items():
        second = Trainer(SPEC, config)
        second.load(load_state(state))
        assert_same(run_open(second), straight)
        assert second.at_step == straight.at_step, half


def test_a_network_ends_beside_another_as_it_would_alone() -> None:
    together = run_open(Trainer(SPEC, replace(OPEN, peers=2)))
    for peer in (0, 1):
        alone = run_open(
            Trainer(SPEC, replace(OPEN, peers=2), place=Place((peer,), LocalExchange(2)))
        )
        assert alone.at_step == together.members[peer].course.phases.steps
        for name, value in alone.nets[peer].state_dict().items():
            assert torch.equal(value, together.nets[peer].state_dict()[name]), (peer, name)


def test_a_budget_leaves_time_for_the_decay() -> None:
    trainer = run(Trainer(SPEC, replace(OPEN, budget_minutes=4.0)), 12)
    trainer.judge(SAMPLE, minutes=2.9)
    assert trainer.is_open
    trainer.judge(SAMPLE, minutes=3.0)
    assert (trainer.steps, trainer.members[0].course.ended_by) == (16, "time")


def test_the_wrong_batch_is_refused() -> None:
    with pytest.raises(InputError, match="batch is of step 3, the trainer is at 0"):
        Trainer(SPEC, PLAIN).step(batch_at(3))


def test_a_loss_that_is_no_number_stops_the_training_and_names_the_cases() -> None:
    broken = batch_at(0)
    broken.image[0, 0, 0, 0, 0] = torch.nan
    with pytest.raises(TrainingDiverged, match=r"step 0: the loss is nan on cases.*'c0'"):
        Trainer(SPEC, PLAIN).step(broken)


def test_a_gradient_that_is_no_number_stops_the_training_before_it_ruins_the_network() -> None:
    trainer = Trainer(SPEC, PLAIN)
    net = trainer.nets[0]
    net.head.weight.register_hook(lambda grad: grad * torch.nan)
    before = net.head.weight.detach().clone()
    with pytest.raises(TrainingDiverged, match=r"step 0: the gradient is not finite on cases.*c0"):
        trainer.step(batch_at(0))
    assert torch.equal(net.head.weight, before)


def test_a_checkpoint_of_other_peers_is_refused() -> None:
    state = Trainer(SPEC, PLAIN).state()
    with pytest.raises(InputError, match=r"it holds peers \['0'\], not \[1\]"):
        Trainer(SPEC, COSEG).load(state)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"hook": coseg(0.5)}, "set peers: 2"),
        ({"hook": coseg(0.5), "peers": 2, "batch": 1}, "batch must be at least 2 .* got 1"),
    ],
)
def test_impossible_settings_are_refused(values: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        TrainConfig(**{"steps": 10, **values})
