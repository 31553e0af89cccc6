"""From the counts of a case to the scores on which a policy decides, and from its decisions to
the actions that the rule carries out."""

from collections.abc import Iterable

from raysegclean.core.boundary import OffsetSums
from raysegclean.core.policy import Action, CaseDecision, CaseScore, ClassDecision, ClassScore
from raysegclean.core.rules import Actions
from raysegclean.core.stats import NATS_SCALE, CaseStats

__all__ = ["case_actions", "case_score"]


def case_score(case: str, stats: CaseStats, offsets: OffsetSums) -> CaseScore:
    """Return the scores of one case; `offsets` are keyed by channel."""
    given, predicted, both = stats.given_vox, stats.predicted_vox, stats.both_vox
    channels = range(1, stats.classes)
    foreground = ClassScore(
        offset_vox=offsets.mean_vox(*channels),
        boundary_vox=offsets.voxels(*channels),
        nats=int(stats.cross_entropy[0]) / NATS_SCALE,
        union_vox=stats.foreground_vox,
        given_vox=int(given[1:].sum()),
        predicted_vox=int(predicted[1:].sum()),
        both_vox=int(stats.confusion[1:, 1:].sum()),
    )
    classes = {
        c: ClassScore(
            offset_vox=offsets.mean_vox(c),
            boundary_vox=offsets.voxels(c),
            nats=int(stats.cross_entropy[c]) / NATS_SCALE,
            union_vox=int(given[c] + predicted[c] - both[c]),
            given_vox=int(given[c]),
            predicted_vox=int(predicted[c]),
            both_vox=int(both[c]),
        )
        for c in channels
    }
    return CaseScore(case, foreground, classes)


def case_actions(decision: CaseDecision) -> Actions:
    """Return what the rule may do in a case."""
    return Actions(
        shift_vox={c: d.shift_vox for c, d in _with(decision, Action.SHIFT)},
        replace_above={c: d.min_confidence for c, d in _with(decision, Action.REPLACE)},
    )


def _with(decision: CaseDecision, action: Action) -> Iterable[tuple[int, ClassDecision]]:
    return ((c, d) for c, d in decision.classes.items() if d.action is action)
