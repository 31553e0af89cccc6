"""The training loop of one process: read, step, note, save; to be read aloud.

The loop owns nothing that a restart could lose. Every `checkpoint_every` steps each network's
state is put into the run folder, one object per network and step, and the last two are kept; a
worker that starts takes the newest step that all its networks have and goes on from there. So a
killed worker, a killed driver and a lost node are one code path, on files and on object stores,
and a training may go on with its networks in one process that began with them in two ranks.

Guaranteed on CPU: the weights of an interrupted training are those of an undisturbed one, bit for
bit (see `nets.trainer`); each data-parallel rank gets back the memory of its own hooks.
"""

import math
import os
import re
import time
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed

from raysegclean.cluster.agreement_sample import AgreementSample
from raysegclean.cluster.exchange import MeshExchange, MeshReplicas, PeerMesh
from raysegclean.cluster.patches import PatchSource, Rows
from raysegclean.cluster.training_progress import Progress
from raysegclean.errors import InputError
from raysegclean.nets.agreement import Dices
from raysegclean.nets.augment import augment
from raysegclean.nets.batch import Batch
from raysegclean.nets.place import LocalExchange, Place
from raysegclean.nets.trainer import StepReport, TrainConfig, Trainer
from raysegclean.nets.unet import NetworkSpec
from raysegclean.nets.weights import load_state, save_network, save_state
from raysegclean.store.lock import check_term
from raysegclean.store.objects import Store

__all__ = [
    "Host",
    "TrainLoop",
    "WorkerPlan",
    "common_step",
    "model_key",
    "resumable",
    "stable_folder",
]

NOTE_S = 2.0
KEPT_CHECKPOINTS = 2

_CHECKPOINT = re.compile(r"fold(\d+)-net(\d+)-step(\d+)\.pt$")


@dataclass(frozen=True)
class WorkerPlan:
    """What one trainer does: some networks of one fold, in one process or one rank each."""

    key: str
    checkpoints: str
    """Folder in the run folder."""
    term: int
    """Of the run's lock: who finds another one writes nothing more."""
    run_uri: str
    fold: int
    members: tuple[int, ...]
    split: bool
    """Whether each network has ranks of its own."""
    network: NetworkSpec
    config: TrainConfig
    gpus: float = 0
    readers: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    """Plain values that are saved beside the weights."""


def model_key(key: str, fold: int, member: int) -> str:
    """Return where a finished network is kept in the run folder."""
    return f"models/{key}/fold{fold}-net{member}.pt"


def stable_folder(checkpoints: str) -> str:
    """Return where networks are kept as they were at the end of their stable phase.

    Beside the checkpoints, and for longer: under a higher bound training goes on from there.
    """
    return f"stable/{checkpoints.removeprefix('train/')}"


def resumable(
    store: Store, checkpoints: str, fold: int, members: tuple[int, ...]
) -> tuple[str, int]:
    """Return the folder and the step of what all of `members` can go on from; step 0 if nothing."""
    step = common_step(store, checkpoints, fold, members)
    if step:
        return checkpoints, step
    kept = stable_folder(checkpoints)
    return kept, common_step(store, kept, fold, members)


def common_step(store: Store, folder: str, fold: int, members: tuple[int, ...]) -> int:
    """Return the newest step that every one of `members` has a checkpoint of, 0 if none."""
    return max(set.intersection(*(_steps(store, folder, fold, net) for net in members)))


def _steps(store: Store, folder: str, fold: int, member: int) -> set[int]:
    steps = {0}
    for info in store.list(folder):
        found = _CHECKPOINT.search(info.key)
        if found and (int(found[1]), int(found[2])) == (fold, member):
            steps.add(int(found[3]))
    return steps


def _checkpoint_key(plan: WorkerPlan, member: int, step: int, folder: str = "") -> str:
    return f"{folder or plan.checkpoints}/fold{plan.fold}-net{member}-step{step}.pt"


@dataclass(frozen=True)
class Host:
    """What a training asks of where it runs."""

    rows: Callable[[range, int, int], Iterator[Rows]]
    """(steps, rank, ranks) -> the columns of each step, as `PatchSource.cut` returns them."""
    note: Callable[[Progress], Any]
    warn: Callable[[str], Any]
    """Takes why a case could not be read."""
    device: torch.device
    mesh: PeerMesh | None = None
    """This rank among the others, None where there are none."""
    notice: Callable[[int], bool] = lambda _: False
    """Tells after each step, in all ranks alike, whether to save because a node goes away."""


class TrainLoop:
    """One rank: its networks, its feed and its checkpoints.

    `source` tells of the cases; the patches come from the host.
    """

    def __init__(self, plan: WorkerPlan, source: PatchSource, host: Host) -> None:
        self.plan = plan
        self.source = source
        self.host = host
        self.store = Store.open(plan.run_uri)
        self.device = host.device
        self.damaged: set[int] = set()
        self.mesh = host.mesh
        self.minutes_before = 0.0
        self.began = time.monotonic()
        self.trainer = Trainer(
            plan.network,
            plan.config,
            fold=plan.fold,
            place=_place(plan, self.mesh, self.device),
            present=source.present,
            spacing_mm=source.seen_mm,
        )
        rank, ranks = (self.mesh.rank, self.mesh.ranks) if self.mesh else (0, 1)
        self.sample = AgreementSample.cut(source.judged or source, rank, ranks)
        self.resume()

    @property
    def speaks(self) -> bool:
        """Whether this rank tells how far training is."""
        return self.mesh is None or (self.mesh.peer == 0 and self.mesh.rank == 0)

    @property
    def saves(self) -> bool:
        """Whether this rank writes its networks; data-parallel ranks hold the same ones."""
        return self.mesh is None or self.mesh.rank == 0

    def resume(self) -> None:
        """Load the newest checkpoint that all networks of the plan have."""
        plan = self.plan
        folder, step = resumable(self.store, plan.checkpoints, plan.fold, plan.members)
        found = torch.tensor([step, folder != plan.checkpoints])
        if self.mesh is not None:
            found = found.to(self.device)
            distributed.broadcast(found, 0)  # a checkpoint may have appeared between two lists
        self.started_at, is_kept = found.tolist()
        if self.started_at == 0:
            return
        folder = stable_folder(plan.checkpoints) if is_kept else plan.checkpoints
        keys = [_checkpoint_key(plan, net, self.started_at, folder) for net in self.trainer.members]
        states = [load_state(self.store.get(key), device=self.device) for key in keys]
        self.minutes_before = max(float(state["minutes"]) for state in states)
        peers = {name: peer for state in states for name, peer in state["peers"].items()}
        rank = self.mesh.rank if self.mesh else 0
        for peer in peers.values():
            peer["hook"] = peer["hook"][rank % len(peer["hook"])]
            if is_kept:  # what ended it is decided anew
                peer["course"]["by"] = ""
        self.trainer.load({"step": self.started_at, "peers": peers})

    def run(self) -> None:
        """Train from where the checkpoint is to where it ends, then save the networks."""
        trainer, notes = self.trainer, _Notes(self, self.host.note)
        with closing(self.batches(range(trainer.at_step, trainer.steps))) as batches:
            for batch in batches:
                report = trainer.step(batch)
                done, decided = batch.step + 1, False
                if done % self.sample.every == 0 or done == trainer.steps:
                    decided = self.judge(notes)
                if self.speaks:
                    notes.see(report)
                if done == trainer.steps:
                    break
                due = done % self.plan.config.checkpoint_every == 0 or self.host.notice(done)
                bounded = self.bounded(done)
                if (due or decided or bounded) and not self.ranks_differ(done):
                    self.save(bounded)
        self.finish()

    @property
    def minutes(self) -> float:
        """How long this training took so far, in all its starts."""
        return self.minutes_before + (time.monotonic() - self.began) / 60

    def judge(self, notes: "_Notes") -> bool:
        """Measure the agreement of each network; tell whether that ended a stable phase."""
        before = self._courses()
        notes.agreement = self.trainer.judge(self.sample, self.minutes)
        return self._courses() != before

    def bounded(self, done: int) -> tuple[int, ...]:
        """Return the networks whose stable phase a bound ends after `done` steps."""
        courses = {net: member.course for net, member in self.trainer.members.items()}
        here = {n: c for n, c in courses.items() if c.is_open and c.phases.decay_at == done}
        return tuple(net for net, course in here.items() if course.ended_by in ("", "time"))

    def _courses(self) -> dict[int, str]:
        return {peer: member.course.ended_by for peer, member in self.trainer.members.items()}

    def ranks_differ(self, done: int) -> bool:
        """Tell whether each data-parallel rank has statistics of its own, which none can resume."""
        alone = self.mesh is None or self.mesh.ranks == 1
        phases = [member.course.phases for member in self.trainer.members.values()]
        return not alone and any(p.recalibrate_at < done < p.frozen_at for p in phases)

    def batches(self, steps: range) -> Generator[Batch, None, None]:
        """Yield the batch of each step: read by peer 0, handed over to the others."""
        mesh, source = self.mesh, self.source
        rank, ranks = (mesh.rank, mesh.ranks) if mesh else (0, 1)
        if mesh is None or mesh.peer == 0:
            read: Iterator[Batch] = map(self.batch, self.host.rows(steps, rank, ranks))
        else:
            read = repeat(_blank(source, rank, ranks, self.device), len(steps))
        for batch in read:
            yield mesh.hand_over(batch, source.cases) if mesh and mesh.peers > 1 else batch

    def batch(self, rows: Rows) -> Batch:
        """Bring rows to this rank's device; warn once of each damaged case.

        Raises InputError when not one case, or not one trusted case, is left to learn from.
        """
        for number, fault in zip(rows["case"].tolist(), rows["fault"], strict=True):
            if fault and number not in self.damaged:
                self.damaged.add(number)
                self.host.warn(fault)
                self._check_left(fault)
        trusted = rows["trusted"] == 1
        batch = self._augmented(self._tensors(rows, ~trusted))
        if self.source.clean is None:
            return batch
        return replace(batch, clean=self._tensors(rows, trusted))

    def _check_left(self, fault: str) -> None:
        own, every = len(self.source.table.cases), len(self.source.cases)
        for kind, numbers in (("", range(own)), ("trusted ", range(own, every))):
            if numbers and self.damaged.issuperset(numbers):
                raise InputError(f"training fold {self.plan.fold}: no {kind}case is left. {fault}")

    def _augmented(self, batch: Batch) -> Batch:
        if not self.plan.config.augment:
            return batch
        rank, ranks = (self.mesh.rank, self.mesh.ranks) if self.mesh else (0, 1)
        spacing_mm = [self.source.seen_mm[case] for case in batch.case]
        return augment(batch, self.source.seed, spacing_mm, first=rank, every=ranks)

    def _tensors(self, rows: Rows, chosen: NDArray[np.bool_]) -> Batch:
        cases = self.source.cases
        return Batch(
            image=torch.tensor(rows["image"][chosen], device=self.device),
            label=torch.tensor(rows["label"][chosen], dtype=torch.int64, device=self.device),
            case=[cases[number] for number in rows["case"][chosen]],
            step=int(rows["step"][0]),
            uniform=[bool(flag) for flag in rows["uniform"][chosen]],
        )

    def save(self, bounded: Collection[int] = ()) -> None:
        """Put a checkpoint of each network here, then drop all but the last two.

        Later ones are of a training that other networks could not follow, and go first. That of
        `bounded` networks is kept beside them, too.
        """
        state, minutes = self.trainer.state(), self.minutes
        memories = {name: self._memories(peer["hook"]) for name, peer in state["peers"].items()}
        if not self.saves:
            return
        check_term(self.store, self.plan.term)
        for member in self.trainer.members:
            peer = state["peers"][str(member)] | {"hook": memories[str(member)]}
            own = {"step": state["step"], "minutes": minutes, "peers": {str(member): peer}}
            key = _checkpoint_key(self.plan, member, state["step"])
            data = save_state(own)
            self.store.put(key, data)
            if member in bounded:
                kept_in = stable_folder(self.plan.checkpoints)
                before = _steps(self.store, kept_in, self.plan.fold, member) - {0, state["step"]}
                self.store.put(_checkpoint_key(self.plan, member, state["step"], kept_in), data)
                for old in before:
                    self.store.delete(_checkpoint_key(self.plan, member, old, kept_in))
            known = _steps(self.store, self.plan.checkpoints, self.plan.fold, member) - {0}
            kept = sorted(step for step in known if step <= state["step"])[-KEPT_CHECKPOINTS:]
            for old in known.difference(kept):
                self.store.delete(_checkpoint_key(self.plan, member, old))

    def _memories(self, mine: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the hook's state of every data-parallel rank; all of them call this."""
        return [mine] if self.mesh is None else self.mesh.of_all_ranks(mine)

    def finish(self) -> None:
        """Put the finished networks; the driver removes the checkpoints once it has seen them."""
        if not self.saves:
            return
        check_term(self.store, self.plan.term)
        for number, member in self.trainer.members.items():
            facts = {"fold": self.plan.fold, "member": number, "report": member.hook.report()}
            facts |= {"steps": member.course.phases.steps, "course": member.course.state()}
            data = save_network(member.net, self.plan.network, self.plan.facts | facts)
            self.store.put(model_key(self.plan.key, self.plan.fold, number), data)


class _Notes:
    """Notes, every few seconds: the step, and the mean loss since the last one.

    What was measured of the agreement is told at once, as the mean over the networks here.
    """

    def __init__(self, loop: TrainLoop, tell: Callable[[Progress], Any]) -> None:
        self.loop = loop
        self.tell = tell
        self.losses: list[float] = []
        self.agreement: dict[int, Dices] = {}
        self.last_s = float("-inf")

    def see(self, report: StepReport) -> None:
        """Take one step's report; tell a note when it is time."""
        now, trainer, plan = time.monotonic(), self.loop.trainer, self.loop.plan
        self.losses.extend(report.losses.values())
        ends = report.step + 1 == trainer.steps
        if now - self.last_s < NOTE_S and not self.agreement and not ends:
            return
        note = Progress(
            fold=plan.fold,
            members=plan.members,
            step=report.step + 1,
            steps=trainer.steps,
            loss=sum(self.losses) / len(self.losses) if self.losses else None,
            pid=os.getpid(),
            is_open=trainer.is_open,
            agreement=self._agreement(),
        )
        self.tell(note)
        self.losses, self.agreement, self.last_s = [], {}, now

    def _agreement(self) -> dict[str, float]:
        """Return the mean Dice over networks of each class that the sample holds."""
        classes = self.loop.source.classes[1:]
        by_class = zip(classes, *self.agreement.values(), strict=True) if self.agreement else ()
        means = {str(value): sum(dices) / len(dices) for value, *dices in by_class}
        return {value: round(mean, 3) for value, mean in means.items() if not math.isnan(mean)}


def _blank(source: PatchSource, rank: int, ranks: int, device: torch.device) -> Batch:
    """Return a batch to receive into: one of the shapes, types and device of a real one."""
    count, patch = len(range(rank, source.batch, ranks)), source.patch_zyx
    return Batch(
        image=torch.empty((count, source.channels, *patch), device=device),
        label=torch.empty((count, *patch), dtype=torch.int64, device=device),
        case=[source.cases[0]] * count,
        step=0,
        clean=_blank(source.clean, rank, ranks, device) if source.clean else None,
    )


def _place(plan: WorkerPlan, mesh: PeerMesh | None, device: torch.device) -> Place:
    local = LocalExchange(plan.config.peers)
    if mesh is None:
        return Place(plan.members, local, device=str(device))
    return Place(
        hosted=(plan.members[mesh.peer],) if plan.split else plan.members,
        exchange=MeshExchange(mesh) if plan.split else local,
        replicas=MeshReplicas(mesh),
        rank=mesh.rank,
        device=str(device),
    )
