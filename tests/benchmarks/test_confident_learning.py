"""Confident learning: cleanlab's own thresholds and flags, from records that do not grow."""

import sys
import warnings
from functools import reduce

import cc3d
import numpy as np
import pytest
from cleanlab.count import compute_confident_joint, get_confident_thresholds
from cleanlab.experimental.label_issues_batched import LabelInspector
from cleanlab.filter import find_label_issues as prune
from cleanlab.segmentation.filter import find_label_issues as segmentation
from confident_learning import (
    ConfidentCounts,
    SelfSums,
    component_score,
    confident_counts,
    confident_thresholds,
    cut_of,
    flags,
    issue_count,
    low_counts,
    prune_counts,
    quality_components,
    select,
    self_sums,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegclean.voxels.components import merge_components
from raysegclean.voxels.geometry import Box, Grid


def scene(seed, classes, shape=(3, 8, 9), noise=0.2, missing=None):
    """Return labels (N, H, W) with some wrong, and confident float32 probabilities (C, N, H, W)."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, shape)
    logits = rng.normal(0, 1.5, (classes, *shape))
    np.put_along_axis(logits, truth[None], rng.normal(3, 1.5, (1, *shape)), axis=0)
    powers = np.exp(logits)
    prob = (powers / powers.sum(axis=0)).astype(np.float32)
    wrong = rng.random(shape) < noise
    label = np.where(wrong, rng.integers(0, classes, shape), truth)
    if missing is not None:
        label[label == missing] = (missing + 1) % classes
    return label, prob


def blocks(label, prob, group=None, step=2):
    """Cut along the last axis."""
    for start in range(0, label.shape[-1], step):
        part = (..., slice(start, start + step))
        yield label[part], prob[part], None if group is None else group[part]


def records(label, prob, group=None, groups=1, by_class=False, step=2):
    """Return thresholds, n, and the flags of the whole, computed block by block."""
    parts = list(blocks(label, prob, group, step))
    sums = reduce(SelfSums.merge, (self_sums(a, p, g, groups) for a, p, g in parts))
    t = confident_thresholds(sums)
    counts = reduce(ConfidentCounts.merge, (confident_counts(a, p, t, g) for a, p, g in parts))
    wanted = prune_counts(counts, sums) if by_class else issue_count(counts)
    chosen = select(counts, wanted)
    low = sum(low_counts(a, p, chosen, g) for a, p, g in parts)
    cut = cut_of(chosen, low)
    found = np.concatenate([flags(a, p, cut, g) for a, p, g in parts], axis=-1)
    return sums, counts, wanted, found


def as_cleanlab(prob):
    """Return (N, C, H, W) float64: its own means are then exact enough to compare with."""
    return np.moveaxis(prob, 0, 1).astype(np.float64)


def flat(prob):
    return prob.reshape(len(prob), -1).T.astype(np.float64)


cases = {
    "seed": st.integers(0, 10_000),
    "classes": st.integers(2, 6),
    "noise": st.sampled_from([0.0, 0.1, 0.4]),
    "step": st.integers(1, 9),
}


@settings(max_examples=60, deadline=None)
@given(**cases)
def test_thresholds_are_those_of_cleanlab_for_any_cut(seed, classes, noise, step):
    label, prob = scene(seed, classes, noise=noise)
    sums, counts, _, _ = records(label, prob, step=step)
    theirs = get_confident_thresholds(label.ravel(), flat(prob))
    ours = confident_thresholds(sums)[0]
    assert np.abs(ours - theirs)[np.isfinite(ours)].max() < 2**-25
    assert (theirs[np.isnan(ours)] == 2).all()
    joint = compute_confident_joint(label.ravel(), flat(prob), calibrate=False)
    clipped = counts.joint[0] + np.diag(np.maximum(0, 1 - counts.joint[0].diagonal()))
    np.testing.assert_array_equal(clipped, joint)


@settings(max_examples=60, deadline=None)
@given(**cases, missing=st.sampled_from([None, None, 0, 1]))
def test_flags_are_those_of_cleanlabs_segmentation(seed, classes, noise, step, missing):
    label, prob = scene(seed, classes, noise=noise, missing=missing if classes > 2 else None)
    _, _, wanted, found = records(label, prob, step=step)
    theirs = segmentation(label, as_cleanlab(prob), n_jobs=1, verbose=False, batch_size=10**6)
    inspector = LabelInspector(num_class=classes, verbose=False, n_jobs=1)
    inspector.update_confident_thresholds(label.ravel(), flat(prob))
    inspector.score_label_quality(label.ravel(), flat(prob))
    assert int(wanted[0, 0]) == inspector.get_num_issues()
    np.testing.assert_array_equal(found, theirs)


@settings(max_examples=60, deadline=None)
@given(**cases)
def test_flags_by_class_are_those_of_cleanlabs_prune_by_class(seed, classes, noise, step):
    label, prob = scene(seed, classes, noise=noise)
    sums, counts, wanted, found = records(label, prob, by_class=True, step=step)
    joint = compute_confident_joint(label.ravel(), flat(prob))
    theirs = sums.voxels - np.maximum(joint.diagonal(), 1)
    np.testing.assert_array_equal(
        wanted[0][~ties(counts.joint[0], sums.voxels[0])],
        theirs[0][~ties(counts.joint[0], sums.voxels[0])],
    )
    assert np.abs(wanted - theirs).max() <= 1
    if not np.array_equal(wanted, theirs):
        chosen = select(counts, theirs)
        found = flags(label, prob, cut_of(chosen, low_counts(label, prob, chosen)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about classes that are too few to be pruned
        pruned = prune(label.ravel(), flat(prob), filter_by="prune_by_class", n_jobs=1)
    np.testing.assert_array_equal(found.ravel(), pruned)


def ties(joint, voxels):
    """Tell for which classes two remainders of the calibrated row are equal."""
    kept = np.maximum(joint, np.eye(len(joint)))
    scaled = kept / kept.sum(axis=1, keepdims=True) * voxels[:, None]
    rest = np.sort(np.round(scaled - np.rint(scaled), 9), axis=1)
    return (np.diff(rest, axis=1) == 0).any(axis=1)


@settings(max_examples=30, deadline=None)
@given(**cases)
def test_a_group_is_judged_as_an_archive_of_its_own(seed, classes, noise, step):
    label, prob = scene(seed, classes, noise=noise)
    band = np.random.default_rng(seed).integers(0, 3, label.shape)
    for by_class in (False, True):
        _, _, wanted, found = records(label, prob, band, 3, by_class, step)
        for group in range(3):
            mine = band == group
            alone = label[mine][None], prob[:, mine][:, None]
            _, _, expected, flagged = records(*alone, by_class=by_class)
            np.testing.assert_array_equal(wanted[group], expected[0])
            np.testing.assert_array_equal(found[mine], flagged[0])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0, 1))
def test_the_cut_is_the_order_statistic_that_sorting_finds(seed, share):
    rng = np.random.default_rng(seed)
    prob = rng.choice(rng.random(40), 300).astype(np.float32)  # many ties
    label, both = np.zeros(300, int), np.stack([prob, 1 - prob])
    wanted = np.array([[int(share * 300)]])
    t = confident_thresholds(self_sums(label, both))
    chosen = select(confident_counts(label, both, t), wanted)
    at_most = cut_of(chosen, low_counts(label, both, chosen)).at_most
    ordered = np.sort(prob)
    n = int(wanted[0, 0])
    taken = int((prob <= at_most[0, 0]).sum()) if n else 0
    if n == 0:
        assert at_most[0, 0] == -1
    elif n == 300 or ordered[n] > ordered[n - 1]:
        assert taken == n
    else:
        assert taken == (prob < ordered[n - 1]).sum(), "ties are left out together"


def test_records_merge_in_any_order_and_do_not_grow():
    label, prob = scene(1, 4, shape=(2, 40, 40))
    sums = self_sums(label, prob)
    t = confident_thresholds(sums)
    parts = [confident_counts(a, p, t) for a, p, _ in blocks(label, prob, step=11)]
    whole = confident_counts(label, prob, t)
    for merged in (
        reduce(ConfidentCounts.merge, parts),
        reduce(ConfidentCounts.merge, parts[::-1]),
    ):
        for name in ("sure", "joint", "high"):
            np.testing.assert_array_equal(getattr(merged, name), getattr(whole, name))
        assert merged.size_bytes == parts[0].size_bytes == whole.size_bytes


@pytest.mark.parametrize("pixels", [20_000, 80_000])
def test_memory_stays_while_cleanlabs_grows_with_every_voxel(pixels):
    label, prob = scene(2, 3, shape=(1, pixels // 100, 100))
    counts = confident_counts(label, prob, confident_thresholds(self_sums(label, prob)))
    chosen = select(counts, issue_count(counts))
    ours = counts.size_bytes + low_counts(label, prob, chosen).nbytes
    assert ours < 2**20, "three classes in less than a megabyte, whatever the number of voxels"
    inspector = LabelInspector(num_class=3, verbose=False, n_jobs=1)
    inspector.update_confident_thresholds(label.ravel(), flat(prob))
    inspector.score_label_quality(label.ravel(), flat(prob))
    kept = inspector.label_quality_scores
    theirs = sys.getsizeof(kept) + sum(sys.getsizeof(score) for score in kept)
    assert theirs >= 40 * pixels


def softmin(own, temperature=0.1):
    """cleanlab's score of an image: the mean of p(given), weighted by softmax of 1 - p(given)."""
    weight = np.exp((1 - own) / temperature)
    return float((own * weight).sum() / weight.sum())


def test_a_planted_cube_is_found_by_its_component_and_missed_by_softmin():
    shape = (216, 216, 216)  # ten million voxels
    label = np.zeros(shape, np.uint8)
    label[60:160, 60:160, 60:160] = 1
    prob = np.full((3, *shape), 0.005, np.float32)
    np.put_along_axis(prob, label[None].astype(np.int64), 0.99, axis=0)
    whole = Box.whole(shape)

    def scores():
        own = np.take_along_axis(prob, label[None].astype(np.int64), axis=0)[0]
        found = component_score(merge_components([quality_components(label, prob, whole)]))
        return found, softmin(own)

    # An ordinary case, whose outline is uncertain, and a sure one with 20 voxels of another class.
    sure = prob[:, 59:61].copy()
    prob[:, 59:61] = 1 / 3
    ordinary = scores()
    prob[:, 59:61] = sure
    label[100:105, 100:102, 100:102] = 2
    planted = scores()
    assert planted[1] > ordinary[1], "softmin ranks the wrong case as the better one"
    assert planted[0] < 0.01
    assert ordinary[0] > 0.9


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), step=st.integers(1, 4))
def test_blocks_have_the_component_score_of_the_case(seed, step):
    label, prob = scene(seed, 3)
    grid = Grid(label.shape, (2, 3, step))
    parts = [
        quality_components(label[box.slices], prob[(slice(None), *box.slices)], box)
        for box in (grid.box(index) for index in grid.indices())
    ]
    ids = cc3d.connected_components(label, connectivity=6)
    own = np.take_along_axis(prob, label[None].astype(np.int64), axis=0)[0]
    means = [own[ids == one].mean() for one in range(1, ids.max() + 1)]
    assert component_score(merge_components(parts)) == pytest.approx(min(means), abs=2**-15)
    assert component_score([]) == 1.0
