"""Transition matrices: recovered from independent triples, too clean from spatial copies."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegclean.evidence.second_pass import PredictedBlock
from raysegclean.methods.transition.matrix import (
    Consensus,
    PosteriorReviser,
    Samples,
    estimate,
    feature_weights,
    neighbour_labels,
    solve,
)
from raysegclean.methods.transition.reservoir import depth_bands
from raysegclean.voxels.geometry import Box, Grid

T = np.array([[0.8, 0.2], [0.3, 0.7]])


def noisy(rng, truth, transition):
    """Draw given labels of true ones."""
    cumulative = transition.cumsum(axis=1)[truth]
    return (rng.random((*truth.shape, 1)) > cumulative).sum(axis=-1)


@pytest.mark.parametrize("prior", [[0.5, 0.5], [0.7, 0.3]])
def test_independent_triples_give_the_matrix_back(prior):
    rng = np.random.default_rng(1)
    truth = rng.choice(2, 200_000, p=prior)
    triples = noisy(rng, np.repeat(truth[:, None], 3, axis=1), T)
    found_prior, found = solve(Consensus.of(triples, 2))
    assert np.abs(found - T).max() < 0.02
    assert np.abs(found_prior - prior).max() < 0.02


def test_triples_that_are_spatial_copies_look_too_clean():
    rng = np.random.default_rng(1)
    truth = rng.choice(2, 50_000)
    copies = np.repeat(noisy(rng, truth, T)[:, None], 3, axis=1)
    _, found = solve(Consensus.of(copies, 2))
    assert found.diagonal().min() > 0.95


def test_four_classes_are_solved_together():
    rng = np.random.default_rng(2)
    t = 0.7 * np.eye(4) + 0.3 * rng.dirichlet(np.ones(4), 4)
    truth = rng.choice(4, 300_000, p=[0.4, 0.3, 0.2, 0.1])
    triples = noisy(rng, np.repeat(truth[:, None], 3, axis=1), t)
    _, found = solve(Consensus.of(triples, 4))
    assert np.abs(found - t).max() < 0.03


def test_the_three_rates_fit_together():
    triples = np.random.default_rng(0).integers(0, 3, (500, 3))
    counts = Consensus.of(triples, 3)
    np.testing.assert_allclose(counts.single, np.bincount(triples[:, 0], minlength=3) / 500)
    np.testing.assert_allclose(counts.pair.sum(axis=1), counts.single)
    np.testing.assert_allclose(counts.triple.sum(axis=2), counts.pair)


def archive(seed, transition, rows=6_000, cases=12, classes=2, copies=False):
    """Return samples whose features tell the true class, and whose labels are noisy."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, rows)
    features = np.eye(classes)[truth] * 4 + rng.normal(0, 0.5, (rows, classes))
    useless = rng.normal(0, 3, (rows, 2))
    case = rng.integers(0, cases, rows)
    given = noisy(rng, truth, transition)
    if copies:  # each voxel five times in its case, the same wrong label with it
        picked = np.repeat(np.arange(rows // 5), 5)
        truth, given, case = truth[picked], given[picked], case[picked]
        features = features[picked] + rng.normal(0, 0.001, (len(picked), classes))
        useless = useless[picked]
    return Samples(
        features=np.concatenate([features, useless], axis=1).astype(np.float32),
        given=given,
        band=np.zeros(len(given), int),
        case=case,
        fold=case % 2,
    )


def test_noise_is_found_from_features_and_labels_alone():
    found = estimate(archive(3, T), classes=2)
    assert np.abs(found.transition[0] - T).max() < 0.05
    for band in (1, 2, 3):
        np.testing.assert_array_equal(found.transition[band], np.eye(2))


def test_neighbours_of_the_same_case_would_hide_noise_that_is_copied_inside_it():
    samples = archive(4, T, rows=8_000, copies=True)
    triples = neighbour_labels(samples)
    same = (triples == triples[:, :1]).all(axis=1).mean()
    independent = ((T**3).sum(axis=1)).mean()
    assert same == pytest.approx(independent, abs=0.06)
    assert np.abs(estimate(samples, classes=2).transition[0] - T).max() < 0.1


def test_clean_labels_give_nearly_the_identity():
    found = estimate(archive(5, np.eye(3), classes=3), classes=3)
    assert found.transition[0].diagonal().min() > 0.97


def test_neighbours_come_from_three_cases_of_one_fold():
    rng = np.random.default_rng(0)
    case = np.repeat(np.arange(6), 5)
    samples = Samples(
        features=rng.normal(0, 1, (30, 3)).astype(np.float32),
        given=case,  # so that a label names its case
        band=np.zeros(30, int),
        case=case,
        fold=case // 3,
    )
    triples = neighbour_labels(samples)
    assert len(triples) == 30
    assert all(len(set(row)) == 3 for row in triples.tolist())
    assert (triples // 3 == triples[:, :1] // 3).all()
    two_cases = samples.where(np.isin(case, [0, 1, 3, 4]))
    assert len(neighbour_labels(two_cases)) == 0


def test_the_neighbours_are_the_nearest_by_cosine():
    rng = np.random.default_rng(1)
    features = rng.normal(0, 1, (40, 3)).astype(np.float32)
    case = np.arange(40) % 4
    samples = Samples(features, np.arange(40), 0 * case, case, 0 * case)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for row, first, second in neighbour_labels(samples).tolist():
        order = [j for j in np.argsort(-(unit @ unit[row])) if case[j] != case[row]]
        assert first == order[0]
        assert second == next(j for j in order if case[j] != case[first])


def test_few_samples_give_the_identity():
    samples = archive(6, T, rows=150)
    np.testing.assert_array_equal(estimate(samples, classes=2).transition[0], np.eye(2))
    alone = archive(6, T, cases=1)
    np.testing.assert_array_equal(estimate(alone, classes=2).transition[0], np.eye(2))


def test_the_estimate_repeats_itself_to_the_bit():
    samples = archive(7, T, rows=2_000)
    first, again = (estimate(samples, classes=2) for _ in range(2))
    np.testing.assert_array_equal(first.transition, again.transition)


def test_of_many_classes_each_is_solved_with_those_that_it_is_confused_with():
    classes = 9
    t = np.eye(classes)
    t[2, 2], t[2, 5] = 0.7, 0.3
    t[4, 4], t[4, 0] = 0.6, 0.4
    t[0, 0], t[0, 7] = 0.8, 0.2
    samples = archive(8, t, rows=12_000, classes=classes)
    found = estimate(samples, classes=classes).transition[0]
    assert np.abs(found - t).max() < 0.1
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-3)


def test_background_that_becomes_many_classes_still_sums_to_one():
    classes = 9
    t = np.eye(classes)
    t[0] = [0.6, *[0.05] * 8]
    found = estimate(archive(8, t, rows=12_000, classes=classes), classes=classes).transition[0]
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-3)
    assert found[0, 0] >= 0.5
    assert (found[0, 1:] > 0.02).all()


def test_clean_labels_of_many_classes_without_background_give_nearly_the_identity():
    classes = 8
    samples = archive(8, np.eye(classes), rows=12_000, classes=classes)
    found = estimate(samples.where(samples.given > 0), classes=classes)
    assert np.abs(found.transition[0] - np.eye(classes)).max() < 0.02
    np.testing.assert_array_equal(found.transition[0, 0], np.eye(classes)[0])


@pytest.mark.parametrize("divergence", ["tv", "kl"])
def test_features_weigh_by_what_they_tell_of_the_label(divergence):
    samples = archive(9, T)
    weights = feature_weights(samples.features, samples.given, divergence)
    assert weights.max() == 1.0
    assert weights[:2].min() > 0.8
    assert weights[2:].max() < 0.2


def test_f_information_is_that_of_the_definitions():
    rng = np.random.default_rng(0)
    given = rng.integers(0, 2, 4_000)
    informative = given + rng.integers(0, 2, 4_000)
    features = np.stack([informative, rng.integers(0, 2, 4_000)], axis=1).astype(np.float32)
    joint = np.array([[0.25, 0.0], [0.25, 0.25], [0.0, 0.25]])
    product = joint.sum(axis=1, keepdims=True) / 2
    mass = joint > 0
    exact = {
        "tv": np.abs(joint - product).sum() / 2,
        "kl": (joint[mass] * np.log(joint[mass] / np.broadcast_to(product, (3, 2))[mass])).sum(),
    }
    for divergence, value in exact.items():
        # The useless feature weighs 1e-8 / (I - I_useless), which tells the scale.
        weights = feature_weights(features, given, divergence)
        assert 1e-8 / weights[1] == pytest.approx(value, rel=0.1)


def voter_block(label, prob, core=None, window=None, spacing_mm=(1.0, 1.0, 1.0)):
    whole = Box.whole(label.shape)
    return PredictedBlock("a", window or whole, core or whole, label, None, prob, None, spacing_mm)


def random_case(seed, shape=(10, 22, 24), classes=3):
    rng = np.random.default_rng(seed)
    label = np.kron(rng.integers(0, classes, (2, 2, 2)), np.ones((5, 11, 12))).astype(np.uint8)
    prob = rng.dirichlet(np.ones(classes), shape).transpose(3, 0, 1, 2).astype(np.float32)
    transition = 0.6 * np.eye(classes) + 0.4 * rng.dirichlet(np.ones(classes), (4, classes))
    return label, prob, transition


def test_the_posterior_is_bayes_by_hand():
    label, prob, transition = random_case(0)
    found = PosteriorReviser.of(transition).revise(voter_block(label, prob), {})
    bands = depth_bands(label, (1.0, 1.0, 1.0))
    for z, y, x in np.random.default_rng(0).integers(0, label.shape, (200, 3)):
        t = transition[bands[z, y, x]]
        scores = [float(prob[i, z, y, x]) * t[i, label[z, y, x]] for i in range(3)]
        assert found[z, y, x] == int(np.argmax(scores))


def test_the_identity_keeps_every_given_label():
    label, prob, _ = random_case(1)
    prob[:] = 0
    prob[2] = 1
    reviser = PosteriorReviser.of(np.stack([np.eye(3)] * 4))
    np.testing.assert_array_equal(reviser.revise(voter_block(label, prob), {}), label)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1000),
    shard=st.tuples(st.integers(3, 9), st.integers(6, 14), st.integers(6, 14)),
    spacing_mm=st.sampled_from([(1.0, 1.0, 1.0), (2.5, 0.7, 0.7)]),
)
def test_blocks_are_relabelled_like_the_case(seed, shard, spacing_mm):
    label, prob, transition = random_case(seed)
    reviser = PosteriorReviser.of(transition)
    expected = reviser.revise(voter_block(label, prob, spacing_mm=spacing_mm), {})
    out = np.full_like(label, 255)
    grid = Grid(label.shape, shard)
    for index in grid.indices():
        core = grid.box(index)
        window = core.grown(reviser.halo_vox(spacing_mm)).clipped(Box.whole(label.shape))
        part = (slice(None), *window.slices)
        block = voter_block(
            label[window.slices], prob[part], core.relative_to(window), window, spacing_mm
        )
        out[core.slices] = reviser.revise(block, {})
    np.testing.assert_array_equal(out, expected)
