"""Multi-SA: it ranks and proposes, and is a witness that was never shown an outline."""

import numpy as np
import pytest
import torch

from raysegclean.errors import ConfigError
from raysegclean.evidence.case_scores import CaseScore, ClassScore, Kind
from raysegclean.evidence.stats import CaseStats
from raysegclean.methods.base import ArchiveEvidence, Verdict, make_params
from raysegclean.methods.multisa.method import MULTISA, MultisaParams
from raysegclean.nets.batch import Batch
from raysegclean.nets.trainer import TrainConfig, Trainer
from raysegclean.nets.unet import NetworkSpec
from raysegclean.policy.decisions import edits_of
from raysegclean.policy.edits import Fill
from raysegclean.simulate.noise import corrupt
from raysegclean.simulate.phantom import phantom_case

pytestmark = pytest.mark.numeric
torch.set_num_threads(1)

SHAPE, SPACING = (16, 40, 40), (6.0, 8.0, 8.0)
PATCH = (12, 24, 24)
CASES = 20


def seen(given_vox: int, predicted_vox: int, both_vox: int) -> ClassScore:
    return ClassScore(0.0, 0, 0.0, 0, given_vox, predicted_vox, both_vox)


def evidence(*odd: ClassScore) -> ArchiveEvidence:
    rows = [seen(1000 + 5 * n, 2000 - 9 * n, 900 + 3 * n) for n in range(12)] + list(odd)
    scores = [CaseScore(f"c{n}", one, {1: one}) for n, one in enumerate(rows)]
    return ArchiveEvidence(scores, (), CaseStats.zero(2))


def verdict_of(*odd: ClassScore, **params) -> Verdict:
    verdict = MULTISA.policy(evidence(*odd), MultisaParams(**params))
    assert isinstance(verdict, Verdict)
    return verdict


def test_it_brings_its_network_and_its_lesson_and_never_retrains_or_corrects() -> None:
    params = MultisaParams(fields=3)
    voters = MULTISA.voters(params)
    assert voters.network == "multisa"
    assert voters.hook.name == "presence"
    assert dict(voters.hook.params) == {"fields": 3, "sharpness": 4.0, "skips_empty": False}
    assert dict(MULTISA.voters(MultisaParams(rule="pseudo")).hook.params)["skips_empty"]
    assert not MULTISA.retrains(params)
    assert not MULTISA.corrects(params)


@pytest.mark.parametrize("rule", ["rank", "pseudo"])
def test_no_voxel_of_a_case_that_has_a_label_is_edited(rule: str) -> None:
    verdict = verdict_of(seen(1000, 2000, 0), rule=rule)
    assert not edits_of(verdict.decisions)
    assert verdict.decisions["c12"].classes[1].edit.action == "review"
    kept = [d.classes[1].edit.action for name, d in verdict.decisions.items() if name != "c12"]
    assert set(kept) == {"keep"}


def test_by_rule_pseudo_the_map_becomes_the_label_of_cases_that_have_none_and_of_no_other() -> None:
    verdict = verdict_of(seen(0, 1900, 0), seen(0, 0, 0), rule="pseudo", confidence=0.6)
    assert set(edits_of(verdict.decisions)) == {"c12"}
    edits = edits_of(verdict.decisions)["c12"].classes
    assert edits[1] == Fill({Kind.ADDED: 0.6})
    assert not edits_of(verdict_of(seen(0, 1900, 0)).decisions), "the default only ranks"


def test_a_map_that_has_not_learnt_a_class_proposes_none_of_it() -> None:
    rows = [seen(1000, 2000, 0)] * 12 + [seen(0, 1900, 0)]
    scores = [CaseScore(f"c{n}", one, {1: one}) for n, one in enumerate(rows)]
    verdict = MULTISA.policy(
        ArchiveEvidence(scores, (), CaseStats.zero(2)), MultisaParams(rule="pseudo")
    )
    assert isinstance(verdict, Verdict)
    assert not edits_of(verdict.decisions)
    assert "has not learnt" in verdict.decisions["c12"].classes[1].why


@pytest.mark.parametrize(
    "values",
    [
        {"rule": "bold"}, {"members": 0}, {"fields": 0}, {"sharpness": 0.0}, {"sds": -1.0},
        {"found": 0.0}, {"confidence": 1.5}, {"min_cases": 2},
    ],
)  # fmt: skip
def test_values_outside_their_range_are_refused_by_name(values) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        make_params(MULTISA, values)


class Archive:
    """A small archive in memory: phantom cases, a few of them with a gross error."""

    def __init__(self) -> None:
        pairs = [phantom_case(0, number, SHAPE, SPACING) for number in range(CASES)]
        images = np.stack([image for image, _ in pairs]).clip(-1000, 400).astype(np.float32)
        self.images = (images - images.mean()) / images.std()
        self.labels = np.stack([label for _, label in pairs])
        self.dropped, self.displaced = 4, 13
        self.labels[self.dropped] = corrupt(
            self.labels[self.dropped], "drop", np.random.default_rng(0), value=2
        )
        liver = self.labels[self.displaced] == 2
        self.labels[self.displaced][liver] = 0
        self.labels[self.displaced][np.roll(liver, (0, 12, 16), (0, 1, 2))] = 2

    def batch(self, step: int) -> Batch:
        rng = np.random.default_rng(step)
        cases = rng.integers(0, CASES, 4)
        images, labels = [], []
        for case in cases:
            start = [rng.integers(0, n - p + 1) for n, p in zip(SHAPE, PATCH, strict=True)]
            part = tuple(slice(a, a + p) for a, p in zip(start, PATCH, strict=True))
            images.append(self.images[case][part])
            labels.append(self.labels[case][part].astype(np.int64))
        return Batch(
            torch.from_numpy(np.stack(images)[:, None]),
            torch.from_numpy(np.stack(labels)),
            [str(case) for case in cases],
            step,
        )

    def scores(self, net: torch.nn.Module) -> list[CaseScore]:
        out = []
        for number in range(CASES):
            with torch.no_grad():
                predicted = net(torch.from_numpy(self.images[number])[None, None]).argmax(1)[0]
            given, found = self.labels[number], predicted.numpy()
            classes = {
                c: seen(
                    *(int(x.sum()) for x in (given == c, found == c, (given == c) & (found == c)))
                )
                for c in range(1, 5)
            }
            whole = seen(int((given > 0).sum()), int((found > 0).sum()), 0)
            out.append(CaseScore(str(number), whole, classes))
        return out


@pytest.mark.slow
def test_dropped_and_displaced_structures_are_the_worst_tenth_of_a_small_archive() -> None:
    archive = Archive()
    spec = NetworkSpec(
        classes=5, widths=(8, 16, 32), strides=((1, 2, 2), (2, 2, 2)), dropout=0.0,
        name=MULTISA.voters(MultisaParams()).network,
    )  # fmt: skip
    steps = 100
    trainer = Trainer(spec, TrainConfig(steps=steps, hook=MULTISA.voters(MultisaParams()).hook))
    for step in range(steps):
        trainer.step(archive.batch(step))
    scores = archive.scores(trainer.nets[0].eval())
    verdict = MULTISA.policy(ArchiveEvidence(scores, (), CaseStats.zero(5)), MultisaParams())
    worst = {
        name: max(one.posterior for one in decision.classes.values())
        for name, decision in verdict.decisions.items()
    }
    ranked = sorted(worst, key=worst.__getitem__, reverse=True)
    assert set(ranked[: CASES // 10]) == {str(archive.dropped), str(archive.displaced)}
    for case in (archive.dropped, archive.displaced):
        liver = verdict.decisions[str(case)].classes[2]
        assert liver.edit.action == "review", liver
    assert not edits_of(verdict.decisions)
