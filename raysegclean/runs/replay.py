"""Replay: the default policy decides again from the scores that a run kept, without a network.

Not replayed: what needs voxels, as the voxel corrector and the guard against harm, and the rules of
methods that decide for themselves.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from raysegclean.errors import ConfigError, InputError
from raysegclean.evidence.case_scores import CaseScore
from raysegclean.evidence.table import scores_of
from raysegclean.policy.blend_groups import with_blends
from raysegclean.policy.default import decide
from raysegclean.policy.params import PolicyParams
from raysegclean.runs.begin import LATEST
from raysegclean.store.run import existing_run

__all__ = ["Change", "ReplayReport", "edits_of", "policy_of", "replay"]

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

    Raises InputError for a run that kept no scores yet, ConfigError for a number that is none.
    """
    run = existing_run(run_uri)
    rows = run.read_table("evidence.parquet")
    if not rows:
        raise InputError(f"{run.uri}: evidence.parquet is missing; it is kept once a run proposed.")
    scores, trusted = scores_of(rows), scores_of(rows, "trusted")
    config = run.read_json(LATEST) or (run.resolved() or {})["config"]
    usual = PolicyParams(**config.get("policy", {}))
    usual = usual.with_confidence(config["params"].get("confidence"))
    before = edits_of(scores, trusted, usual)
    after = edits_of(scores, trusted, policy_of(settings, usual))
    changes = tuple(
        Change(case, cls, before[case, cls], after[case, cls])
        for case, cls in sorted(after)
        if before[case, cls] != after[case, cls]
    )
    return ReplayReport(run.uri, len(scores), Counter(after.values()), len(changes), changes)


def edits_of(
    scores: Sequence[CaseScore], trusted: Sequence[CaseScore], params: PolicyParams
) -> Edits:
    """Return what the default policy would do with each class of each case."""
    decisions, _ = with_blends(scores, decide(scores, params, trusted=trusted), params)
    return {
        (case, cls): one.action.value
        for case, decision in decisions.items()
        for cls, one in decision.classes.items()
    }


def policy_of(settings: Mapping[str, Any], usual: PolicyParams) -> PolicyParams:
    """Return the policy's numbers with those of `settings`, named as `policy.posterior`."""
    known = PolicyParams.model_fields
    for name in settings:
        if not name.startswith(SECTION) or name.removeprefix(SECTION) not in known:
            raise ConfigError(
                f"{name}: not a number of the policy. They are {SECTION}"
                f"{f', {SECTION}'.join(sorted(known))}."
            )
    changed = {name.removeprefix(SECTION): value for name, value in settings.items()}
    try:
        return PolicyParams(**usual.model_dump() | changed)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        expected, got = known[name].description, changed[name]
        raise ConfigError(f"{SECTION}{name}: expected {expected}; got {got!r}.") from error
