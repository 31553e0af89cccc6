"""CORES: what the network disbelieves is left out, and on the archive relabelled or ranked."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raysegclean.errors import ConfigError
from raysegclean.evidence.stats import CaseStats
from raysegclean.evidence.voxel_evidence import LEVELS
from raysegclean.methods.base import make_params
from raysegclean.methods.cores.hook import CoresHook
from raysegclean.methods.cores.method import CORES, CoresParams, sieve_score
from raysegclean.nets.batch import Batch
from raysegclean.nets.hooks import HookContext, HookSpec
from raysegclean.nets.losses import LOSSES
from raysegclean.policy.decisions import edits_of
from raysegclean.policy.edits import ReplaceBelow
from raysegclean.voxels.channels import IGNORE

from .test_methods import evidence_of, score, ten_cases
from .training_scenes import SPEC, assert_resumes_alike, run, trainer_of

pytestmark = pytest.mark.numeric
torch.set_num_threads(1)


def hook(**params) -> HookSpec:
    return HookSpec.of("cores", **params)


def context(steps: int = 100, classes: int = SPEC.classes) -> HookContext:
    return HookContext(classes, steps, steps // 10, LOSSES["ce_dice"])


@pytest.fixture(scope="module")
def trained():
    trainer = trainer_of(hook(beta=0.0, consistency_from=0.9), 150)
    return trainer, list(run(trainer, 150))


def test_everything_is_kept_until_the_sieve_starts(trained):
    _, lessons = trained
    for scene, lesson in lessons[:60]:
        assert torch.equal(lesson.label, scene.batch.label)


def test_the_sieve_drops_planted_flipped_voxels_and_hardly_any_other(trained):
    _, lessons = trained
    flipped = dropped = sound = lost = 0
    for scene, lesson in lessons[-20:]:
        left_out = (lesson.label[3] == IGNORE) & (scene.batch.label[3] != IGNORE)
        wrong = scene.wrong[3]
        flipped += int(wrong.sum())
        dropped += int((wrong & left_out).sum())
        sound += int((~wrong).sum())
        lost += int((~wrong & left_out).sum())
    assert dropped > 0.8 * flipped
    assert lost < 0.05 * sound


def test_what_is_kept_keeps_its_given_label(trained):
    _, lessons = trained
    for scene, lesson in lessons[-5:]:
        kept = lesson.label != IGNORE
        assert torch.equal(lesson.label[kept], scene.batch.label[kept])


@pytest.mark.parametrize("consistency_from", [0.5, 1.0])
def test_a_training_resumed_at_any_point_is_the_same_bit_for_bit(consistency_from):
    assert_resumes_alike(hook(consistency_from=consistency_from), 40, [17, 31, 36])


def test_beta_waits_then_grows_then_is_capped_by_the_prior():
    made = CoresHook(context(), beta=1.0)
    assert [made.beta_at(step) for step in (0, 9, 10)] == [0.0, 0.0, 0.0]
    assert made.beta_at(25) == pytest.approx(0.5)
    assert made.beta_at(40) == made.beta_at(99) == pytest.approx(1.0)
    for classes in (2, 3, 12):
        strong = CoresHook(context(classes=classes), beta=2.0)
        assert strong.beta_at(99) == pytest.approx(min(2.0, 0.5 * classes))
        assert strong.beta_at(99) * strong.prior.max() <= 0.5 + 1e-12, "a label is never unlearnt"


def test_the_prior_is_balanced_and_follows_what_passed():
    made = CoresHook(context())
    np.testing.assert_allclose(made.prior, [1 / 3] * 3)
    made.load({"epoch": 4, "counts": [[0] * 3] * 2, "passed": [1.0, 0.5, 0.5]})
    np.testing.assert_allclose(made.prior, [0.5, 0.25, 0.25])


def test_the_regulariser_is_what_other_labels_would_cost():
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(2, 3, 4, 4, 4)))
    label = torch.from_numpy(rng.integers(0, 3, (2, 4, 4, 4)))
    label[0, 0] = IGNORE
    batch = trained_batch(logits, label)
    made = CoresHook(context(), beta=0.8, sieve_from=1.0)
    lesson = made.lesson(torch.nn.Identity(), logits, batch)
    found = made.loss(torch.nn.Identity(), logits, lesson, batch)
    odds = np.exp(logits.numpy())
    cost = -np.log(odds / odds.sum(axis=1, keepdims=True))
    for sample in range(2):
        known = (label[sample] != IGNORE).numpy()
        others = cost[sample].mean(axis=0)[known].mean()
        plain = LOSSES["ce_dice"](logits, label)[sample]
        assert float(found[sample]) == pytest.approx(float(plain) - 0.8 * others, rel=1e-4)


def trained_batch(logits, label):
    return Batch(logits[:, :1].float(), label, ["a", "b"], 50)


def test_a_class_that_is_not_learnt_yet_is_not_sieved():
    made = CoresHook(context())
    made.load({"epoch": 5, "counts": [[0] * 3] * 2, "passed": [1.0, 0.9, 0.2]})
    logits = torch.zeros(2, 3, 2, 2, 2)
    logits[:, 0] = 9.0  # all background, says the network
    label = torch.ones(2, 2, 2, 2, dtype=torch.int64)
    label[1] = 2
    lesson = made.lesson(torch.nn.Identity(), logits, trained_batch(logits, label))
    assert (lesson.label[0] == IGNORE).all()
    assert torch.equal(lesson.label[1], label[1])


def test_consistency_pulls_at_the_voxels_that_were_sieved_out_only():
    logits = torch.zeros(2, 3, 4, 4, 4)
    logits[:, 0] = 6.0
    label = torch.zeros(2, 4, 4, 4, dtype=torch.int64)
    label[0, 0] = 1  # sieved out
    batch = trained_batch(logits, label)
    net = torch.nn.Conv3d(1, 3, 1)
    made = CoresHook(context(), beta=0.0)
    off = CoresHook(context(), beta=0.0, consistency=0.0)
    lesson = made.lesson(net, logits, batch)
    more = made.loss(net, logits, lesson, batch) - off.loss(net, logits, lesson, batch)
    assert float(more[0].detach()) > 0
    assert float(more[1].detach()) == 0
    more.sum().backward()
    assert net.weight.grad.abs().sum() > 0


def stats_of(levels: dict[tuple[int, int], dict[int, int]]) -> CaseStats:
    """Return stats with voxels by (differs, given class), then by level of the margin."""
    counts = np.zeros((2, 3, LEVELS), np.int64)
    for (differs, channel), by_level in levels.items():
        for level, voxels in by_level.items():
            counts[differs, channel, level] = voxels
    return replace(CaseStats.zero(3), score=counts)


def test_the_score_of_a_case_is_its_mean_excess_cost_over_the_foreground():
    def margin(level: int) -> float:
        share = (level + 0.5) / LEVELS
        return float(np.log(share / (1 - share)))

    case = stats_of({(0, 0): {140: 9999}, (0, 1): {200: 30}, (1, 2): {20: 10}, (1, 0): {90: 5}})
    expected = -(30 * margin(200) + 10 * margin(20) + 5 * margin(90)) / 45
    assert sieve_score(case) == pytest.approx(expected)
    assert np.isnan(sieve_score(CaseStats.zero(3)))


@given(share=st.floats(0.01, 1.0))
def test_without_relabelling_the_worst_cases_go_to_a_person_and_nothing_changes(share):
    cases = [score(f"c{i}", 100.0, channels=2) for i in range(7)]
    stats = {f"c{i}": stats_of({(0, 1): {200 - 20 * i: 50}}) for i in range(7)}
    evidence = replace(evidence_of(*cases), stats=stats)
    params = CoresParams(rule="published", relabel=False, review=share)
    verdict = CORES.policy(evidence, params)
    assert not edits_of(verdict.decisions)
    found = {c for c, d in verdict.decisions.items() if d.classes[1].edit.action == "review"}
    worst = int(np.ceil(share * 7))
    assert found == {f"c{i}" for i in range(7 - worst, 7)}
    assert verdict.decisions["c6"].classes[2].why.endswith("place 1 of 7")


def test_the_published_rule_takes_the_prediction_where_a_voxel_does_not_pass():
    evidence = evidence_of(*[score(f"c{i}", 100.0, channels=2) for i in range(3)])
    verdict = CORES.policy(evidence, CoresParams(rule="published"))
    assert set(edits_of(verdict.decisions)) == {"c0", "c1", "c2"}
    assert edits_of(verdict.decisions)["c0"].rule == ReplaceBelow(0.5)
    assert not CORES.corrects(CoresParams(rule="published"))


def test_the_default_decides_by_case():
    evidence = evidence_of(*ten_cases(c3=1.2))
    verdict = CORES.policy(evidence, CoresParams())
    assert set(edits_of(verdict.decisions)) == {"c3"}
    assert CORES.corrects(CoresParams())


@pytest.mark.parametrize(
    ("params", "beta", "level"),
    [
        (CoresParams(), 0.0, 0.1),
        (CoresParams(rule="published"), 2.0, 0.5),
        (CoresParams(rule="published", beta=0.0, level=0.3), 0.0, 0.3),
    ],
)
def test_its_voters_store_the_margin_and_train_by_the_rule(params, beta, level):
    voters = CORES.voters(params)
    assert voters.score == "margin"
    settings = dict(voters.hook.params)
    assert (settings["beta"], settings["level"]) == (beta, level)


@pytest.mark.parametrize(
    "wrong", [{"rule": "x"}, {"beta": -1.0}, {"sieve_from": 0.0}, {"review": 1.5}, {"members": 0}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        make_params(CORES, wrong)
