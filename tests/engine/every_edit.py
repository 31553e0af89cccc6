"""A method that gives every case another edit, so that one run changes voxels for every reason."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysegclean.evidence.case_scores import Kind
from raysegclean.evidence.second_pass import PredictedBlock, Revision
from raysegclean.methods.base import ArchiveEvidence, Method, Verdict, Voters
from raysegclean.policy.decisions import CaseDecision, Decision
from raysegclean.policy.edits import (
    Blend,
    Cut,
    Displace,
    Edit,
    Fill,
    FlipAbove,
    Mirror,
    Reason,
    Region,
    Replace,
    Revise,
    Shift,
    Votes,
    VoxelRule,
)
from raysegclean.voxels.geometry import Box, Index3
from raysegclean.voxels.packing import mask_to_text

SHAPE = (8, 24, 28)
SURE = dict.fromkeys(Kind, 0.5)
EDITS: Mapping[Reason, tuple[Edit, VoxelRule | None]] = {
    Reason.SHIFT: (Shift(1.0), None),
    Reason.REPLACE: (Replace(SURE), None),
    Reason.CORRECT: (Revise(Reason.CORRECT), None),
    Reason.FLIP: (Replace(), FlipAbove(0.02)),
    Reason.BIAS: (Revise(Reason.BIAS), None),
    Reason.POSTERIOR: (Revise(Reason.POSTERIOR), None),
    Reason.VOTE: (Replace(SURE), Votes()),
    Reason.BLEND: (Blend(), None),
    Reason.FILL: (Fill(SURE), None),
    Reason.MIRROR: (Mirror(axis=2), None),
    Reason.DISPLACE: (Displace(by_zyx=(0, 0, -2)), None),
    Reason.CUT: (Cut(axis=0, plane_vox=0), None),
    Reason.REGION: (Region(box=Box.whole(SHAPE), voxels=mask_to_text(np.ones(SHAPE, bool))), None),
}
"""Reason of the voxels of a case, which is named so -> what is done in it."""


@dataclass(frozen=True)
class TakesThePrediction:
    """A second pass that writes what the voters think."""

    def halo_vox(self, spacing_mm: tuple[float, float, float]) -> Index3:
        """Return that nothing beyond the core is read."""
        return (0, 0, 0)

    def revise(self, block: PredictedBlock, values: Mapping[str, Any]) -> NDArray[np.uint8]:
        """Return the most probable channels."""
        return block.prob_czyx.argmax(0)[block.core.slices].astype(np.uint8)


@dataclass(frozen=True)
class Params:
    """There is nothing to set."""


def _policy(evidence: ArchiveEvidence, params: Params) -> Verdict:
    decisions = {}
    for score in evidence.scores:
        edit, rule = EDITS[Reason[score.case]]
        decisions[score.case] = CaseDecision({1: Decision(edit, "one of each")}, rule)
    revised = {case: {} for case, one in decisions.items() if one.edits.revisions}
    return Verdict(decisions, revision=Revision(TakesThePrediction(), revised))


METHOD = Method(
    "every edit",
    Params,
    lambda _: Voters(members=1, score="total"),
    _policy,
    retrains=lambda _: False,
    corrects=lambda _: False,
)
