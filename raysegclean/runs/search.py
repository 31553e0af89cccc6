"""Search what only training can tell: a trial is a whole run up to its verdict, published nowhere.

A trial trains, proposes and decides with its own values in a folder below the run's; thresholds
are solved inside it from the histograms of its one propose pass. Its score is the mean Dice that
its verdict reaches on trusted cases where there are any, else how well the given labels agree with
out-of-fold predictions. The winner's values and networks are the run's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raysegclean.cluster.connection import cluster_share
from raysegclean.cluster.executor import open_executor
from raysegclean.cluster.search import Report, Trial, candidates, search, trials_at_once
from raysegclean.cluster.training_progress import Progress
from raysegclean.config.settings import Config, Search, make_config
from raysegclean.errors import RunConflict
from raysegclean.events import Events, Lines
from raysegclean.identity import differing_parts, digest
from raysegclean.methods.base import ArchiveEvidence, Verdict, load_method, make_params
from raysegclean.runs.begin import begin
from raysegclean.runs.gather import gather
from raysegclean.runs.harm_guard import rehearsed_dice
from raysegclean.runs.judge import judge
from raysegclean.runs.preflight import prepare
from raysegclean.runs.propose import Proposals, propose
from raysegclean.runs.session import Session
from raysegclean.runs.train import train
from raysegclean.store.objects import Store
from raysegclean.store.run import RunFolder

__all__ = ["Objective", "with_searched_params"]

CHOSEN = "search.json"

WITHOUT_SAY = frozenset(
    {
        *("run", "archive", "index", "cases"),
        *("search", "output", "resources", "numerics", "max_failed"),
    }
)
"""Settings that may change without making it another search: places, cases and means."""

MARKS = 10
"""How often a trial tells its training loss, so that a hopeless one is stopped early."""


def with_searched_params(
    config: Config,
    run: RunFolder,
    events: Events,
    still_ours: Callable[[], None] = lambda: None,
) -> Config:
    """Return the config with the values that the search chose; a finished search is read back.

    Raises RunConflict when the search in the run folder was made with other settings, or
    `still_ours` does, because another driver took the run over meanwhile.
    """
    assert config.search is not None
    identity = {
        "search": config.search.model_dump(mode="json"),
        "settings": _settings(config),
    }
    chosen = run.read_json(CHOSEN)
    if chosen is None:
        _refuse_other_run(run, config.search)
        trials = _trials(config)
        result = search(
            trials,
            run.uri,
            Objective(config.resolved(), run.uri),
            max_concurrent=_max_concurrent(config),
            stop_early=_learn_alike(config, trials),
            still_ours=still_ours,
        )
        still_ours()
        _adopt_networks(run, trial_uri(run.uri, result.best))
        chosen = {"best": result.best, "score": result.score, "trials": result.trials}
        run.write_json(CHOSEN, chosen | identity)
    elif differing := differing_parts({name: chosen[name] for name in identity}, identity):
        raise RunConflict(
            f"run folder {run.uri} belongs to a search with other settings: "
            f"{'; '.join(differing)}. Choose another `run:` folder, or restore these settings."
        )
    events.say("search", f"chose {chosen['best']} with score {chosen['score']:.4f}")
    return trial_config(config, chosen["best"], config.run)


def _max_concurrent(config: Config) -> int:
    """Return how many trials may run at once; one where each network has ranks of its own."""
    wanted = config.resources.train
    if config.train.placement == "ranks":
        return 1
    gpus = min(cluster_share()[1], 1.0) if wanted.gpus == "auto" else wanted.gpus
    return trials_at_once(
        workers=1 if wanted.workers == "auto" else wanted.workers,
        cpus=config.train.threads if wanted.cpus == "auto" else wanted.cpus,
        gpus=gpus,
    )


def _trials(config: Config) -> list[Trial]:
    assert config.search is not None
    wanted, identity = config.search, digest(_settings(config))
    return candidates(wanted.space, wanted.samples, config.train.seed, identity)


def _learn_alike(config: Config, trials: Sequence[Trial]) -> bool:
    """Tell whether the losses of all trials mean the same, so that the higher ones may be stopped.

    They do not where the hooks differ: to forget more of the worst samples is a lower loss.
    """
    method = load_method(config.method)
    every = [make_params(method, {**config.params, **trial.params}) for trial in trials]
    return len({method.voters(params).hook for params in every}) == 1


def _settings(config: Config) -> dict[str, Any]:
    """Return the settings that make it this search."""
    return {name: value for name, value in config.resolved().items() if name not in WITHOUT_SAY}


def _refuse_other_run(run: RunFolder, wanted: Search) -> None:
    """Refuse, before any trial, a folder whose run had nothing to search."""
    if run.resolved() is not None:
        raise RunConflict(
            f"run folder {run.uri} belongs to a run without a search over "
            f"{', '.join(wanted.space)}. Choose another `run:` folder, or drop `search:` to resume."
        )


def trial_config(config: Config, params: dict[str, Any], run_uri: str) -> Config:
    """Return the config of one trial: its values set, nothing left to search."""
    changes = {f"params.{name}": value for name, value in params.items()}
    return config.with_settings({**changes, "search": None, "run": run_uri})


def trial_uri(run_uri: str, params: dict[str, Any]) -> str:
    """Return the folder of one trial; it depends on its values alone."""
    return f"{run_uri}/search/run-{digest(params)}"


def _adopt_networks(run: RunFolder, uri: str) -> None:
    """Copy a trial's networks into the run, where training finds them finished."""
    trial = RunFolder(uri)
    for info in trial.store.list("models"):
        run.store.put(info.key, trial.store.get(info.key))


def _adopt_equal(session: Session, trials: Sequence[str]) -> None:
    """Copy the networks of another trial that trained them just as this one would.

    Trials that differ in what happens after training, as in a threshold, share one training.
    """
    wanted = session.plan.voters.members * session.plan.folds
    for uri in trials:
        found = list(Store.open(uri).list(f"models/{session.train_key}"))
        if uri != session.run.uri and 0 < len(found) == wanted:
            _adopt_networks(session.run, uri)
            session.events.say("search", f"the networks of {uri} are trained alike and used again")
            return


@dataclass(frozen=True)
class Objective:
    """What one trial does, in a process of its own; only plain values, so that it pickles."""

    config: dict[str, Any]
    run: str

    def __call__(self, params: dict[str, Any], report: Report) -> float:
        """Train, propose and decide with `params`; return the score, higher is better."""
        whole = make_config(self.config)
        config = trial_config(whole, params, trial_uri(self.run, params))
        prepared = prepare(config)
        job = (0, lambda: None, Events(Lines()))  # its folder has one writer, this search
        session = begin(config, RunFolder(config.run), prepared, open_executor("ray"), job)
        session.fail(session.unusable)
        _adopt_equal(session, [trial_uri(self.run, trial.params) for trial in _trials(whole)])
        models = train(session, prepared.infos, on_note=_report_marks(report))
        proposals = propose(session, models)
        evidence = gather(session, proposals)
        proposals, verdict = judge(session, proposals, evidence)
        return _score(session, proposals, evidence, verdict)


def _report_marks(report: Report) -> Callable[[Progress], None]:
    """Return what reports the loss of the first fold at every tenth of its steps."""
    told = 0

    def note(progress: Progress) -> None:
        nonlocal told
        mark = progress.step * MARKS // progress.steps
        if progress.fold == 0 and progress.loss is not None and mark > told:
            told = mark
            report(-progress.loss, mark)

    return note


def _score(
    session: Session, proposals: Proposals, evidence: ArchiveEvidence, verdict: Verdict
) -> float:
    trusted = {score.case for score in evidence.trusted}
    if not trusted:
        return float(np.nanmean([score.foreground.agreement for score in evidence.scores]))
    dice = rehearsed_dice(session, proposals, verdict.decisions, trusted)
    return float(np.mean(list(dice.values())))
