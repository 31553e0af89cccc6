"""The training loop, to be read aloud.

One step: every network hosted here reads the same batch; its hook turns what the network says of it
into a lesson (hooks.py); peers that teach each other swap lessons; each network learns its lesson.
No Ray, no files: batches come in, numbers go out, and `Trainer.state` is all that a checkpoint
needs.

The phases (schedule.py): learn with batch statistics at the full rate, then while the rate falls;
within that, only measure for a twentieth of the steps: recalibrate the running statistics of batch
norms on the uniformly drawn samples, by a plain cumulative average; then learn on in eval mode,
with those statistics frozen. Patches drawn by class have other statistics than the volumes that the
network will predict, and a network that is trained to the end on the former is wrong on the latter.
A network without batch norm has nothing to measure and learns on.

With an open end, networks that teach each other end together, by their mean agreement; all others
each by its own, as they would if they were trained apart.

Guaranteed, on CPU with a fixed number of threads: the same weights, bit for bit, whether training
ran through or was resumed at any step, and whether peers share a process or sit in two ranks.
All randomness is keyed by (seed, fold, peer, step, rank); there is no generator whose state could
be lost: one that a user's network draws from is seeded with the key. Not guaranteed: the same for
another number of data-parallel ranks, or on GPU.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from raysegclean.errors import ConfigError, InputError, RaysegcleanError
from raysegclean.nets.agreement import Dices, asked, dice_of, hits, mean_dice
from raysegclean.nets.batch import Batch
from raysegclean.nets.deep_supervision import CoarseHeads, deep_loss
from raysegclean.nets.dropout import dropout_masks
from raysegclean.nets.hooks import (
    PLAIN_HOOK,
    Hook,
    HookContext,
    HookSpec,
    Lesson,
    hook_class,
    make_hook,
)
from raysegclean.nets.losses import LOSSES
from raysegclean.nets.networks import UNET, build_network, prepare_network
from raysegclean.nets.place import LocalExchange, Place, Replicas
from raysegclean.nets.receptive import total_stride
from raysegclean.nets.schedule import Course
from raysegclean.nets.unet import NetworkSpec, UNet

__all__ = [
    "StepReport",
    "TrainConfig",
    "Trainer",
    "TrainingDiverged",
    "member_seed",
]

_CLIP_NORM = 5.0


class TrainingDiverged(RaysegcleanError):
    """The loss, or its gradient, is no longer a number."""


@dataclass(frozen=True)
class TrainConfig:
    """How long and how to train; lengths in steps, ranges as the config has them.

    steps: of the whole training; where `max_steps` is set, of the shortest one, which goes on as
    long as it pays and at most so far, or `budget_minutes`. hook: what the method does while
    training (hooks.py). loss: one of `losses.LOSSES`. augment: whether the caller changes patches
    at random (augment.py). deep_supervision: whether coarser levels learn as well. epoch_steps:
    what a hook counts as an epoch. threads: CPU threads of the worker (applied by
    `numerics.fix_numerics`, not here). checkpoint_every: steps, for the caller.
    """

    steps: int
    max_steps: int | None = None
    budget_minutes: float | None = None
    batch: int = 2
    lr: float = 1e-2
    weight_decay: float = 1e-4
    seed: int = 0
    epoch_steps: int = 50
    threads: int = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    peers: int = 1
    hook: HookSpec = PLAIN_HOOK
    loss: str = "ce_dice"
    augment: bool = False
    deep_supervision: bool = False
    checkpoint_every: int = 100

    def __post_init__(self) -> None:
        if self.exchanges == "samples" and self.batch < 2:
            raise ConfigError(
                f"train: batch must be at least 2 for {self.hook.name} to choose, got {self.batch}"
            )
        if self.exchanges != "nothing" and self.peers < 2:
            raise ConfigError(f"train: hook {self.hook.name} needs at least 2 peers; set peers: 2")

    @property
    def exchanges(self) -> str:
        """What the peers teach each other: nothing, samples or voxels."""
        return str(getattr(hook_class(self.hook), "exchanges", "nothing"))

    @property
    def needs_trusted(self) -> bool:
        """Whether the hook learns from patches of trusted cases beside each batch."""
        return bool(getattr(hook_class(self.hook), "needs_trusted", False))

    def identity(self) -> dict[str, Any]:
        """Return all but the bounds of an open end: a network that learns longer stays the same."""
        is_open = self.max_steps is not None
        found = asdict(self) | {"max_steps": is_open, "budget_minutes": None}
        if not self.deep_supervision:  # older networks do not say
            del found["deep_supervision"]
        return found

    @property
    def bound(self) -> int:
        """The most steps that it may take."""
        return self.steps if self.max_steps is None else max(self.steps, self.max_steps)


@dataclass(frozen=True)
class StepReport:
    """What one step did, by peer.

    kept: share of labelled voxels that were learnt from; 0 while recalibrating. lr: the largest.
    """

    step: int
    losses: dict[int, float]
    kept: dict[int, float]
    lr: float


def member_seed(*numbers: int) -> int:
    """Return a seed in [0, 2^63) that depends on `numbers`, such as (seed, fold, member)."""
    text = "/".join(str(int(number)) for number in numbers)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


class Member:
    """One network with what it needs to learn."""

    def __init__(
        self,
        net: nn.Module,
        config: TrainConfig,
        hook: Hook,
        device: str,
        heads: CoarseHeads | None = None,
    ) -> None:
        self.net = prepare_network(net, device)
        self.heads = None if heads is None else heads.to(device)
        self.weights = [*net.parameters(), *([] if heads is None else heads.parameters())]
        self.hook = hook
        self.course = Course.planned(config.steps, config.max_steps)
        self.optimiser = torch.optim.AdamW(
            self.weights, lr=config.lr, weight_decay=config.weight_decay, fused=True
        )

    @property
    def norms(self) -> list[_BatchNorm]:
        """The batch norms of the network that keep running statistics."""
        return [
            module
            for module in self.net.modules()
            if isinstance(module, _BatchNorm) and module.track_running_stats
        ]

    def learn(self, loss: Tensor, lr: float, replicas: Replicas) -> bool:
        """Take one optimiser step down the gradient of `loss`, averaged over replicas.

        Return whether the gradient was finite; else nothing was learnt.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        replicas.mean_([p.grad for p in self.weights if p.grad is not None])
        length = nn.utils.clip_grad_norm_(self.weights, _CLIP_NORM)
        if not torch.isfinite(length):
            return False
        self.optimiser.step()
        return True

    @property
    def measured(self) -> int:
        """Batches that the running statistics are the mean of, since they were reset."""
        counts = [norm.num_batches_tracked for norm in self.norms]
        return max((int(count) for count in counts if count is not None), default=0)

    def pool_statistics(self, replicas: Replicas) -> None:
        """Replace the running statistics by the mean over the batches of all replicas."""
        mean = torch.tensor(float(self.measured), device=next(self.net.parameters()).device)
        replicas.mean_([mean])
        share = self.measured / float(mean)  # exactly 1 where all have measured as much
        for norm in self.norms:
            found = [s for s in (norm.running_mean, norm.running_var) if s is not None]
            for statistic in found:
                statistic.mul_(share)
            replicas.mean_(found)

    def state(self) -> dict[str, Any]:
        """Return everything that the next step depends on."""
        return {
            "weights": self.net.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "hook": self.hook.state(),
            "course": self.course.state(),
        } | ({} if self.heads is None else {"heads": self.heads.state_dict()})

    def load(self, state: dict[str, Any], step: int) -> None:
        """Continue from `state`, which was saved after `step` steps."""
        self.net.load_state_dict(state["weights"])
        if self.heads is not None:
            self.heads.load_state_dict(state["heads"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.hook.load(state["hook"])
        self.course = self.course.gone_on(state["course"], step)


class Trainer:
    """The networks hosted at one place, and the step they have reached."""

    def __init__(
        self,
        spec: NetworkSpec,
        config: TrainConfig,
        *,
        fold: int = 0,
        place: Place | None = None,
        present: Mapping[str, tuple[int, ...]] | None = None,
        spacing_mm: Mapping[str, tuple[float, float, float]] | None = None,
    ) -> None:
        """Build fresh networks, each from its own seed (seed, fold, peer), each with its hook.

        `present` and `spacing_mm` are what hooks are told of the training cases (`HookContext`).
        """
        self.config = config
        self.fold = fold
        self._classes = spec.classes
        self.place = place or Place(tuple(range(config.peers)), LocalExchange(config.peers))
        self.at_step = 0
        self.draws = spec.name != UNET
        """Whether a network may draw random numbers of its own."""
        context = HookContext(
            classes=spec.classes,
            steps=config.steps,
            most_steps=config.bound,
            epoch_steps=config.epoch_steps,
            loss=LOSSES[config.loss],
            stride_zyx=total_stride(spec),
            present=present or {},
            spacing_mm=spacing_mm or {},
        )
        self.members = {
            peer: Member(
                build_network(spec, member_seed(config.seed, fold, peer)),
                config,
                make_hook(config.hook, context),
                self.place.device,
                CoarseHeads(spec, member_seed(config.seed, fold, peer, 1))
                if config.deep_supervision
                else None,
            )
            for peer in self.place.hosted
        }

    @property
    def nets(self) -> dict[int, nn.Module]:
        """The networks by peer."""
        return {peer: member.net for peer, member in self.members.items()}

    @property
    def steps(self) -> int:
        """Where training ends as far as it is known now."""
        return max(member.course.phases.steps for member in self.members.values())

    @property
    def is_open(self) -> bool:
        """Whether it may end before `steps`."""
        courses = (member.course for member in self.members.values())
        return any(course.is_undecided(self.at_step) for course in courses)

    def step(self, batch: Batch) -> StepReport:
        """Learn from one batch, or recalibrate on it; advance by one step.

        Networks that have ended do nothing.

        Raises InputError when the batch is not the one of this step, TrainingDiverged when a
        loss or its gradient is not finite, of which that network then has learnt nothing.
        """
        if batch.step != self.at_step:
            raise InputError(
                f"training: the batch is of step {batch.step}, the trainer is at {self.at_step}; "
                "start the stream at the checkpoint's step"
            )
        batch = batch.to(self.place.device)
        learning, measuring = [], []
        for peer, member in self.members.items():
            phases = member.course.phases
            if phases.recalibrate_at <= self.at_step < phases.frozen_at and member.norms:
                measuring.append(peer)
            elif self.at_step < phases.steps:
                learning.append(peer)
        self._recalibrate(batch, measuring)
        losses, kept = self._learn(batch, learning)
        lr = max((self._lr(peer) for peer in learning), default=0.0)
        report = StepReport(self.at_step, losses, dict.fromkeys(measuring, 0.0) | kept, lr)
        self.at_step += 1
        return report

    def _lr(self, peer: int) -> float:
        return self.config.lr * self.members[peer].course.phases.rate_at(self.at_step)

    def _learn(
        self, batch: Batch, learning: list[int]
    ) -> tuple[dict[int, float], dict[int, float]]:
        """Return the loss of each network, and the share of voxels that it learnt from.

        Networks that teach each other nothing learn one after the other: then only one holds what
        its gradient needs.
        """
        alone = self.config.exchanges == "nothing"
        told: dict[int, float] = {}
        kept: dict[int, float] = {}
        for peers in [[peer] for peer in learning] if alone or not learning else [learning]:
            losses, shares = self._learn_together(batch, peers)
            told, kept = told | losses, kept | shares
        return told, kept

    def _learn_together(
        self, batch: Batch, learning: list[int]
    ) -> tuple[dict[int, float], dict[int, float]]:
        answers = {peer: self._forward(peer, batch.image) for peer in learning}
        lessons = self._lessons({peer: logits for peer, (logits, *_) in answers.items()}, batch)
        losses = {peer: self._loss(peer, answers[peer], lessons[peer], batch) for peer in answers}
        for peer in learning:
            weights = lessons[peer].weights
            chosen = (losses[peer] * weights).sum() / weights.sum()
            if not torch.isfinite(chosen):
                raise self._diverged(f"the loss is {float(chosen.detach())}", peer, batch)
            if not self.members[peer].learn(chosen, self._lr(peer), self.place.replicas):
                raise self._diverged("the gradient is not finite", peer, batch)
        told = {peer: float(loss.detach().mean()) for peer, loss in losses.items()}
        return told, {peer: lesson.kept_of(batch.label) for peer, lesson in lessons.items()}

    def judge(self, sample: Iterable[Batch], minutes: float = 0.0) -> dict[int, Dices]:
        """Return how far each network agrees with a sample, and decide by it how it goes on.

        sample: the same at every call; of data-parallel ranks each has its part. minutes: how long
        training took so far; the mean over ranks is held against `budget_minutes`. Every rank
        calls this alike. Learning is left untouched, to the bit.
        """
        counts = {peer: torch.zeros(3, self._classes).double() for peer in self.members}
        for batch in sample:
            image, label = batch.image.to(self.place.device), batch.label.to(self.place.device)
            for peer in self.members:
                counts[peer] += hits(self._asked(peer, image), label).cpu()
        dices = {peer: dice_of(self._pooled(count)) for peer, count in counts.items()}
        values = {
            peer: torch.tensor([mean_dice(dice), minutes], dtype=torch.float64)
            for peer, dice in dices.items()
        }
        if self.config.exchanges != "nothing":
            values = dict.fromkeys(values, self.place.exchange.mean(values))
        for peer, member in self.members.items():
            agreement, spent = self._pooled(values[peer]).tolist()
            member.course = member.course.judged(
                self.at_step,
                agreement,
                minutes=spent,
                budget_minutes=self.config.budget_minutes,
            )
        return dices

    def _pooled(self, values: Tensor) -> Tensor:
        there = values.to(self.place.device)
        self.place.replicas.mean_([there])
        return there.cpu()

    def _asked(self, peer: int, image: Tensor) -> Tensor:
        member, bf16 = self.members[peer], self.config.precision == "bf16"
        frozen = self.at_step >= member.course.phases.frozen_at
        with (
            asked(member.net, frozen=frozen),
            self._keyed_randomness(peer, 3),
            torch.autocast(image.device.type, torch.bfloat16, enabled=bf16),
        ):
            logits: Tensor = member.net(image)
        return logits

    @torch.no_grad()
    def _lessons(self, logits: dict[int, Tensor], batch: Batch) -> dict[int, Lesson]:
        """Return what each network hosted here learns: its own lesson, or that of its peer."""
        mine = {peer: self._lesson(peer, logits[peer].detach(), batch) for peer in logits}
        exchanges, swap = self.config.exchanges, self.place.exchange.swap
        if exchanges == "nothing":
            return mine
        weights = swap({peer: lesson.weights for peer, lesson in mine.items()})
        if exchanges == "samples":
            return {peer: Lesson(batch.label, weights[peer]) for peer in mine}
        labels = swap({peer: lesson.label for peer, lesson in mine.items()})
        return {peer: Lesson(labels[peer], weights[peer]) for peer in mine}

    def _lesson(self, peer: int, logits: Tensor, batch: Batch) -> Lesson:
        member = self.members[peer]
        with self._keyed_randomness(peer, 1):
            return member.hook.lesson(member.net, logits, batch)

    def _loss(self, peer: int, answers: list[Tensor], lesson: Lesson, batch: Batch) -> Tensor:
        member = self.members[peer]
        with self._keyed_randomness(peer, 2):
            loss = member.hook.loss(member.net, answers[0], lesson, batch)
        coarse, of = answers[1:], LOSSES[self.config.loss]
        return deep_loss(loss, coarse, lesson, of) if coarse else loss

    @contextmanager
    def _keyed_randomness(self, peer: int, use: int = 0) -> Iterator[None]:
        """Seed torch's generators, for networks that draw from them, and put them back."""
        if not self.draws:
            yield
            return
        device = torch.device(self.place.device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            key = (self.config.seed, self.fold, peer, self.at_step, self.place.rank, use)
            torch.manual_seed(member_seed(*key))
            yield

    def _forward(self, peer: int, image: Tensor) -> list[Tensor]:
        """Return the logits; with deep supervision those of coarser levels follow."""
        member = self.members[peer]
        net = member.net.train(self.at_step < member.course.phases.recalibrate_at)
        key = (self.config.seed, self.fold, peer, self.at_step, self.place.rank)
        bf16 = self.config.precision == "bf16"
        with (
            self._keyed_randomness(peer),
            dropout_masks(net, key, per_sample=True),
            torch.autocast(image.device.type, torch.bfloat16, enabled=bf16),
        ):
            if member.heads is None:
                return [net(image)]
            finest, *coarse = cast(UNet, net).answers(image)
            return [cast(UNet, net).head(finest), *member.heads(coarse)]

    @torch.no_grad()
    def _recalibrate(self, batch: Batch, measuring: list[int]) -> None:
        for peer in measuring:
            member = self.members[peer]
            phases = member.course.phases
            last = self.at_step == phases.frozen_at - 1
            for norm in member.norms:
                if self.at_step == phases.recalibrate_at:
                    norm.reset_running_stats()
                norm.momentum = None  # the plain mean over the batches since the reset
            image = batch.uniform_image
            if last and not len(image) and not member.measured:
                image = batch.image  # small batches may never have held one
            if len(image):
                with self._keyed_randomness(peer):
                    member.net.train()(image)
            if last:
                member.pool_statistics(self.place.replicas)

    def _diverged(self, what: str, peer: int, batch: Batch) -> TrainingDiverged:
        return TrainingDiverged(
            f"training: fold {self.fold}, network {peer}, step {self.at_step}: {what} on cases "
            f"{sorted(set(batch.case))}; lower train.lr or check the intensities of these cases"
        )

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds: the step and each hosted peer's state.

        The tensors are the live ones: serialise before the next step (`weights.save_state`).
        """
        peers = {str(peer): member.state() for peer, member in self.members.items()}
        return {"step": self.at_step, "peers": peers}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from `state`, which must hold the peers hosted here (it may hold others)."""
        missing = [peer for peer in self.members if str(peer) not in state["peers"]]
        if missing:
            raise InputError(
                f"checkpoint: it holds peers {sorted(state['peers'])}, not {missing}; "
                "resume with the layout that wrote it"
            )
        for peer, member in self.members.items():
            member.load(state["peers"][str(peer)], int(state["step"]))
        self.at_step = int(state["step"])
