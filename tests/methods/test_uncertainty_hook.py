"""Relabelling while a network learns: when it starts, what it changes, and that it resumes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raysegclean.errors import ConfigError
from raysegclean.methods.base import make_params
from raysegclean.methods.uncertainty.hook import RelabelHook, relabelled, start_epoch
from raysegclean.methods.uncertainty.method import UNCERTAINTY, UncertaintyParams
from raysegclean.nets.dropout import dropout_masks
from raysegclean.nets.hooks import PLAIN_HOOK, HookContext, HookSpec, make_hook
from raysegclean.nets.losses import segmentation_loss
from raysegclean.nets.networks import build_network
from raysegclean.voxels.channels import IGNORE

from .training_scenes import SPEC, assert_resumes_alike, run, scene_at, trainer_of

pytestmark = pytest.mark.numeric
torch.set_num_threads(1)

PATH = "relabel"
CONTEXT = HookContext(classes=3, steps=40, epoch_steps=4, loss=segmentation_loss)
DROPPING = replace(SPEC, dropout=0.4)


def hook_of(**params) -> HookSpec:
    return HookSpec.of(PATH, **params)


def test_the_start_is_the_epoch_after_the_one_in_which_the_fall_slows_down() -> None:
    assert start_epoch([0.20, 0.18, 0.10, 0.06, 0.05]) == 4
    assert start_epoch([0.2, 0.1]) is None, "two epochs have one change and nothing to compare"
    assert start_epoch([0.0, 0.0, 0.0]) == 3, "a network that is never uncertain divides by nothing"


@given(st.lists(st.floats(0.001, 0.25), max_size=12))
def test_the_start_is_that_of_the_definition(means) -> None:
    expected = None
    cumulative = [sum(means[: n + 1]) / (n + 1) for n in range(len(means))]
    change = {
        n: (cumulative[n] - cumulative[n - 1]) / cumulative[n - 1] for n in range(1, len(means))
    }
    for n in range(2, len(means)):
        if abs(change[n] - change[n - 1]) < 1e-9:
            return  # rounding decides
        if change[n] > change[n - 1]:
            expected = n + 1
            break
    assert start_epoch(means) == expected
    if expected is not None:
        assert start_epoch(means[: expected - 1]) is None, "it was known before its epoch was over"


def test_once_found_the_start_stays() -> None:
    means = [0.2, 0.18, 0.1, 0.06, 0.05, 0.01, 0.0001, 0.3]
    assert {start_epoch(means[:n]) for n in range(4, 9)} == {4}


@pytest.mark.parametrize("rule", ["safe", "published"])
def test_the_rules_are_those_of_the_poster_and_of_its_repair(rule) -> None:
    rng = np.random.default_rng(0)
    label = rng.choice([0, 1, IGNORE], (2, 3, 4, 5))
    predicted = rng.integers(0, 2, label.shape)
    uncertainty = rng.choice([0.05, 0.1, 0.2], label.shape)
    new = relabelled(*map(torch.from_numpy, (label, predicted, uncertainty)), rule, 0.1).numpy()
    for at in np.ndindex(label.shape):
        if label[at] == IGNORE:
            expected = IGNORE
        elif rule == "published":
            expected = 1 - label[at] if uncertainty[at] > 0.1 else label[at]
        else:
            expected = predicted[at] if uncertainty[at] < 0.1 else label[at]
        assert new[at] == expected


def test_the_uncertainty_is_the_aleatoric_part_of_kwon_over_all_passes() -> None:
    batch = scene_at(6).batch
    net = build_network(DROPPING, 3).eval()
    with torch.no_grad():
        first = net(batch.image)
        hook = RelabelHook(CONTEXT, passes=3)
        found, predicted = hook._ask(net, first, batch)
        logits = [first]
        for number in (1, 2):
            with dropout_masks(net, (6, number), per_sample=True):
                logits.append(net(batch.image))
    prob = np.stack([torch.softmax(one.double(), 1).numpy() for one in logits])
    # The trace of mean_n [diag(p_n) - p_n p_n^T], halved as everywhere here.
    trace = sum(p * (1 - p) for p in np.moveaxis(prob, 2, 0)).mean(axis=0)
    np.testing.assert_allclose(found.numpy(), trace / 2, atol=1e-6)
    np.testing.assert_array_equal(predicted.numpy(), prob.mean(axis=0).argmax(axis=1))
    assert len({one.argmax(1).sum().item() for one in logits}) > 1, "passes must differ"


def test_the_network_is_left_as_it_was() -> None:
    net = build_network(DROPPING, 3).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    batch = scene_at(0).batch
    with torch.no_grad():
        RelabelHook(CONTEXT, start=0).lesson(net, torch.zeros(4, 3, 12, 12, 12), batch)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_nothing_changes_before_the_start_and_wrong_labels_after_it() -> None:
    trainer = trainer_of(hook_of(start=3, delta=0.1, passes=2), steps=80)
    right, wrong = 0, 0
    for scene, lesson in run(trainer, 60):
        changed = lesson.label != scene.batch.label
        if scene.batch.step < 3 * 8:
            assert not changed.any()
        elif scene.batch.step >= 40:
            right += int((lesson.label == scene.truth)[changed].sum())
            wrong += int((lesson.label != scene.truth)[changed].sum())
    assert right > 3 * wrong
    assert right > 200


def test_the_start_is_found_while_learning_and_told_to_the_policy() -> None:
    trainer = trainer_of(hook_of(start="auto", passes=2), steps=80)
    changed = [scene.batch.step for scene, lesson in run(trainer, 60) if is_changed(scene, lesson)]
    report = trainer.members[0].hook.report()
    means = list(report["uncertainty"].values())
    assert len(means) == 8, "epochs 0 to 7; then batch statistics are measured"
    start = start_epoch(means)
    assert start is not None
    assert report["relabelled_from"] == start
    assert changed[0] // 8 == start


def is_changed(scene, lesson) -> bool:
    return bool((lesson.label != scene.batch.label).any())


@pytest.mark.parametrize("start", ["auto", 1])
def test_a_resumed_training_is_the_same_bit_for_bit(start) -> None:
    assert_resumes_alike(hook_of(start=start, passes=2, delta=0.2), 20, [1, 7, 10, 16])


def test_the_published_rule_is_refused_for_several_classes_before_anything_is_learnt() -> None:
    with pytest.raises(ConfigError, match=r"binary.*2 classes"):
        make_hook(hook_of(rule="published"), CONTEXT)


def test_the_method_relabels_only_when_it_is_told_to_and_by_its_own_delta() -> None:
    assert UNCERTAINTY.voters(UncertaintyParams()).hook == PLAIN_HOOK
    asked = UncertaintyParams(relabel_from="auto", rule="published", delta=0.17, relabel_passes=3)
    expected = hook_of(start="auto", rule="published", delta=0.17, passes=3)
    assert UNCERTAINTY.voters(asked).hook == expected
    default = UNCERTAINTY.voters(UncertaintyParams(relabel_from=2)).hook
    assert default == hook_of(start=2, rule="safe", delta=0.1, passes=4)


@pytest.mark.parametrize("name", ["relabel_passes", "members", "passes"])
def test_counts_below_one_are_refused_by_name(name) -> None:
    with pytest.raises(ConfigError, match=f"params.{name}"):
        make_params(UNCERTAINTY, {name: 0})
    with pytest.raises(ConfigError, match="relabel_from"):
        make_params(UNCERTAINTY, {"relabel_from": -1})
