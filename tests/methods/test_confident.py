"""Confident learning as a policy: from the histograms of one pass to what cleanlab flags."""

import numpy as np
import pytest
import torch
from confident_learning import (
    confident_counts,
    confident_thresholds,
    cut_of,
    flags,
    issue_count,
    low_counts,
    select,
    self_sums,
)

from raysegclean.errors import ConfigError
from raysegclean.evidence.case_scores import CaseScore, ClassScore
from raysegclean.evidence.proposals import propose
from raysegclean.evidence.stats import CaseStats, block_stats
from raysegclean.evidence.voxel_evidence import EvidenceSum
from raysegclean.methods.base import ArchiveEvidence, Verdict, make_params
from raysegclean.methods.confident.method import CONFIDENT, ConfidentParams, cut_level
from raysegclean.policy.apply import apply_edits
from raysegclean.policy.decisions import edits_of
from raysegclean.voxels.geometry import Box

CLASSES = 3


def scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a label with some wrong voxels, and probabilities (C, z, y, x)."""
    rng = np.random.default_rng(seed)
    shape = (6, 20, 20)
    truth = rng.choice(CLASSES, shape, p=[0.7, 0.2, 0.1])
    logits = rng.normal(0, 1.5, (CLASSES, *shape))
    np.put_along_axis(logits, truth[None], rng.normal(4, 1.5, (1, *shape)), axis=0)
    powers = np.exp(logits)
    label = np.where(rng.random(shape) < 0.1, rng.integers(0, CLASSES, shape), truth)
    return label.astype(np.uint8), (powers / powers.sum(axis=0)).astype(np.float32)


def observed(label: np.ndarray, prob: np.ndarray):
    sums = EvidenceSum()
    sums.add(torch.from_numpy(prob))
    found = sums.finish(label)
    proposal = propose(found, label, score="given_prob")
    return proposal, block_stats(found, proposal, label, CLASSES)


def archive(*cases: str, totals: CaseStats) -> ArchiveEvidence:
    one = ClassScore(0.0, 100, 1.0, 10, 10, 10, 10)
    return ArchiveEvidence([CaseScore(case, one, {1: one, 2: one}) for case in cases], (), totals)


def test_the_published_rule_changes_what_cleanlab_flags_to_a_step_of_the_histogram() -> None:
    scenes = {f"c{seed}": scene(seed) for seed in range(4)}
    seen = {case: observed(*arrays) for case, arrays in scenes.items()}
    totals = CaseStats.zero(CLASSES)
    for _, stats in seen.values():
        totals = totals.merge(stats)
    verdict = CONFIDENT.policy(archive(*scenes, totals=totals), ConfidentParams(rule="cleanlab"))
    assert isinstance(verdict, Verdict)

    label = np.stack([label for label, _ in scenes.values()])
    prob = np.stack([prob for _, prob in scenes.values()], axis=1)
    t = confident_thresholds(self_sums(label, prob))
    for channel in range(CLASSES):
        assert verdict.chosen[f"t[{channel}]"] == pytest.approx(t[0, channel], abs=1e-7)
    counts = confident_counts(label, prob, t)
    wanted = issue_count(counts)
    assert verdict.chosen["issues"] == pytest.approx(wanted[0, 0], rel=0.02)
    chosen = select(counts, wanted)
    exact = flags(label, prob, cut_of(chosen, low_counts(label, prob, chosen)))
    changed = []
    for case, (given, own) in scenes.items():
        applied = apply_edits(
            given,
            Box.whole(given.shape),
            seen[case][0],
            edits_of(verdict.decisions)[case],
            classes=CLASSES,
            spacing_mm=(1.0, 1.0, 1.0),
        )
        mine = applied.label_zyx != given
        assert (applied.label_zyx[mine] == own.argmax(axis=0)[mine]).all()
        changed.append(mine)
    differing = (np.stack(changed) != exact).sum()
    assert exact.sum() > 300
    assert differing < 0.03 * exact.sum()


def test_networks_that_are_sure_of_background_can_still_contradict_it() -> None:
    # The mean p of background lies within the last of 256 steps.
    rng = np.random.default_rng(0)
    shape = (12, 40, 40)
    truth = np.zeros(shape, np.int64)
    truth[4:8, 10:30, 10:30] = 1
    prob = np.full((CLASSES, *shape), 1e-4, np.float32)
    np.put_along_axis(prob, truth[None], rng.uniform(0.998, 0.9999, (1, *shape)), axis=0)
    prob /= prob.sum(axis=0)
    label = truth.astype(np.uint8)
    label[4:8, 30:33, 10:30] = 1  # drawn too wide by three voxels
    proposal, stats = observed(label, prob)
    verdict = CONFIDENT.policy(archive("a", totals=stats), ConfidentParams(rule="cleanlab"))
    assert verdict.chosen["t[0]"] > 255 / 256
    applied = apply_edits(
        label,
        Box.whole(shape),
        proposal,
        edits_of(verdict.decisions)["a"],
        classes=CLASSES,
        spacing_mm=(1.0, 1.0, 1.0),
    )
    np.testing.assert_array_equal(applied.label_zyx, truth)


def test_an_archive_without_disagreement_is_left_alone() -> None:
    label, prob = scene(1)
    label = prob.argmax(axis=0).astype(np.uint8)
    _, stats = observed(label, prob)
    verdict = CONFIDENT.policy(archive("a", totals=stats), ConfidentParams(rule="cleanlab"))
    assert verdict.chosen["issues"] == 0
    assert not edits_of(verdict.decisions)


def test_the_cut_is_the_step_that_flags_nearest_to_n_voxels() -> None:
    totals = CaseStats.zero(2)
    totals.score[0, 1, 3] = 10
    totals.score[1, 0, 5] = 6
    for wanted, level in ((0, 0), (4, 0), (6, 4), (12, 4), (14, 6), (99, 6)):
        assert cut_level(totals, wanted) == level


def test_only_the_published_rule_stores_p_of_the_given_label() -> None:
    assert CONFIDENT.voters(ConfidentParams(rule="cleanlab")).score == "given_prob"
    assert not CONFIDENT.voters(ConfidentParams()).score
    assert CONFIDENT.corrects(ConfidentParams())
    assert not CONFIDENT.corrects(ConfidentParams(rule="cleanlab"))
    for values in ({"rule": "bold"}, {"members": 0}, {"confidence": 0.0}):
        with pytest.raises(ConfigError, match=next(iter(values))):
            make_params(CONFIDENT, values)
