"""Replay: the default policy decides again from the scores that a run kept, without a network.

Gross errors too, in the cases that the run looked at as a whole. Not replayed, and told by the
report: what needs voxels, as looks at other cases, the voxel corrector and the guard against harm,
and the rules of methods that decide for themselves.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raysegclean.config.settings import Config, make_config
from raysegclean.errors import ConfigError, InputError
from raysegclean.evidence.case_scores import CaseScore, classes_of, scores_of
from raysegclean.policy.blend_groups import with_blends
from raysegclean.policy.decisions import CaseDecision
from raysegclean.policy.default import decide
from raysegclean.policy.gross import (
    all_explained,
    not_gross,
    suspects,
    usual_agreement,
    with_gross,
)
from raysegclean.policy.gross_look import GrossLook
from raysegclean.policy.kept import judged_kept, usual_labels
from raysegclean.policy.params import PolicyParams
from raysegclean.runs.begin import LATEST
from raysegclean.runs.gross import LOOKS
from raysegclean.store.run import RunFolder, existing_run

__all__ = ["Change", "ReplayReport", "decided", "edits_of", "replay"]

SECTION = "policy."
Edits = dict[tuple[str, int], str]
Looks = Mapping[str, GrossLook]


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
    not_replayed: tuple[str, ...] = ()
    """Decisions that these scores do not tell, and how many."""


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
    looks = {row["case"]: GrossLook.from_text(row["look"]) for row in run.read_table(LOOKS) or ()}
    config = make_config(run.read_json(LATEST) or (run.resolved() or {})["config"])
    other = _policy(config.with_settings(settings))
    before = edits_of(scores, trusted, _policy(config), looks)
    after = edits_of(scores, trusted, other, looks)
    changes = tuple(
        Change(case, cls, before[case, cls], after[case, cls])
        for case, cls in sorted(after)
        if before[case, cls] != after[case, cls]
    )
    edits, untold = Counter(after.values()), _not_replayed(run, scores, trusted, other, looks)
    return ReplayReport(run.uri, len(scores), edits, len(changes), changes, untold)


def _policy(config: Config) -> PolicyParams:
    """Return the numbers that a run of this config decides by."""
    confidence: Any = config.params.get("confidence")
    return config.policy.with_confidence(confidence)


def _not_replayed(
    run: RunFolder,
    scores: Sequence[CaseScore],
    trusted: Sequence[CaseScore],
    params: PolicyParams,
    looks: Looks,
) -> tuple[str, ...]:
    """Return what is not replayed, and of how much."""
    unseen = {*suspects(scores, usual_agreement(scores, params, trusted), params)} - {*looks}
    held = (run.read_json("actions.json") or {}).get("held", {})
    classes = sum(len(mine) for mine in held.values())
    told = []
    if unseen:
        told.append(
            f"gross errors in {len(unseen)} suspicious cases that the run did not look at as a "
            f"whole, as {min(unseen)}: only a run can"
        )
    if held:
        told.append(
            f"the guard against harm, which left {classes} classes in {len(held)} cases as given "
            "after their edit was decided"
        )
    return tuple(told)


def edits_of(
    scores: Sequence[CaseScore],
    trusted: Sequence[CaseScore],
    params: PolicyParams,
    looks: Looks | None = None,
) -> Edits:
    """Return what the default policy would do with each class of each case (`decided`)."""
    decisions = decided(scores, trusted, params, looks)
    return {
        (case, cls): one.action
        for case, decision in decisions.items()
        for cls, one in decision.classes.items()
    }


def decided(
    scores: Sequence[CaseScore],
    trusted: Sequence[CaseScore],
    params: PolicyParams,
    looks: Looks | None = None,
) -> dict[str, CaseDecision]:
    """Return what the default policy decides of each case.

    `looks` are what was seen of cases that were looked at as a whole.
    """
    names = {c: str(c) for c in classes_of(scores)}
    usual = usual_agreement(scores, params, trusted) if looks else {}
    gross = all_explained(scores, looks or {}, usual, params, names)
    judged, judges = not_gross(scores, gross), not_gross(trusted, gross)
    decisions, _ = with_blends(judged, decide(judged, params, trusted=judges), params)
    decisions = with_gross(decisions, gross)
    return judged_kept(decisions, scores, usual_labels(scores, trusted, params))
