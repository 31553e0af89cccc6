"""The voxel corrector: with enough trusted cases it takes over in flagged cases.

What all cases of an archive share cannot be seen without trusted labels. Where most trusted cases
turn out to be wrong, every case counts as flagged; where none is, there is nothing to learn from.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from raysegclean.core.casescore import Action
from raysegclean.core.corrector import MAX_ROWS, CorrectorRows
from raysegclean.core.identity import ALGORITHM_VERSIONS, digest
from raysegclean.core.robust import half_sample_mode
from raysegclean.core.rules import Actions
from raysegclean.dist.correct import CorrectJob, CorrectStage, RowsStage, rows_key
from raysegclean.methods.base import ArchiveEvidence, Verdict
from raysegclean.stages.proposing import Proposals, relabel_resources
from raysegclean.stages.session import Session

__all__ = ["correct"]

MIN_TRUSTED = 8
RIGHT_DICE = 0.95
"""Trusted cases below this Dice of given to trusted foreground count as wrong."""


def correct(
    session: Session, proposals: Proposals, evidence: ArchiveEvidence, verdict: Verdict
) -> tuple[Proposals, Verdict]:
    """Return the verdict with the corrector in place of other actions in flagged cases.

    Both come back unchanged where the method wants no corrector, or the trusted cases are too few
    to fit one, or too right.
    """
    if not session.method.corrects(session.params) or len(evidence.trusted) < MIN_TRUSTED:
        return proposals, verdict
    centre = half_sample_mode(np.array([s.foreground.offset_vox for s in evidence.scores]))
    offsets = {s.case: s.foreground.offset_vox - centre for s in evidence.scores}
    trusted = [score.case for score in evidence.trusted]
    rows, dice = _sample(session, proposals, offsets, trusted)
    if rows is None or min(dice) >= RIGHT_DICE:
        session.say(f"correct: the {len(trusted)} trusted cases show no error to learn from")
        return proposals, verdict
    most_are_wrong = float(np.median(dice)) < RIGHT_DICE
    cases = [score.case for score in evidence.scores]
    flagged = cases if most_are_wrong else [c for c in cases if verdict.decisions[c].flagged]
    version = ALGORITHM_VERSIONS["correct"]
    keys = {c: digest(version, rows, proposals.keys[c], offsets[c]) for c in flagged}
    job = CorrectJob(proposals.job, keys, offsets, rows)
    session.run_stage("correct", CorrectStage, job, keys, relabel_resources(session))
    alive = set(session.alive())
    corrections = {case: key for case, key in keys.items() if case in alive}
    return replace(proposals, corrections=corrections), _corrected(verdict, corrections, trusted)


def _corrected(verdict: Verdict, cases: Collection[str], trusted: Sequence[str]) -> Verdict:
    why = f"the corrector, fitted on {len(trusted)} trusted cases"
    decisions = dict(verdict.decisions)
    for case in cases:
        classes = {
            channel: replace(one, action=Action.CORRECT, why=why, shift_vox=0.0, above={})
            for channel, one in decisions[case].classes.items()
        }
        decisions[case] = replace(decisions[case], classes=classes)
    return Verdict(
        decisions=decisions,
        actions={c: Actions(correct=frozenset(decisions[c].classes)) for c in cases},
        chosen={**verdict.chosen, "corrected": len(cases)},
    )


def _sample(
    session: Session, proposals: Proposals, offsets: Mapping[str, float], trusted: list[str]
) -> tuple[str | None, list[float]]:
    """Sample and merge the training rows; return their key, and each trusted case's given Dice."""
    version = ALGORITHM_VERSIONS["correct"]
    keys = {c: digest(version, proposals.keys[c], offsets[c]) for c in trusted}
    job = CorrectJob(proposals.job, keys, offsets)
    records = session.run_stage("rows", RowsStage, job, keys, relabel_resources(session))
    merged: CorrectorRows | None = None
    for task, record in sorted(records.items()):
        rows = CorrectorRows.from_bytes(session.run.store.get(rows_key(task, record["key"])))
        # A shard's sample is smaller than what the merged one may hold.
        rows = replace(rows, limit=MAX_ROWS)
        merged = rows if merged is None else merged.merge(rows)
    dice = _given_dice(records)
    if merged is None or not dice or len(np.unique(merged.targets)) < 2:
        return None, []
    used = sorted((task, record["key"]) for task, record in records.items())
    name = f"corrector/rows-{digest(used)}.npz"
    session.run.store.put(name, merged.to_bytes())
    return name, dice


def _given_dice(records: Mapping[str, dict[str, Any]]) -> list[float]:
    """Return the Dice of given to trusted foreground, per trusted case that has any."""
    both: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for record in records.values():
        both[record["case"]] += record["both_vox"]
        total[record["case"]] += record["sum_vox"]
    return [2 * both[case] / total[case] for case in total if total[case]]
