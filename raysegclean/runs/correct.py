"""The voxel corrector: with enough trusted cases it takes over in flagged cases.

What all cases of an archive share cannot be seen without trusted labels. Where most trusted cases
turn out to be wrong, every case counts as flagged; where none is, there is nothing to learn from.
It is a second look at the trusted cases, and a revision of the flagged ones.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import reduce

import numpy as np

from raysegclean.evidence.case_scores import FOREGROUND
from raysegclean.evidence.second_pass import Answer, CaseQuery, Revision
from raysegclean.methods.base import ArchiveEvidence, Asking, Verdict
from raysegclean.policy.contour_offsets import centre_of, offsets_of
from raysegclean.policy.corrector import MAX_ROWS, CorrectorReviser, CorrectorRows, RowsLook
from raysegclean.policy.edits import Fill, Reason, Revise
from raysegclean.runs.propose import Proposals
from raysegclean.runs.second_pass import answered
from raysegclean.runs.session import Session

__all__ = ["correct"]


def correct(
    session: Session, proposals: Proposals, evidence: ArchiveEvidence, verdict: Verdict
) -> tuple[Proposals, Verdict]:
    """Return the verdict with the corrector in place of other edits in flagged cases.

    Both come back unchanged where the method wants no corrector or has revised the labels itself,
    or the trusted cases are too few to fit one, or too right.
    """
    wanted = session.method.corrects(session.params) and verdict.revision is None
    if not wanted or len(evidence.trusted) < evidence.policy.min_trusted:
        return proposals, verdict
    taken_over = _taking_over(evidence, verdict)
    proposals, corrected = answered(session, proposals, taken_over)
    if corrected.revision is None:
        count = len(evidence.trusted)
        session.events.say("correct", f"the {count} trusted cases show no error to learn from")
    return proposals, corrected


def _taking_over(evidence: ArchiveEvidence, verdict: Verdict) -> Asking:
    """Sample the trusted cases, then leave the flagged ones to the corrector."""
    offsets, _ = offsets_of(evidence.scores, FOREGROUND, evidence.policy)
    offsets -= centre_of(offsets, evidence.policy)
    cases = [score.case for score in evidence.scores]
    values = {c: {"offset_vox": float(v)} for c, v in zip(cases, offsets, strict=True)}
    trusted = [score.case for score in evidence.trusted]
    answers = yield CaseQuery(RowsLook(), {case: values[case] for case in trusted})
    dice = _given_dice(answers)
    # A case's sample is smaller than what the merged one may hold.
    parts = [
        replace(CorrectorRows.from_arrays(answers[case]), limit=MAX_ROWS)
        for case in sorted(answers)
    ]
    rows = reduce(CorrectorRows.merge, parts) if parts else None
    known_wrong = {case for case, value in dice.items() if value < evidence.policy.right_dice}
    if rows is None or not known_wrong or len(np.unique(rows.targets)) < 2:
        return verdict
    most_are_wrong = float(np.median(list(dice.values()))) < evidence.policy.right_dice
    flagged = [
        case
        for case in (score.case for score in evidence.scores)
        if most_are_wrong or case in known_wrong or verdict.decisions[case].flagged
    ]
    revision = Revision(CorrectorReviser.of(rows), {case: values[case] for case in flagged})
    return replace(_corrected(verdict, flagged, trusted), revision=revision)


def _corrected(verdict: Verdict, cases: Collection[str], trusted: Sequence[str]) -> Verdict:
    """Return the verdict with the corrector in every class of `cases` that is not filled."""
    why = f"the corrector, fitted on {len(trusted)} trusted cases"
    decisions = dict(verdict.decisions)
    for case in cases:
        taken_over = {
            channel: replace(one, edit=Revise(Reason.CORRECT), why=why)
            for channel, one in decisions[case].classes.items()
            if not isinstance(one.edit, Fill)
        }
        decisions[case] = decisions[case].but(taken_over)
    return Verdict(decisions, {**verdict.chosen, "corrected": len(cases)})


def _given_dice(answers: Mapping[str, Answer]) -> dict[str, float]:
    """Return the Dice of given to trusted foreground of each trusted case that has any."""
    counts = {case: (int(a["both_vox"]), int(a["sum_vox"])) for case, a in answers.items()}
    return {case: 2 * both / total for case, (both, total) in counts.items() if total}
