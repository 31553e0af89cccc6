"""Values that can only be found by training again.

All candidates are drawn before the first one is tried, from the seed alone, so a search that was
killed tries exactly what is left: every finished trial is one object in the run folder, created
once. Ray Tune runs the trials, several at a time, and stops those that fall behind the median of
the others. Thresholds do not belong here; they are solved from histograms, without training.

A trial's driver takes a hundredth of a CPU slot, because it only waits for what it starts: drivers
that held whole slots would leave none for their own workers, and all would wait for ever without
an error. Trials that run at once plan with their share of the cluster (`connection.shared_by`), and
no more of them run than leave each a worker and a reader.

Not guaranteed: that a search which was resumed stops the same trials early, since the median
forgets the trials of the killed one. The chosen values are frozen with the run.
"""

import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ray import tune
from ray.tune.schedulers import MedianStoppingRule
from scipy.stats import qmc

from raysegclean.cluster.connection import cluster_share, data_rules, shared_by
from raysegclean.errors import AlreadyExists, ConfigError, RaysegcleanError
from raysegclean.identity import digest
from raysegclean.store.objects import Store, as_json

__all__ = [
    "Objective",
    "Report",
    "SearchFailed",
    "SearchResult",
    "Trial",
    "candidates",
    "search",
    "trials_at_once",
]

log = logging.getLogger("raysegclean.search")

Params = dict[str, Any]
Report = Callable[[float, int], None]
Objective = Callable[[Params, Report], float]

_DRIVER = {"CPU": 0.01}
_SLOTS_PER_TRIAL = 2.0
"""A worker and its readers: below this a trial would wait for another one to end."""
_SIGNIFICANT = 6
_ASK_S = 2.0


class SearchFailed(RaysegcleanError):
    """Not one trial came to an end."""


@dataclass(frozen=True)
class Trial:
    """One set of values. Its key depends on the values alone."""

    number: int
    params: Params
    key: str


@dataclass(frozen=True)
class SearchResult:
    """What the search found. Higher scores are better.

    trials: per candidate, in the order of drawing: params, score (None when it failed), stopped
    (whether it was cut short), reports (pairs of step and score), seconds, error.
    """

    best: Params
    score: float
    trials: list[dict[str, Any]]


def candidates(
    space: Mapping[str, Sequence[Any]], samples: int, seed: int, identity: str = ""
) -> list[Trial]:
    """Draw up to `samples` different sets of values, a longer list beginning with a shorter one.

    Two numbers are a range, both ends included (of whole numbers when both are); any other list
    holds choices. Source of the points: scrambled Sobol sequence (Owen 1998), which covers the
    space more evenly than random draws. Raises ConfigError for an empty list.
    """
    names = sorted(space)
    empty = [name for name in names if not space[name]]
    if empty or not names or samples < 1:
        raise ConfigError(
            f"search: {', '.join(empty) or 'space'} is empty or samples {samples} is below 1; "
            "list two numbers (a range) or the choices for each parameter"
        )
    sobol = qmc.Sobol(len(names), scramble=True, rng=seed)
    points = sobol.random_base2(math.ceil(math.log2(samples)))
    found: dict[str, Trial] = {}
    for point in points[:samples]:
        params = {
            name: _value(list(space[name]), float(u)) for name, u in zip(names, point, strict=True)
        }
        key = f"search/trial-{digest('search', identity, params)}.json"
        found.setdefault(key, Trial(len(found), params, key))
    return list(found.values())


def _value(listed: list[Any], u: float) -> Any:
    """Return the value at `u` in [0, 1)."""
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in listed)
    if len(listed) != 2 or not numbers:
        return listed[int(u * len(listed))]
    low, high = sorted(listed)
    if isinstance(low, int) and isinstance(high, int):
        return low + int(u * (high - low + 1))
    return float(f"{low + u * (high - low):.{_SIGNIFICANT}g}")


def search(
    trials: Sequence[Trial],
    run_uri: str,
    objective: Objective,
    *,
    max_concurrent: int = 1,
    stop_early: bool = True,
    still_ours: Callable[[], None] = lambda: None,
) -> SearchResult:
    """Try the candidates that have no result in the run folder yet; return the best of all.

    trials: from `candidates`.

    objective: (params, report) -> score, called in a process of its own; must be picklable, and
    places work through Ray Train and Ray Data, or with `scheduling_strategy="DEFAULT"` (other
    tasks would be squeezed into the driver's hundredth of a slot). `report(score, step)` tells an
    interim score, steps from 1; a trial below the median of the others is ended there.
    still_ours: called every few seconds; what it raises ends the search, as where another driver
    has taken the run over.
    max_concurrent: upper limit; no more run than leave each two CPU slots. Where workers take more
    than that, `trials_at_once` is the limit: the training that a trial too many starts is refused.

    A trial that fails costs itself. Raises SearchFailed when none comes to an end.
    """
    store = Store.open(run_uri)
    missing = [trial for trial in trials if store.head(trial.key) is None]
    log.info("search: %d trials, %d are finished", len(trials), len(trials) - len(missing))
    failures: dict[int, str] = {}
    if missing:
        fit = int(cluster_share()[0] // _SLOTS_PER_TRIAL)
        at_once = max(1, min(max_concurrent, len(missing), fit))
        keeper = _Keeper(missing, store, still_ours)
        failures = _run(missing, store, objective, at_once, keeper, stop_early=stop_early)
    rows = [_row(trial, store, failures.get(trial.number)) for trial in trials]
    return _best(rows)


def trials_at_once(workers: int, cpus: float, gpus: float) -> int:
    """Return how many trials, each of so many workers, the cluster has room for; at least one.

    Each also needs a slot for its readers. A trial plans with its share of the cluster, so more of
    them than fit would be refused by the training that they start.
    """
    all_cpus, all_gpus = cluster_share()
    fit = int(all_cpus // (workers * cpus + 1))
    return max(1, min(fit, int(all_gpus // (workers * gpus)) if gpus else fit))


def _run(
    missing: Sequence[Trial],
    store: Store,
    objective: Objective,
    at_once: int,
    keeper: tune.Callback,
    *,
    stop_early: bool,
) -> dict[int, str]:
    """Run the trials; return the errors of those that failed, by number."""
    by_number = {trial.number: trial for trial in missing}
    trainable = tune.with_parameters(
        _run_trial, trials=by_number, store=store, objective=objective, users=at_once
    )
    median = MedianStoppingRule(time_attr="step", grace_period=1, min_samples_required=3)
    with tempfile.TemporaryDirectory(
        prefix="raysegclean-search-", ignore_cleanup_errors=True
    ) as folder:
        tuner = tune.Tuner(
            tune.with_resources(trainable, _DRIVER),
            param_space={"number": tune.grid_search(sorted(by_number))},
            tune_config=tune.TuneConfig(
                metric="score",
                mode="max",
                max_concurrent_trials=at_once,
                scheduler=median if stop_early else None,  # None: first come, first served
            ),
            run_config=tune.RunConfig(storage_path=folder, verbose=0, callbacks=[keeper]),
        )
        with _quiet():
            results = tuner.fit()
            ended = [results[place] for place in range(len(results))]
    return {
        result.config["number"]: _reason(result.error)
        for result in ended
        if result.error is not None and result.config is not None
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Tune: the reasons of failed trials are told in one line each, by us."""
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _run_trial(
    config: dict[str, int],
    *,
    trials: dict[int, Trial],
    store: Store,
    objective: Objective,
    users: int,
) -> None:
    """Run one trial in a process of its own and keep its result."""
    trial = trials[config["number"]]
    reports: list[tuple[int, float]] = []
    began = time.monotonic()

    def report(score: float, step: int) -> None:
        reports.append((step, float(score)))
        # Tune ends the process here when the trial is to be stopped.
        tune.report({"score": float(score), "step": step})

    data_rules()
    with shared_by(users):
        score = float(objective(dict(trial.params), report))
    _keep(store, trial, reports, score=score, seconds=time.monotonic() - began)
    last = max((step for step, _ in reports), default=0)
    tune.report({"score": score if math.isfinite(score) else -math.inf, "step": last + 1})


def _keep(
    store: Store,
    trial: Trial,
    reports: Sequence[tuple[int, float]],
    *,
    score: float,
    seconds: float,
    stopped: bool = False,
) -> None:
    row = {
        "params": trial.params,
        "score": score if math.isfinite(score) else None,
        "stopped": stopped,
        "reports": [list(pair) for pair in reports],
        "seconds": round(seconds, 3),
    }
    try:
        store.create(trial.key, as_json(row))
    except AlreadyExists:
        log.debug("search: %s was finished by another worker first", trial.key)


class _Keeper(tune.Callback):
    """Keeps the last score of trials that were stopped early, so that no resume repeats them.

    It also asks now and then whether the search is to go on.
    """

    def __init__(
        self, trials: Sequence[Trial], store: Store, still_ours: Callable[[], None]
    ) -> None:
        self.trials = {trial.number: trial for trial in trials}
        self.store, self.still_ours = store, still_ours
        self.asked = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out all, who is asked may hold a lock: Tune keeps copies that nobody reads."""
        return {}

    def on_trial_complete(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Any],  # noqa: ARG002
        trial: Any,
        **info: Any,  # noqa: ARG002
    ) -> None:
        """Called by Tune on the driver."""
        mine = self.trials[trial.config["number"]]
        last = trial.last_result or {}
        if "score" in last and self.store.head(mine.key) is None:
            reports = [(int(last["step"]), float(last["score"]))]
            seconds = float(last.get("time_total_s", 0.0))
            _keep(self.store, mine, reports, score=reports[0][1], seconds=seconds, stopped=True)

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:  # noqa: ARG002
        """Called by Tune on the driver; what it raises ends the search."""
        if time.monotonic() - self.asked > _ASK_S:
            self.asked = time.monotonic()
            self.still_ours()


def _reason(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def _row(trial: Trial, store: Store, failure: str | None) -> dict[str, Any]:
    if store.head(trial.key) is None:
        reason = failure or "it did not come to an end"
        log.warning("search: trial %s failed: %s", trial.params, reason)
        empty: dict[str, Any] = {"score": None, "stopped": False, "reports": [], "seconds": 0.0}
        return {"params": trial.params, **empty, "error": reason}
    row: dict[str, Any] = store.get_json(trial.key)
    return row | {"error": None}


def _best(rows: list[dict[str, Any]]) -> SearchResult:
    scored = [row for row in rows if row["score"] is not None]
    if not scored:
        reasons = "; ".join(f"{row['params']}: {row['error'] or 'no score'}" for row in rows[:3])
        raise SearchFailed(f"search: none of {len(rows)} trials has a score ({reasons})")
    # A score of a trial that was cut short is not comparable; the first of equals wins.
    best = max([row for row in scored if not row["stopped"]] or scored, key=lambda r: r["score"])
    return SearchResult(dict(best["params"]), float(best["score"]), rows)
