"""A run is the same to the bit on Ray and in this process, and either goes on with the other's."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raysegclean.cluster import train_loop
from raysegclean.cluster.propose import ProposeStage
from raysegclean.config.settings import Config
from raysegclean.errors import ConfigError, RunOver, UnfitEnvironment
from raysegclean.events import Event, Events, Lines
from raysegclean.nets.weights import load_network
from raysegclean.runs.pipeline import clean
from raysegclean.runs.undo import undo
from raysegclean.runs.verify import verify
from raysegclean.store.archive import Archive
from raysegclean.store.index import load_index
from raysegclean.store.objects import Store
from raysegclean.store.run import RunFolder

from .scenes import LABEL, Scene, config_for, outputs, write_archive

EXPERT = "expert"
SCENES = (
    Scene("big", (12, 90, 70), (3.0, 1.0, 1.0)),
    *(Scene(f"odd{n}", (8 + n, 27 - n, 22 + 2 * n), (2.0, 1.0, 1.0)) for n in range(6)),
)
BAD = "odd5"
KINDS: Mapping[str, dict[str, Any]] = {
    "coseg": {"method": "coseg", "params": {"alpha": 0.5}},
    "spatial": {"method": "spatial", "params": {"rule": "published", "members": 1}},
    "reweight": {"method": "reweight", "params": {}},
}
"""Networks that teach each other, and a final one; second passes; training on trusted cases."""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """Write the scenes; three cases have an expert label, the image of another one is damaged."""
    archive = write_archive(tmp_path_factory.mktemp("executors") / "a", SCENES)
    for case in ("odd1", "odd2", "odd4"):
        label = archive.label(case, LABEL).read_all()
        archive.add_label(case, EXPERT, np.where(np.roll(label, 1, axis=2) > 0, label, 0), {})
    load_index(archive, require_label=LABEL)
    for shard in Path(archive.store.uri, f"{BAD}.ome.zarr", "0", "c").rglob("*"):
        if shard.is_file():
            shard.write_bytes(shard.read_bytes()[:40])
    return archive


def config_of(archive: Archive, run: Path, kind: str, executor: str, **more: Any) -> Config:
    settings = {
        "trusted": {"label": EXPERT} if kind != "coseg" else None,
        "relabel__shard_vox": 64,
        "relabel__max_change": 1.0,
        "resources__executor": executor,
        "output": {"label": f"{kind}-{run.name}"},
        "train__checkpoint_every": 2,
        "max_failed": 0.5,
        **KINDS[kind],
        **more,
    }
    return config_for(archive, run, **settings)


@dataclass(frozen=True)
class Left:
    """All that a run leaves behind and that must not depend on who did the work."""

    published: Mapping[str, tuple[bytes, bytes]]
    tables: Mapping[str, list[dict[str, Any]]]
    networks: Mapping[str, tuple[Any, ...]]
    frozen: Mapping[str, Any]
    actions: Any
    failed: Any

    @classmethod
    def of(cls, config: Config) -> "Left":
        run, names = RunFolder(config.run), ("cases", "changes", "evidence")
        frozen = run.resolved() or {}
        networks = {}
        for info in run.store.list("models"):
            net, spec, facts = load_network(run.store.get(info.key))
            weights = {name: value.numpy().tobytes() for name, value in net.state_dict().items()}
            networks[info.key] = (weights, spec, facts)
        return cls(
            published=outputs(config),
            tables={name: run.read_table(f"{name}.parquet") for name in names},
            # The key of a final network tells the run whose labels it learnt from.
            networks={re.sub("final-[0-9a-f]+", "final", k): v for k, v in networks.items()},
            frozen={name: frozen[name] for name in ("plan", "train_key", "identity")},
            actions=(run.read_json("actions.json"), run.read_json("numerics.json")),
            failed=run.failed(),
        )

    def assert_equal(self, other: "Left") -> None:
        for name in ("published", "tables", "networks", "frozen", "actions", "failed"):
            # As text, in which a value that is no number equals itself.
            assert repr(getattr(self, name)) == repr(getattr(other, name)), name


@pytest.fixture(scope="module")
def ended(
    archive: Archive, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None
) -> Callable[[str, str], tuple[Config, Left]]:
    """Return what gives, by kind and executor, the config of a run and what it left at its end."""
    folder, known = tmp_path_factory.mktemp("runs"), dict[tuple[str, str], tuple[Config, Left]]()

    def run(kind: str, executor: str) -> tuple[Config, Left]:
        if (kind, executor) not in known:
            config = config_of(archive, folder / f"{kind}-{executor}", kind, executor)
            report = clean(config)
            assert {row.case for row in report.failed} == {BAD}
            known[kind, executor] = config, Left.of(config)
        return known[kind, executor]

    return run


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["spatial", "coseg", "reweight"])
def test_a_run_in_this_process_leaves_behind_what_one_on_ray_does_and_can_be_undone_alike(
    ended: Callable[[str, str], tuple[Config, Left]], kind: str
) -> None:
    (mine, here), (theirs, there) = (ended(kind, executor) for executor in ("local", "ray"))
    here.assert_equal(there)
    assert set(here.published) == {scene.case for scene in SCENES} - {BAD}
    assert len(here.networks) == {"spatial": 2, "coseg": 5, "reweight": 2}[kind]
    for config in (mine, theirs):
        assert verify(config.run).exit_code == 0
        undo(config.run, case="odd0")
    Left.of(mine).assert_equal(Left.of(theirs))
    changed = any(np.frombuffer(reasons, np.uint8).any() for _, reasons in here.published.values())
    assert changed == (kind == "spatial")


class Stops:
    """Ends a run at the first progress of a stage, or of one part of it, from `done` on."""

    def __init__(self, stage: str, part: str = "", done: float = 0.0) -> None:
        self.stage, self.part, self.done = stage, part, done

    def __call__(self, event: Event) -> None:
        mine = event.stage == self.stage and event.part.startswith(self.part)
        if mine and event.kind == "progress" and event.done >= self.done:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "order", [("local", "ray"), pytest.param(("ray", "local"), marks=pytest.mark.slow)]
)
def test_what_one_executor_began_the_other_ends(
    archive: Archive,
    ended: Callable[[str, str], tuple[Config, Left]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    order: tuple[str, str],
) -> None:
    monkeypatch.setattr(train_loop, "NOTE_S", 0.0)
    first, second = order
    config = config_of(archive, tmp_path / f"begun-{first}", "spatial", first)
    stops = [Stops("train", "fold 1", 5 if first == "local" else 0), Stops("propose")]
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            clean(config, Events(stop))
    said: list[str] = []
    clean(config.with_settings({"resources.executor": second}), Events(Lines(said.append)))
    assert any("shards were committed before" in line for line in said)
    assert not [line for line in said if line.startswith("train")], "training was finished"
    Left.of(config).assert_equal(ended("spatial", "local")[1])


def test_a_training_that_was_stopped_goes_on_from_its_checkpoint(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_loop, "NOTE_S", 0.0)
    config = config_of(archive, tmp_path / "stopped", "spatial", "local")
    with pytest.raises(KeyboardInterrupt):
        clean(config, Events(Stops("train", "fold 1", 5)))
    steps: list[tuple[str, float]] = []

    def see(event: Event) -> None:
        if event.stage == "train" and event.kind == "progress" and event.part:
            steps.append((event.part, event.done))
        if event.stage == "propose":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        clean(config, Events(see))
    assert [done for part, done in steps] == [5, 6, 7, 8]
    assert {part for part, _ in steps} == {"fold 1, network 0"}


ALONE = """
import sys, torch
from raysegclean.nets.weights import load_network
from raysegclean.runs.pipeline import clean
from raysegclean.runs.undo import undo
from raysegclean.config.settings import make_config
import json, pathlib
torch.set_num_threads(2)
report = clean(make_config(json.loads(pathlib.Path(sys.argv[1]).read_text())))
undo(report.run, case="odd0")
known = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
print(report.exit_code, "ray" in sys.modules, *known)
"""


def test_a_whole_run_and_its_undo_import_no_ray_and_put_back_what_they_set(
    archive: Archive, tmp_path: Path
) -> None:
    config = config_of(archive, tmp_path / "alone", "spatial", "local")
    (tmp_path / "config.json").write_text(json.dumps(config.resolved()))
    command = [sys.executable, "-c", ALONE, str(tmp_path / "config.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "False", "2", "False"]


def test_a_run_that_was_taken_over_stops_in_training(archive: Archive, tmp_path: Path) -> None:
    config = config_of(archive, tmp_path / "taken", "spatial", "local")
    store = Store.open(config.run)

    def take(event: Event) -> None:
        if (event.stage, event.kind) == ("train", "start"):
            lock = store.get_json("lock.json")
            store.put_json("lock.json", lock | {"term": lock["term"] + 1, "job": "the successor"})

    with pytest.raises(RunOver, match="job the successor"):
        clean(config, Events(take))
    assert not list(store.list("models"))


def test_a_broken_gpu_ends_the_run_and_blames_no_case(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    config = config_of(archive, tmp_path / "broken", "spatial", "local")
    monkeypatch.setattr(ProposeStage, "compute", broken)
    with pytest.raises(UnfitEnvironment, match=r"GPU .* broken.*illegal memory.*resumes"):
        clean(config)
    assert {row.case for row in RunFolder(config.run).failed()} <= {BAD}


def test_what_this_process_cannot_do_is_refused_before_anything_is_computed(
    archive: Archive, tmp_path: Path
) -> None:
    config = config_of(archive, tmp_path / "run", "coseg", "local")
    search = {"search": {"space": {"start_epoch": [1, 2]}}}
    for changes, told in (
        (search, r"resources\.executor: local cannot search.*Set ray, or drop search"),
        ({"resources.train.workers": 2}, r"resources\.train\.workers: local is one worker"),
        ({"resources.executor": "dask"}, r"resources\.executor.*ray, or local"),
    ):
        with pytest.raises(ConfigError, match=told):
            config.with_settings(changes)
    with pytest.raises(UnfitEnvironment, match=r"resources: 1 GPUs are demanded"):
        clean(config.with_settings({"resources.relabel.gpus": 1}))
    assert RunFolder(config.run).resolved() is None
