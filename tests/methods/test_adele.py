"""ADELE: labels of learnt classes are corrected in training; the archive follows the onset."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from raysegclean.errors import ConfigError
from raysegclean.evidence.case_scores import Kind
from raysegclean.methods.adele.hook import AdeleHook
from raysegclean.methods.adele.method import ADELE, AdeleParams
from raysegclean.methods.base import make_params
from raysegclean.methods.uncertainty.method import UNCERTAINTY, UncertaintyParams
from raysegclean.nets.batch import Batch
from raysegclean.nets.hooks import HookContext, HookSpec
from raysegclean.nets.losses import segmentation_loss
from raysegclean.nets.weights import save_network
from raysegclean.policy.decisions import edits_of
from raysegclean.policy.edits import Replace
from raysegclean.runs.train import hook_reports
from raysegclean.store.run import RunFolder
from raysegclean.voxels.channels import IGNORE

from .test_methods import evidence_of, score, ten_cases
from .training_scenes import SPEC, assert_resumes_alike, run, scene_at, trainer_of

pytestmark = pytest.mark.numeric
torch.set_num_threads(1)


def hook(**params) -> HookSpec:
    return HookSpec.of("adele", **params)


@pytest.fixture(scope="module")
def trained():
    trainer = trainer_of(hook(scales="1", tau=0.7), 160)
    return trainer, list(run(trainer, 160))


def test_a_class_is_switched_on_while_the_network_trains(trained):
    trainer, _ = trained
    onset = trainer.members[0].hook.report()["onset"]
    assert set(onset) <= {1, 2}
    assert 1 in onset
    assert 5 <= onset[1] < 40


def test_before_the_onset_the_given_label_is_learnt(trained):
    trainer, lessons = trained
    first = min(trainer.members[0].hook.report()["onset"].values()) * 4
    for scene, lesson in lessons[:first]:
        assert torch.equal(lesson.label, scene.batch.label)


def test_after_the_onset_a_planted_systematic_error_is_corrected(trained):
    _, lessons = trained
    wrong = mended = harmed = right = 0
    for scene, lesson in lessons[-20:]:
        cut = scene.wrong[1]
        wrong += int(cut.sum())
        mended += int((cut & (lesson.label[1] == scene.truth[1])).sum())
        sound = (scene.batch.label[0] == scene.truth[0]) & (scene.truth[0] > 0)
        right += int(sound.sum())
        harmed += int((sound & (lesson.label[0] != scene.truth[0])).sum())
    assert mended > 0.5 * wrong
    assert harmed < 0.02 * right


def test_a_class_that_the_case_lacks_is_never_added(trained):
    trainer, lessons = trained
    predicted = sum(
        int((trainer.nets[0](scene.batch.image[2:3]).argmax(dim=1) == 2).sum())
        for scene, _ in lessons[-3:]
    )
    assert predicted > 50, "the network sees it all the same"
    for _, lesson in lessons:
        assert not (lesson.label[2] == 2).any()


def test_unlabelled_voxels_stay_so(trained):
    _, lessons = trained
    for scene, lesson in lessons[-5:]:
        unknown = scene.batch.label == IGNORE
        assert torch.equal(lesson.label == IGNORE, unknown)


@pytest.mark.parametrize("scales", ["1", "0.7 1"])
def test_a_training_resumed_after_the_onset_is_the_same_bit_for_bit(scales):
    # Steps 45 to 47 recalibrate; curves of 12 epochs of 5 steps.
    assert_resumes_alike(hook(scales=scales, epochs=12, tau=0.6), 60, [33, 46])


def test_scales_teach_and_must_agree():
    losses = [
        trainer_of(hook(scales=scales, rho=0.3, consistency=weight), 8).step(scene_at(0).batch)
        for scales, weight in (("0.7 1 1.5", 1.0), ("0.7 1 1.5", 0.0), ("1", 0.0))
    ]
    agreeing, apart, alone = (report.losses[0] for report in losses)
    assert agreeing > apart
    assert apart != alone


class SureAtFullSize(torch.nn.Module):
    """Says class 1 with probability .95 of an image of eight voxels an edge, else with .35."""

    def forward(self, image):
        p = torch.tensor(0.95 if image.shape[-1] == 8 else 0.35)
        logits = torch.zeros(len(image), 2, *image.shape[2:])
        logits[:, 1] = torch.log(p / (1 - p))
        return logits


@pytest.mark.parametrize(
    ("scales", "tau", "corrects"),
    [("1", 0.7, True), ("0.5 1", 0.7, False), ("0.5 1", 0.6, True), ("0.5 1", 0.66, False)],
)
def test_the_target_of_a_correction_is_the_mean_over_the_scales(scales, tau, corrects):
    context = HookContext(2, 40, 4, segmentation_loss, stride_zyx=(2, 2, 2))
    adele = AdeleHook(context, tau=tau, scales=scales)
    adele.watch.load({"done": [], "now": [[0, 0]] * 3, "onset": [0, 1]})
    label = torch.zeros(1, 8, 8, 8, dtype=torch.int64)
    label[0, 0] = 1
    batch = Batch(torch.zeros(1, 1, 8, 8, 8), label, ["a"], 0)
    net = SureAtFullSize()
    lesson = adele.lesson(net, net(batch.image), batch)
    assert bool((lesson.label == 1).all()) is corrects


def test_the_published_rule_replaces_in_classes_that_were_on_and_that_the_case_holds():
    cases = [score(f"c{i}", 100.0, channels=2) for i in range(3)]
    lacking = replace(cases[2].classes[1], given_vox=0)
    cases[2] = replace(cases[2], classes=dict(cases[2].classes) | {1: lacking})
    cases[1] = replace(cases[1], fold=1)
    evidence = replace(
        evidence_of(*cases),
        reports={0: [{"onset": {1: 7}}], 1: [{"onset": {1: 7, 2: 9}}, {"onset": {2: 11}}]},
    )
    verdict = ADELE.policy(evidence, AdeleParams(rule="published", tau=0.75))
    whole = dict.fromkeys(Kind, 0.75)
    assert edits_of(verdict.decisions)["c0"].of(Replace) == {1: Replace(whole)}
    on_in_all = edits_of(verdict.decisions)["c1"].of(Replace)
    assert on_in_all == {2: Replace(whole)}, "on in every network of the fold"
    assert "c2" not in edits_of(verdict.decisions)
    assert "not over" in verdict.decisions["c0"].classes[2].why
    assert "lacks the class" in verdict.decisions["c2"].classes[1].why


def test_by_default_a_class_that_was_never_on_goes_to_a_person_instead():
    evidence = replace(evidence_of(*ten_cases(c3=1.2)), reports={0: [{"onset": {}}]})
    verdict = ADELE.policy(evidence, AdeleParams())
    assert not edits_of(verdict.decisions)
    assert verdict.decisions["c3"].classes[1].edit.action == "review"
    others = [d.classes[1].edit.action for case, d in verdict.decisions.items() if case != "c3"]
    assert set(others) == {"keep"}


def test_its_voters_train_with_the_hook_and_its_settings():
    voters = ADELE.voters(AdeleParams(tau=0.9, scales="1"))
    assert voters.hook.name == "adele"
    assert dict(voters.hook.params)["tau"] == 0.9
    assert voters.members == 1
    assert ADELE.corrects(AdeleParams())
    assert not ADELE.corrects(AdeleParams(rule="published"))
    assert ADELE.retrains(AdeleParams(retrain=True))


@pytest.mark.parametrize(
    "wrong",
    [
        {"tau": 0.0},
        {"rule": "voc"},
        {"scales": "0.7 1.5"},
        {"scales": "one"},
        {"scales": "1 9"},
        {"epochs": 2},
        {"members": 0},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        make_params(ADELE, wrong)


def test_the_onset_reaches_the_policy_through_the_weights_file(trained, tmp_path):
    trainer, _ = trained
    member = trainer.members[0]
    run_folder = RunFolder(str(tmp_path))
    facts = {"fold": 0, "report": member.hook.report()}
    run_folder.store.put("models/net.pt", save_network(member.net, SPEC, facts))
    session = SimpleNamespace(
        plan=SimpleNamespace(voters=ADELE.voters(AdeleParams()), network=SPEC),
        config=SimpleNamespace(models=None),
        run=run_folder,
    )
    found = hook_reports(session, (("models/net.pt",),))
    assert found == {0: [{"onset": member.hook.report()["onset"]}]}
    session.plan.voters = UNCERTAINTY.voters(UncertaintyParams())
    assert hook_reports(session, (("models/net.pt",),)) == {}, "plain networks are not read"
