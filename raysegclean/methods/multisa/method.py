"""Multi-SA: a network that is only told which classes are present, as a weak witness.

The network (`methods.multisa.network`) never sees an outline, so it cannot learn a wrong one. Its
maps are too coarse to correct a label, but they say where a structure must be. So by default
nothing is edited: cases are ranked, and what lies elsewhere, is missing, or is labelled where the
map never looks goes to a person with a sentence that says so.

What stands out is measured in `methods.multisa.localisation`, from the counts of given and
predicted voxels that every method has. `posterior` ranks: above one half a case goes to a person.

`rule: pseudo` does what the source does: the maps become the label of cases that have none.

Source: the abstract of Multi-SA (multi-layer self-attention for weakly supervised segmentation);
training (`methods.multisa.hook`) and thresholds are ours.
"""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from raysegclean.evidence.case_scores import CaseScore, Kind
from raysegclean.methods.base import ArchiveEvidence, Method, Verdict, Voters
from raysegclean.methods.multisa.localisation import Localisation
from raysegclean.methods.params import STRICT, Count, Positive, Share
from raysegclean.nets.hooks import HookSpec
from raysegclean.policy.decisions import Decision
from raysegclean.policy.edits import Fill

__all__ = ["MULTISA", "MultisaParams"]


@dataclass(frozen=True, config=STRICT)
class MultisaParams:
    """Settings of Multi-SA."""

    rule: Literal["rank", "pseudo"] = "rank"
    members: Count = 1
    """Networks per fold."""
    fields: Count = 2
    """Into how many fields y and x of a slice are cut; 1 asks for whole slices, as the source."""
    sharpness: Positive = 4.0
    """How much a field's score is its highest voxel (large) rather than its mean (near 0)."""
    sds: Positive = 4.0
    """A case stands out by this many robust sds."""
    found: Share = 0.5
    """A class that the label lacks is missed when its map is this share of the usual one."""
    confidence: Share = 0.5
    """Probability above which the map becomes the label of a case without one (`rule: pseudo`)."""
    min_cases: Annotated[int, Field(ge=4)] = 8
    """Fewer cases than this have no distribution."""


def _voters(params: MultisaParams) -> Voters:
    hook = HookSpec.of(
        "presence",
        fields=params.fields,
        sharpness=params.sharpness,
        skips_empty=params.rule == "pseudo",
    )
    return Voters(members=params.members, hook=hook, network="multisa")


def _policy(evidence: ArchiveEvidence, params: MultisaParams) -> Verdict:
    witness = Localisation.of(
        evidence.scores, sds=params.sds, found=params.found, min_cases=params.min_cases
    )
    decisions = {score.case: witness.judge(score) for score in evidence.scores}
    if params.rule == "pseudo":
        why = "the case has no label; the map of a network told of presence alone proposes one"
        one = Decision(Fill({Kind.ADDED: params.confidence}), why)
        for score in evidence.scores:
            seen = dict.fromkeys(_to_propose(score, witness), one)
            decisions[score.case] = decisions[score.case].but(seen)
    return Verdict(decisions)


def _to_propose(score: CaseScore, witness: Localisation) -> list[int]:
    """Return the classes that the map proposes for a case without a label."""
    if score.foreground.given_vox or not score.foreground.predicted_vox:
        return []
    return [channel for channel in score.classes if witness.has_learnt(score.fold, channel)]


MULTISA = Method("multisa", MultisaParams, _voters, _policy)
