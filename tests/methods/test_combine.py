"""Labels vote in place of networks: what is asked for, and what is decided."""

import numpy as np
import pytest

from raysegclean.errors import ConfigError
from raysegclean.evidence.case_scores import Kind
from raysegclean.evidence.stats import CaseStats, block_stats, case_score
from raysegclean.methods.base import ArchiveEvidence, make_params
from raysegclean.methods.combine.method import COMBINE, CombineParams
from raysegclean.methods.combine.votes import count_votes
from raysegclean.policy.apply import apply_edits
from raysegclean.policy.decisions import edits_of
from raysegclean.policy.edits import Fill, Votes
from raysegclean.voxels.contour_offset import boundary_sums
from raysegclean.voxels.geometry import Box

SHAPE = (6, 12, 12)
SPACING = (1.0, 1.0, 1.0)
CLASSES = 3


def scene(seed=0):
    """A given label and three cleaned ones that differ from it here and there."""
    rng = np.random.default_rng(seed)
    given = np.zeros(SHAPE, np.uint8)
    given[1:5, 2:6, 2:10], given[1:5, 7:10, 2:10] = 1, 2
    cleaned = []
    for _ in range(3):
        other = given.copy()
        where = rng.random(SHAPE) < 0.2
        other[where] = rng.integers(0, CLASSES, where.sum())
        other[3:, 2:6, 2:5] = 2  # here all are of one mind
        cleaned.append(other)
    return given, cleaned


def evidence_of(**scenes):
    scores, stats = [], {}
    for case, (given, votes) in scenes.items():
        ballot = count_votes(given, votes, CLASSES)
        stats[case] = block_stats(ballot.evidence(), ballot.proposal(), given, CLASSES)
        whole = Box.whole(SHAPE)
        offsets = boundary_sums(
            given, ballot.predicted_zyx, classes=(1, 2), core=whole, spacing_mm=SPACING
        )
        scores.append(case_score(case, stats[case], offsets))
    return ArchiveEvidence(scores, (), CaseStats.zero(CLASSES), stats)


@pytest.mark.parametrize("agree", [1, 2, 3])
def test_exactly_the_voxels_on_which_enough_labels_agree_change(agree):
    given, votes = scene()
    params = CombineParams("a b c", agree=agree)
    verdict = COMBINE.policy(evidence_of(x=(given, votes), same=(given, [given] * 3)), params)
    assert set(edits_of(verdict.decisions)) == {"x"}
    applied = apply_edits(
        given,
        Box.whole(SHAPE),
        count_votes(given, votes, CLASSES).proposal(),
        edits_of(verdict.decisions)["x"],
        classes=CLASSES,
        spacing_mm=SPACING,
    )
    counts = np.stack([(np.stack(votes) == value).sum(axis=0) for value in range(CLASSES)])
    np.put_along_axis(counts, given[None].astype(np.intp), 0, axis=0)
    np.testing.assert_array_equal(applied.label_zyx != given, counts.max(axis=0) >= agree)
    assert (applied.reason_zyx[applied.label_zyx != given] > 128).all()
    assert verdict.decisions["same"].classes[1].edit.action == "keep"
    assert f"{agree} of 3 labels agree" in verdict.decisions["x"].classes[1].why


def test_a_structure_that_the_label_lacks_is_filled_where_enough_labels_have_it():
    given, _ = scene()
    without = np.where(given == 2, 0, given).astype(np.uint8)
    evidence = evidence_of(x=(without, [given, given, without]))
    verdict = COMBINE.policy(evidence, CombineParams("a b c"))
    assert verdict.decisions["x"].classes[1].edit.action == "keep"
    assert verdict.decisions["x"].classes[2].edit.action == "fill"
    assert set(edits_of(verdict.decisions)["x"].of(Fill)) == {2}
    assert edits_of(verdict.decisions)["x"].rule == Votes()


def test_labels_vote_and_nothing_is_trained():
    voters = COMBINE.voters(CombineParams("organs_coseg, organs_adele", agree=1))
    assert (voters.members, voters.score) == (0, "who")
    assert voters.labels == ("organs_coseg", "organs_adele")
    assert not COMBINE.corrects(CombineParams("a b"))
    assert COMBINE.retrains(CombineParams("a b", retrain=True))


def test_a_verdict_does_not_depend_on_the_order_of_the_cases():
    scenes = {f"c{n}": scene(n) for n in range(5)}
    params = CombineParams("a b c")
    forward = COMBINE.policy(evidence_of(**scenes), params)
    backward = COMBINE.policy(evidence_of(**dict(reversed(scenes.items()))), params)
    assert edits_of(forward.decisions) == edits_of(backward.decisions)
    assert all(
        set(one.classes[1].above) == set(Kind) for one in edits_of(forward.decisions).values()
    )


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, "params.labels"),
        ({"labels": "alone"}, "2 to 7"),
        ({"labels": "a b a"}, "different"),
        ({"labels": "a b c d e f g h"}, "2 to 7"),
        ({"labels": "a b", "agree": 3}, "params.agree"),
        ({"labels": "a b", "agree": 0}, "1 to 2"),
    ],
)
def test_values_that_make_no_sense_are_refused(values, told):
    with pytest.raises(ConfigError, match=told):
        make_params(COMBINE, values)
