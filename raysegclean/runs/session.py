"""What the stages of one execution share."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from raysegclean.cluster.apply import APPLY
from raysegclean.cluster.driver import ClusterFacts
from raysegclean.cluster.executor import Executor, PassJob, PassResources, StageFactory
from raysegclean.config.settings import Config
from raysegclean.errors import RaysegcleanError, UnfitEnvironment
from raysegclean.events import Events
from raysegclean.evidence.records import FailedCase, ShardRecord
from raysegclean.methods.base import Method
from raysegclean.planning.items import Item, ShardTask, plan_items
from raysegclean.planning.plan import RunPlan
from raysegclean.store.archive import Archive
from raysegclean.store.presence import lacking
from raysegclean.store.run import RunFolder

__all__ = ["Session", "TooManyFailed"]

R = TypeVar("R", bound=ShardRecord)


class TooManyFailed(RaysegcleanError):
    """More cases failed than the config allows; what was published stays."""

    exit_code = 1


@dataclass
class Session:
    """One execution of a run."""

    config: Config
    run: RunFolder
    archive: Archive
    plan: RunPlan
    train_key: str
    method: Method
    params: Any
    term: int
    executor: Executor
    began_on_gpu: bool
    """Whether there was a GPU at the first start: then `gpus: auto` means one in later ones, too,
    for which an autoscaler is waited for."""
    still_ours: Callable[[], None]
    """Raises RunConflict when another job took the run over."""
    unusable: Mapping[str, str]
    """Case -> why it cannot be cleaned here, known before anything is computed."""
    events: Events = field(default_factory=Events)
    failed: dict[str, str] = field(default_factory=dict)
    """Case -> why."""
    unfit: set[str] = field(default_factory=set)
    """Failed cases of which the environment is to blame, as a full disk."""

    @property
    def facts(self) -> ClusterFacts:
        """What the executor has to work with."""
        return self.executor.facts

    def gpus(self, wanted: float | str) -> float:
        """Return the GPUs of a worker; auto: one where there are or were some."""
        if isinstance(wanted, str):
            return 1.0 if self.facts.gpus or self.began_on_gpu else 0.0
        return wanted

    def fail(self, failures: Mapping[str, str], unfit: Iterable[str] = ()) -> None:
        """Record failed cases, `unfit` those of them that failed for want of a fit environment.

        Raises TooManyFailed beyond `max_failed` (two are always allowed, all never), or
        UnfitEnvironment when the case that was one too many failed for that.
        """
        self.failed |= failures
        self.unfit |= set(unfit)
        self.run.write_failed(FailedCase(*one) for one in sorted(self.failed.items()))
        planned = {case.case for case in self.plan.cases}
        total = len(planned | set(self.failed))
        share = self.config.max_failed
        allowed = max(2, math.floor(share * total)) if share > 0 else 0
        if len(self.failed) > allowed or (self.failed and not self.alive()):
            case, error = min((failures or self.failed).items())
            kind = UnfitEnvironment if case in self.unfit else TooManyFailed
            raise kind(
                f"{len(self.failed)} of {total} cases failed, more than max_failed {share} allows. "
                f"First: case {case}: {error} All are in {self.run.uri}/failed.jsonl."
            )

    def alive(self) -> list[str]:
        """Return the cases that have not failed, in the plan's order."""
        return [case.case for case in self.plan.cases if case.case not in self.failed]

    def items(self, cases: Iterable[str], *, whole_cases: bool = False) -> list[Item]:
        """Cut the shards of `cases` into items; depends on the plan alone, not on workers.

        `whole_cases`: an item for each case, whose only task is named after its first shard.
        """
        wanted = set(cases)
        if whole_cases:
            named = [case.case for case in self.plan.cases if case.case in wanted]
            return [Item(f"{n:06d}", (ShardTask(c, (0, 0, 0)),)) for n, c in enumerate(named)]
        grids = [
            (case.case, case.grid(self.plan.shard_vox))
            for case in self.plan.cases
            if case.case in wanted
        ]
        return plan_items(grids)

    def records(self, stage: str, kind: type[R], keys: Mapping[str, str]) -> dict[str, R]:
        """Return the committed records of a stage whose case still has the given key, by task."""
        return {
            record.task: record
            for record in self.run.ledger(stage, kind).records()
            if keys.get(record.case) == record.key
        }

    def _with_objects(self, stage: str, done: dict[str, R]) -> dict[str, R]:
        """Return what of `done` has its objects in the run folder; say how many are done again.

        The output is elsewhere and looked after by who writes it (`runs.apply`).
        """
        if stage == APPLY:
            return done
        gone = {record.task for record in lacking(done.values(), lambda _: self.run.store)}
        if gone:
            text = f"{len(gone)} shards lack objects that were written; they are done again"
            self.events.warn(stage, text)
        return {task: record for task, record in done.items() if task not in gone}

    def run_stage(
        self,
        stage: str,
        kind: type[R],
        factory: StageFactory,
        job: PassJob,
        keys: Mapping[str, str],
        resources: PassResources,
        *,
        whole_cases: bool = False,
    ) -> dict[str, R]:
        """Do what the ledger lacks of `stage` for the cases in `keys`; return all its records.

        `whole_cases`: the stage works on a case at once instead of on its shards.
        """
        done = self._with_objects(stage, self.records(stage, kind, keys))
        every, committed = self.items(keys, whole_cases=whole_cases), set(done)
        left_over = (item.without(committed) for item in every)
        items = [item for item in left_over if item.tasks]
        if done:
            left = sum(len(item.tasks) for item in items)
            self.events.say(stage, f"{len(done)} shards were committed before, {left} are left")
        if not items:
            return done
        ledger = (self.run.uri, stage, self.term)
        cases = _Cases(keys, every, items)
        told = self.events.stage(stage, len(keys), "cases", done=cases.done)
        passed = self.executor.run_pass(factory, job, items, ledger, resources, self.events)
        with told as progress, closing(passed) as reports:
            for report in reports:
                self.still_ours()
                progress.at(cases.came(report.item))
                if report.failed:
                    unfit = [one.case for one in report.failed if one.unfit]
                    self.fail({one.case: one.error for one in report.failed}, unfit)
        self.run.ledger(stage, kind, self.term).compact()
        return self.records(stage, kind, keys)


class _Cases:
    """How many cases a pass has done, from the items that came back; parts of a case count."""

    def __init__(
        self, keys: Mapping[str, str], every: Sequence[Item], items: Sequence[Item]
    ) -> None:
        self._shards = Counter(task.case for item in every for task in item.tasks)
        left = Counter(task.case for item in items for task in item.tasks)
        self._items = {item.name: item.tasks for item in items}
        self._done = len(keys) - sum(n / self._shards[case] for case, n in left.items())

    def came(self, item: str) -> float:
        """Return how many cases are done now that an item is."""
        self._done += sum(1 / self._shards[task.case] for task in self._items.pop(item, ()))
        return self.done

    @property
    def done(self) -> float:
        """Cases done, with the shares of those that are begun; a case that is whole counts 1."""
        return round(self._done, 6)
