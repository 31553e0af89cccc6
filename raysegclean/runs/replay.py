"""Replay: the default policy decides again from the scores that a run kept, without a network.

Not replayed: what needs voxels, as the voxel corrector and the guard against harm, and the rules of
methods that decide for themselves.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raysegclean.config.settings import Config, make_config
from raysegclean.errors import ConfigError, InputError
from raysegclean.evidence.case_scores import CaseScore, scores_of
from raysegclean.policy.blend_groups import with_blends
from raysegclean.policy.default import decide
from raysegclean.policy.kept import judged_kept, usual_labels
from raysegclean.policy.params import PolicyParams
from raysegclean.runs.begin import LATEST
from raysegclean.store.run import existing_run

__all__ = ["Change", "ReplayReport", "edits_of", "replay"]

SECTION = "policy."
Edits = dict[tuple[str, int], str]


@dataclass(frozen=True)
class Change:
    """One class of one case that would be decided otherwise."""

    case: str
    cls: int
    before: str
    after: str


@dataclass(frozen=True)
class ReplayReport:
    """What other numbers would change."""

    run: str
    cases: int
    edits: Mapping[str, int]
    """Edit -> classes of cases that would get it."""
    changed: int
    changes: tuple[Change, ...]


def replay(run_uri: str, settings: Mapping[str, Any]) -> ReplayReport:
    """Decide again with `settings` (`policy.NAME` -> value), held against what the run decided by.

    Raises InputError for a run that kept no scores yet, ConfigError for what is no number of the
    policy, or out of its range.
    """
    for name in settings:
        if not name.startswith(SECTION):
            raise ConfigError(f"{name}: only numbers of the policy are replayed, as {SECTION}NAME.")
    run = existing_run(run_uri)
    rows = run.read_table("evidence.parquet")
    if not rows:
        raise InputError(f"{run.uri}: evidence.parquet is missing; it is kept once a run proposed.")
    scores, trusted = scores_of(rows), scores_of(rows, "trusted")
    config = make_config(run.read_json(LATEST) or (run.resolved() or {})["config"])
    before = edits_of(scores, trusted, _policy(config))
    after = edits_of(scores, trusted, _policy(config.with_settings(settings)))
    changes = tuple(
        Change(case, cls, before[case, cls], after[case, cls])
        for case, cls in sorted(after)
        if before[case, cls] != after[case, cls]
    )
    return ReplayReport(run.uri, len(scores), Counter(after.values()), len(changes), changes)


def _policy(config: Config) -> PolicyParams:
    """Return the numbers that a run of this config decides by."""
    confidence: Any = config.params.get("confidence")
    return config.policy.with_confidence(confidence)


def edits_of(
    scores: Sequence[CaseScore], trusted: Sequence[CaseScore], params: PolicyParams
) -> Edits:
    """Return what the default policy would do with each class of each case."""
    decisions, _ = with_blends(scores, decide(scores, params, trusted=trusted), params)
    decisions = judged_kept(decisions, scores, usual_labels(scores, trusted, params))
    return {
        (case, cls): one.action
        for case, decision in decisions.items()
        for cls, one in decision.classes.items()
    }
