"""A worker takes no more memory than the plan says, and not far less."""

import logging
import subprocess
import sys
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from raysegclean.evidence.cases import LabelSummary
from raysegclean.nets.memory import training_bytes
from raysegclean.nets.unet import NetworkSpec
from raysegclean.planning.plan import RunPlan, make_plan
from raysegclean.planning.worker_memory import PROCESS_BYTES, trainer_bytes, worker_bytes
from raysegclean.runs.pipeline import clean
from raysegclean.runs.preflight import prepare
from raysegclean.store.archive import Archive, write_case
from tests.engine.scenes import LABEL, Scene, config_for, lend_networks, write_archive

from .test_plan import VOTERS, _config, _info

PROPOSE = """
import sys
from raysegclean.planning.items import ShardTask
from raysegclean.cluster.predict import VoteJob
from raysegclean.cluster.propose import ProposeStage
from raysegclean.cluster.train_loop import model_key
from raysegclean.runs.pipeline import clean
from raysegclean.planning.plan import RunPlan
from raysegclean.store.run import RunFolder

run = RunFolder(sys.argv[1])
resolved = run.resolved()
plan = RunPlan.from_json(resolved["plan"])
members = range(plan.voters.members)
models = (tuple(model_key(resolved["train_key"], 0, member) for member in members),)
stage = ProposeStage(VoteJob(run.uri, run.uri, models, plan, {"big": "key"}, None))
tasks = [ShardTask("big", index) for index in plan.case("big").grid(plan.shard_vox).indices()]
loaded = stage.load(tasks[0])
for task, following in zip(tasks, [*tasks[1:], tasks[-1]]):  # as a worker does, one ahead
    ahead = stage.load(following)
    stage.write(task, stage.compute(task, loaded))
    loaded = ahead
status = open("/proc/self/status").read()  # not ru_maxrss, which begins with the parent's
print(int(status.split("VmHWM:")[1].split()[0]) * 1024)
"""

TRAIN = """
import torch
from raysegclean.nets.batch import Batch
from raysegclean.nets.numerics import fix_numerics
from raysegclean.nets.trainer import TrainConfig, Trainer
from raysegclean.nets.unet import NetworkSpec

fix_numerics(1)
trainer = Trainer(NetworkSpec(classes=CLASSES), TrainConfig(steps=10, batch=2))
for step in range(2):
    image, label = torch.zeros(2, 1, 48, 64, 64), torch.zeros(2, 48, 64, 64, dtype=torch.int64)
    trainer.step(Batch(image, label, ["a"] * 2, step))
status = open("/proc/self/status").read()
print(int(status.split("VmHWM:")[1].split()[0]) * 1024)
"""

SHAPE = (48, 150, 200)


def peak_of_worker(folder: Path, classes: int, network: dict[str, Any]) -> tuple[int, RunPlan]:
    """Return what proposing the shards of one large case takes of memory, in bytes."""
    archive = Archive.open(str(folder / "a"))
    label = np.broadcast_to(np.arange(SHAPE[2]) // 4 % classes, SHAPE).astype(np.uint8)
    image = np.random.default_rng(0).normal(0, 20, SHAPE).astype(np.int16)
    write_case(archive, "big", image, {LABEL: label}, spacing_mm=(1.0, 1.0, 1.0))
    settings: dict[str, Any] = {
        "relabel__shard_vox": 128,
        "train": {"crossfit": 0, "patch_zyx": [8, 16, 16]},
    }
    config = config_for(archive, folder / "run", method="uncertainty", network=network, **settings)
    lend_networks(config, folder / "run")
    command = [sys.executable, "-c", PROPOSE, str(folder / "run")]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(told), prepare(config).plan(config, gpu=False)


@pytest.mark.numeric
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize(
    ("classes", "network"),
    [
        (3, {"widths": [8, 16, 32]}),
        (40, {"widths": [4, 8]}),
        (3, {"widths": [4, 64], "strides": [[1, 2, 1]]}),
        (3, {"name": "tests.nets.own_networks:instance", "widths": [2], "strides": []}),
    ],
    ids=["the default network", "many classes", "wide where it is coarse", "averaged windows"],
)
def test_a_worker_stays_within_what_is_kept_free_for_it(
    tmp_path: Path, classes: int, network: dict[str, Any]
) -> None:
    used, plan = peak_of_worker(tmp_path, classes, network)
    assert 1 / 3 < used / worker_bytes(plan, "vote") <= 1.0


@pytest.mark.numeric
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("classes", [4, 60])
def test_a_worker_that_trains_stays_within_what_is_predicted(classes: int) -> None:
    script = TRAIN.replace("CLASSES", str(classes))
    command = [sys.executable, "-c", script]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    predicted = PROCESS_BYTES + training_bytes(NetworkSpec(classes=classes), 2 * 48 * 64 * 64)
    assert 1 / 3 < int(told) / predicted <= 1.0


@pytest.mark.parametrize("preset", ["small", "base", "large"])
def test_a_hundred_classes_are_learnt_on_a_gpu_of_16_gb(preset) -> None:
    classes = dict.fromkeys(range(105), 9)
    label = LabelSummary("organs", "uint8", classes, {}, "v")
    infos = [_info(f"c{n}", (300, 512, 512), str(n), labels=(label,)) for n in range(4)]
    config = _config(network={"preset": preset, "spacing_mm": None})
    plan = make_plan(config, infos, VOTERS, gpu=True)
    assert (len(plan.classes), plan.train.precision) == (105, "bf16")
    assert prod(plan.patch_zyx) > 1_000_000
    assert trainer_bytes(plan, gpu=True) < 15e9


def test_what_runs_no_network_is_given_less_and_a_second_look_more(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "a", [Scene(name, (20, 70, 70)) for name in "ab"])
    config = config_for(archive, tmp_path / "run", method="uncertainty")
    plan = prepare(config).plan(config, gpu=False)
    labels, vote, look = (worker_bytes(plan, kind) for kind in ("labels", "vote", "look"))
    assert labels < vote < look


def test_a_node_that_has_less_than_a_worker_may_need_runs_one_at_a_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scenes = [Scene(f"c{n}", (5 + n, 21, 17)) for n in range(4)]
    archive = write_archive(tmp_path / "a", scenes)
    config = config_for(archive, tmp_path / "lender", output={"label": "cleaned"})
    lender = lend_networks(config, tmp_path / "lender")
    config = config.with_settings({"run": str(tmp_path / "run"), "models": lender})
    ray.init(address="local", num_cpus=4, _memory=1 << 28, include_dashboard=False)
    try:
        with caplog.at_level(logging.INFO, "raysegclean"):
            assert clean(config).exit_code == 0
    finally:
        ray.shutdown()
    assert "no node has more than 0.2: one runs per node" in caplog.text
