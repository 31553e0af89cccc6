"""Second looks shard by shard: the same answer for any cut, features that are the network's own."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raysegclean.cluster.predict import VoteJob
from raysegclean.cluster.proposal_folder import ProposalFolder
from raysegclean.cluster.second_pass import (
    QueryJob,
    QueryStage,
    ReviseJob,
    ReviseStage,
    read_answer,
)
from raysegclean.cluster.train_loop import model_key
from raysegclean.errors import InputError
from raysegclean.evidence.second_pass import Answer, PredictedBlock
from raysegclean.nets.weights import load_network
from raysegclean.planning.items import ShardTask
from raysegclean.planning.plan import RunPlan
from raysegclean.runs.preflight import prepare
from raysegclean.store.archive import Archive
from raysegclean.store.run import RunFolder
from raysegclean.voxels.geometry import Box

from ..engine.scenes import LABEL, Scene, config_for, lend_networks, write_archive

SCENE = Scene("big", (9, 70, 91), (3.0, 1.0, 1.0))


@dataclass(frozen=True)
class Everything:
    """Returns the block itself, so that a test sees what a look sees."""

    halo: int
    needs_features = True

    def halo_vox(self, spacing_mm: tuple[float, float, float]) -> tuple[int, int, int]:
        assert spacing_mm == SCENE.spacing_mm
        return 0, self.halo, self.halo

    def look(self, block: PredictedBlock, values: Mapping[str, Any]) -> Answer:
        assert block.features_fzyx is not None
        core = block.core.slices
        return {
            "where": np.array([block.window.start_zyx, block.window.stop_zyx]),
            "core": np.array([block.core.start_zyx, block.core.stop_zyx]),
            "prob": block.prob_czyx,
            "features": block.features_fzyx,
            "given": block.given_zyx,
            "sum": np.bincount(block.given_zyx[core].ravel(), minlength=3) * values["factor"],
        }

    def merge(self, first: Answer, second: Answer) -> Answer:
        return {"sum": first["sum"] + second["sum"]}


@dataclass(frozen=True)
class OneMore:
    """Wants the next channel where x is even."""

    def halo_vox(self, spacing_mm: tuple[float, float, float]) -> tuple[int, int, int]:
        return 0, 1, 3

    def revise(self, block: PredictedBlock, values: Mapping[str, Any]) -> np.ndarray:
        x = np.arange(block.given_zyx.shape[2]) + block.window.start_zyx[2]
        wanted = np.where(x % values["every"] == 0, (block.given_zyx + 1) % 3, block.given_zyx)
        return wanted[block.core.slices].astype(np.uint8)


class Lent:
    """An archive of one case with lent networks; what the voters say of the whole of it."""

    def __init__(self, folder: Path) -> None:
        self.archive: Archive = write_archive(folder / "a", [SCENE])
        settings: dict[str, Any] = {
            "method": "uncertainty",
            "relabel__shard_vox": 64,
            "relabel__tile_zyx": [8, 32, 32],
            "train": {"steps": 8, "crossfit": 0, "patch_zyx": [8, 16, 16]},
        }
        config = config_for(self.archive, folder / "run", **settings)
        self.run = RunFolder(lend_networks(config, folder / "run"))
        self.plan: RunPlan = prepare(config).plan(config, gpu=False)
        self.key = self.plan.train_key()
        models = tuple(model_key(self.key, 0, member) for member in (0, 1))
        self.votes = VoteJob(
            self.run.uri, self.run.uri, (models,), self.plan, {"big": "proposal"}, None
        )
        self.given = self.archive.label("big", LABEL).read_all()
        grid = self.plan.case("big").grid(64)
        self.tasks = [ShardTask("big", index) for index in grid.indices()]

    def whole(self) -> tuple[np.ndarray, np.ndarray]:
        """Return probabilities and features of one forward pass over the padded case."""
        case = self.plan.case("big")
        image = self.plan.normaliser.apply(
            self.archive.image("big").read_all()[None], case.intensity
        )
        padded = torch.from_numpy(np.pad(image, [(0, 0), (0, 0), (0, 0), (0, 1)], mode="edge"))
        probs, features = [], []
        for member in (0, 1):
            net, _, _ = load_network(self.run.store.get(model_key(self.key, 0, member)))
            net.head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
            with torch.no_grad():
                probs.append(torch.softmax(net(padded[None]), dim=1)[0].numpy())
        return np.mean(probs, axis=0)[..., :91], features[0][0].numpy()[..., :91]


@pytest.fixture(scope="module")
def lent(tmp_path_factory: pytest.TempPathFactory) -> Lent:
    return Lent(tmp_path_factory.mktemp("lent"))


def test_a_look_sees_the_voters_and_their_features_with_its_halo(lent: Lent) -> None:
    prob, features = lent.whole()
    stage = QueryStage(QueryJob(lent.votes, Everything(5), {"big": {"factor": 1}}, {"big": "k1"}))
    assert len(lent.tasks) == 4
    for task in lent.tasks:
        seen = stage.compute(task, stage.load(task))
        window = Box(*(tuple(corner) for corner in seen["where"].tolist()))
        core = Box(*(tuple(corner) for corner in seen["core"].tolist()))
        expected = lent.plan.case("big").grid(64).box(task.index_zyx)
        assert window == expected.grown((0, 5, 5)).clipped(Box.whole(SCENE.shape_zyx))
        assert core == expected.relative_to(window)
        part = (slice(None), *window.slices)
        np.testing.assert_allclose(seen["prob"], prob[part], atol=1e-5)
        np.testing.assert_allclose(seen["features"], features[part], atol=1e-4)
        np.testing.assert_array_equal(seen["given"], lent.given[window.slices])


def test_answers_are_kept_per_shard_and_merge_to_that_of_the_case(lent: Lent) -> None:
    stage = QueryStage(QueryJob(lent.votes, Everything(2), {"big": {"factor": 3}}, {"big": "k2"}))
    for task in lent.tasks:
        record = stage.write(task, stage.compute(task, stage.load(task)))
        assert (record.task, record.case, record.key) == (task.name, "big", "k2")
        assert record.objects[0].key == f"looks/k2/{task.name}.npz"
    parts = [read_answer(lent.run.store, task.name, "k2") for task in lent.tasks]
    expected = 3 * np.bincount(lent.given.ravel(), minlength=3)
    np.testing.assert_array_equal(reduce(Everything(2).merge, parts)["sum"], expected)


def test_a_damaged_answer_is_told_with_the_remedy(lent: Lent) -> None:
    lent.run.store.put("looks/k3/big/0.0.0.npz", b"nothing")
    with pytest.raises(InputError, match=r"looks/k3/big/0.0.0.npz.*Delete"):
        read_answer(lent.run.store, "big/0.0.0", "k3")


def test_a_revision_is_written_as_the_part_correction(lent: Lent) -> None:
    stage = ReviseStage(ReviseJob(lent.votes, OneMore(), {"big": {"every": 2}}, {"big": "k4"}))
    case = lent.plan.case("big")
    ProposalFolder.of(lent.run.store, lent.plan, case, "proposal").create()
    for task in lent.tasks:
        record = stage.write(task, stage.compute(task, stage.load(task)))
        assert record.key == "k4"
    folder = ProposalFolder.of(lent.run.store, lent.plan, case, "proposal", correction_key="k4")
    correction = folder.read(Box.whole(case.shape_zyx)).correction_zyx
    even = np.arange(91) % 2 == 0
    np.testing.assert_array_equal(correction, np.where(even, (lent.given + 1) % 3 + 1, 0))
