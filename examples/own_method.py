"""A method of your own: in the worst cases, believe three networks that are of one mind.

Run it with `method: own_method:METHOD` and this folder on PYTHONPATH; docs/own-method.md explains
it line by line.
"""

from dataclasses import dataclass

from raysegclean.errors import ConfigError
from raysegclean.evidence.case_scores import CaseScore, Kind
from raysegclean.methods.base import ArchiveEvidence, Method, Verdict, Voters
from raysegclean.policy.decisions import CaseDecision, Decision
from raysegclean.policy.edits import Keep, Replace


@dataclass(frozen=True)
class Params:
    """What `params:` in the config may hold."""

    worst: float = 0.1
    """Share of cases that are cleaned."""
    confidence: float = 0.9
    """Mean probability from which the networks are believed."""

    def __post_init__(self) -> None:
        """Refuse values outside their range, before anything runs."""
        for name in ("worst", "confidence"):
            value = getattr(self, name)
            if not 0 < value <= 1:
                raise ConfigError(f"params.{name}: expected above 0 and up to 1, got {value}.")


def _voters(params: Params) -> Voters:  # noqa: ARG001
    return Voters(members=3, needs_agreement=True)


def _badness(score: CaseScore) -> tuple[float, str]:
    """Sort by how badly the networks explain the label, per voxel; ties by name."""
    return (-score.foreground.nats / max(1, score.foreground.union_vox), score.case)


def _policy(evidence: ArchiveEvidence, params: Params) -> Verdict:
    ranked = sorted(evidence.scores, key=_badness)
    above = dict.fromkeys(Kind, params.confidence)
    clean = Decision(Replace(above), "among the worst cases")
    keep = Decision(Keep(), "not among the worst cases")
    return Verdict(
        {
            score.case: CaseDecision(
                dict.fromkeys(score.classes, clean if rank < params.worst * len(ranked) else keep)
            )
            for rank, score in enumerate(ranked)
        }
    )


METHOD = Method("own", Params, _voters, _policy)
