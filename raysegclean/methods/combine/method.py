"""Combine: several methods vote, and a voxel changes where enough of them agree.

Each method runs on its own and publishes a label of its own; this one reads those labels in place
of networks, so nothing is trained and nothing predicted. A voxel changes when `agree` of the labels
have the same new value there. The reason of each change records which labels they were.

Methods that share voters share mistakes: three labels made from one ensemble are nearly one vote.
"""

from pydantic.dataclasses import dataclass

from raysegclean.errors import ConfigError
from raysegclean.evidence.case_scores import CaseScore, Kind
from raysegclean.evidence.voxel_evidence import threshold_level
from raysegclean.methods.base import ArchiveEvidence, Method, Verdict, Voters
from raysegclean.methods.combine.votes import MAX_LABELS, vote_threshold
from raysegclean.methods.params import STRICT
from raysegclean.policy.decisions import CaseDecision, Decision
from raysegclean.policy.edits import Fill, Keep, Replace, Votes

__all__ = ["COMBINE", "CombineParams"]


@dataclass(frozen=True, config=STRICT)
class CombineParams:
    """Settings of a combination."""

    labels: str = ""
    """Names of two to seven labels that earlier runs published, separated by spaces; of changes
    with equally many votes, that of the label named first counts."""
    agree: int = 2
    """How many labels must have the same new value."""
    retrain: bool = False
    """Whether a final network is trained on the cleaned labels."""

    @property
    def names(self) -> tuple[str, ...]:
        """The labels, in the order given."""
        return tuple(self.labels.replace(",", " ").split())

    def __post_init__(self) -> None:
        """Refuse too few or too many labels, and an agreement that none or all changes reach."""
        count = len(set(self.names))
        if count != len(self.names) or not 2 <= count <= MAX_LABELS:
            raise ConfigError(
                f"params.labels: expected the names of 2 to {MAX_LABELS} different labels, as in "
                f'"organs_coseg organs_adele", got {self.labels!r}.'
            )
        if not 1 <= self.agree <= count:
            raise ConfigError(
                f"params.agree: expected a number of labels from 1 to {count}, got {self.agree}."
            )


def _voters(params: CombineParams) -> Voters:
    return Voters(members=0, labels=params.names, score="who")


def _policy(evidence: ArchiveEvidence, params: CombineParams) -> Verdict:
    return Verdict({score.case: _decide(score, params) for score in evidence.scores})


def _decide(score: CaseScore, params: CombineParams) -> CaseDecision:
    threshold = vote_threshold(params.agree, len(params.names))
    level = threshold_level(threshold)
    classes = {}
    for channel, one in score.classes.items():
        voxels = sum(int(counts[level:].sum()) for counts in one.candidates.values())
        voters = f"{params.agree} of {len(params.names)} labels"
        if voxels:
            above = dict.fromkeys(Kind, threshold)
            why = f"{voters} agree on {voxels} voxels"
            # What each method may add to a label that lacks the class, they may together.
            edit = Replace(above) if one.given_vox else Fill(above)
            classes[channel] = Decision(edit, why)
        else:
            why = f"no {voters} agree that it grows, or gives way to background"
            classes[channel] = Decision(Keep(), why)
    return CaseDecision(classes, Votes())


COMBINE = Method("combine", CombineParams, _voters, _policy)
