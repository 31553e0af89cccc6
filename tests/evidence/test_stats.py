"""Stats: counts that merge exactly, in any order."""

from functools import reduce

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegclean.evidence.proposals import Score, propose
from raysegclean.evidence.stats import MIN_PROB, NATS_SCALE, CaseStats, block_stats
from raysegclean.evidence.voxel_evidence import LEVELS, EvidenceSum
from raysegclean.voxels.channels import UNKNOWN

CLASSES = 3
SHAPE = (6, 5, 4)


def _scene(seed: int) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    generator = torch.Generator().manual_seed(seed)
    prob = torch.softmax(2 * torch.randn(CLASSES, *SHAPE, generator=generator), dim=0)
    rng = np.random.default_rng(seed)
    given_zyx, truth_zyx = rng.integers(0, CLASSES, (2, *SHAPE)).astype(np.uint8)
    return prob, given_zyx, truth_zyx


def _stats(prob: torch.Tensor, given_zyx: np.ndarray, truth_zyx: np.ndarray) -> CaseStats:
    sums = EvidenceSum()
    sums.add(prob)
    evidence = sums.finish(given_zyx)
    proposal = propose(evidence, given_zyx, score="aleatoric")
    return block_stats(evidence, proposal, given_zyx, CLASSES, truth_zyx)


def _same(a: CaseStats, b: CaseStats) -> bool:
    return all(np.array_equal(getattr(a, n), getattr(b, n)) for n in CaseStats.__annotations__)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 500), st.permutations(range(6)))
def test_slices_of_a_case_merge_in_any_order_to_the_stats_of_the_whole(
    seed: int, order: list[int]
) -> None:
    prob, given_zyx, truth_zyx = _scene(seed)
    parts = [_stats(prob[:, z : z + 1], given_zyx[z : z + 1], truth_zyx[z : z + 1]) for z in order]
    merged = reduce(CaseStats.merge, parts, CaseStats.zero(CLASSES))
    assert _same(merged, _stats(prob, given_zyx, truth_zyx))


@settings(max_examples=20, deadline=None)
@given(st.tuples(*[st.integers(0, 99)] * 3))
def test_merging_is_associative_and_commutative(seeds: tuple[int, int, int]) -> None:
    a, b, c = (_stats(*_scene(seed)) for seed in seeds)
    assert _same(a.merge(b).merge(c), a.merge(b.merge(c)))
    assert _same(a.merge(b), b.merge(a))


def test_counts_are_those_of_a_loop_over_voxels() -> None:
    prob, given_zyx, truth_zyx = _scene(11)
    found = _stats(prob, given_zyx, truth_zyx)
    confusion = np.zeros((CLASSES, CLASSES), int)
    nats = np.zeros(CLASSES)
    right = harm = 0
    for index in np.ndindex(SHAPE):
        p = prob[(slice(None), *index)].numpy()
        mine, best = given_zyx[index], int(p.argmax())
        confusion[mine, best] += 1
        cost = -np.log(max(p[mine], MIN_PROB))
        nats[0] += cost
        for channel in {int(mine), best} - {0}:
            nats[channel] += cost
        if mine != best:
            right += truth_zyx[index] == best
            harm += truth_zyx[index] == mine
    assert np.array_equal(found.confusion, confusion)
    assert found.cross_entropy / NATS_SCALE == pytest.approx(nats, abs=0.01)
    assert found.trusted[0, 0].sum() == right
    assert found.trusted[0, 1].sum() == harm
    added, removed, swapped = found.disagreement.sum(axis=(1, 2))
    assert added == confusion[0, 1:].sum()
    assert removed == confusion[1:, 0].sum()
    assert added + removed + swapped == confusion.sum() - np.trace(confusion)


def test_a_cut_off_from_the_histogram_is_that_of_the_sorted_values_to_one_level() -> None:
    prob, given_zyx, truth_zyx = _scene(2)
    histogram = _stats(prob, given_zyx, truth_zyx).disagreement.sum(axis=(0, 1))
    values = prob.max(dim=0).values.numpy()[prob.argmax(dim=0).numpy() != given_zyx]
    share = 0.3
    from_histogram = int(np.searchsorted(np.cumsum(histogram), share * histogram.sum())) / LEVELS
    from_sort = float(np.sort(values)[int(np.ceil(share * values.size)) - 1])
    assert abs(from_histogram - from_sort) <= 1 / LEVELS


def test_the_text_of_a_record_reads_back() -> None:
    stats = _stats(*_scene(4))
    assert _same(CaseStats.from_text(stats.to_text()), stats)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 500), st.floats(0, 1), st.sampled_from(["", "aleatoric", "margin"]))
def test_ignored_voxels_count_nowhere_and_nothing_is_proposed_there(
    seed: int, share: float, score: Score
) -> None:
    prob, given_zyx, truth_zyx = _scene(seed)
    known = np.random.default_rng(seed).random(SHAPE) >= share
    rest = _stats(prob[:, known][:, None, None], given_zyx[known][None, None], truth_zyx[known])
    given_zyx[~known] = UNKNOWN
    assert _same(_stats(prob, given_zyx, truth_zyx), rest)
    sums = EvidenceSum()
    sums.add(prob)
    proposal = propose(sums.finish(given_zyx), given_zyx, score=score)
    for part in (proposal.candidate_zyx, proposal.confidence_zyx, proposal.score_zyx):
        assert part is None or not part[~known].any()
    assert (proposal.predicted_zyx(given_zyx)[~known] == UNKNOWN).all()


def test_where_the_trusted_label_is_ignored_no_change_is_right_or_wrong() -> None:
    prob, given_zyx, truth_zyx = _scene(3)
    none = np.full_like(truth_zyx, UNKNOWN)
    assert _stats(prob, given_zyx, truth_zyx).trusted.any()
    assert not _stats(prob, given_zyx, none).trusted.any()
