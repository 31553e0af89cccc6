"""What is gone is not zero: a run finds the objects that it wrote and that are not there."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raysegclean.config.settings import Config
from raysegclean.errors import RunConflict
from raysegclean.evidence.records import ApplyRecord
from raysegclean.runs import apply
from raysegclean.runs.pipeline import clean
from raysegclean.runs.verify import verify
from raysegclean.store.archive import Archive
from raysegclean.store.export import export_nifti
from raysegclean.store.run import RunFolder

from .scenes import Scene, config_for, lend_networks, outputs, write_archive

SCENES = tuple(Scene(case, (20, 40, 40 + 32 * n)) for n, case in enumerate("abcd"))
SETTINGS = {
    "method": "uncertainty",
    "params": {"voters": "dropout", "members": 1, "passes": 2, "rule": "safe", "delta": 0.3},
    "relabel__shard_vox": 64,
    "relabel__max_change": 1.0,
    "output": {"label": "clean"},
    "resources__executor": "local",
}
Outputs = dict[str, tuple[bytes, bytes]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Outputs]:
    """A run that is complete, and what it published; every test heals what it harms."""
    folder = tmp_path_factory.mktemp("lost")
    archive = write_archive(folder / "archive", SCENES)
    lend_networks(config_for(archive, folder / "lender", **SETTINGS), folder / "lender")
    config = config_for(archive, folder / "run", **SETTINGS, models=str(folder / "lender"))
    assert clean(config).exit_code == 0
    found = dict(outputs(config))
    assert any(any(reason) for _, reason in found.values()), "nothing changed: nothing is proved"
    return config, found


def _objects(uri: str, *parts: str) -> list[Path]:
    """Return the shards whose path has all of `parts`."""
    every = sorted(path for path in Path(uri).rglob("*") if path.is_file())
    found = [path for path in every if all(part in str(path) for part in (*parts, "/c/"))]
    assert found, parts
    return found


def _take_output(config: Config) -> None:
    """Delete what was published of a case, so that it is applied again."""
    for path in _objects(config.archive, "/d.ome.zarr/labels/clean"):
        path.unlink()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize("harm", [Path.unlink, _cut])
def test_proposals_that_are_gone_are_proposed_again(
    finished: tuple[Config, Outputs], harm: Callable[[Path], None]
) -> None:
    config, before = finished
    for path in _objects(config.run, "/proposals/", "/d/"):
        harm(path)
    _take_output(config)
    assert clean(config).exit_code == 0
    assert outputs(config) == before
    assert verify(config.run).failed == ()


@pytest.mark.parametrize("harm", [Path.unlink, _cut])
def test_published_objects_that_are_gone_are_refused_by_readers_and_written_again(
    finished: tuple[Config, Outputs], harm: Callable[[Path], None], tmp_path: Path
) -> None:
    config, before = finished
    harm(_objects(config.archive, "/d.ome.zarr/labels/clean/")[0])
    assert len(verify(config.run).failed) >= 1
    report = export_nifti(Archive.open(config.archive), "clean", tmp_path)
    assert [error.case for error in report.failed] == ["d"]
    assert clean(config).exit_code == 0
    assert outputs(config) == before


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[], None]], None]]:
    """Have something happen when cases are about to be applied."""

    def happens(act: Callable[[], None]) -> None:
        save = apply.save_job

        def saved(*args: object) -> None:
            act()
            save(*args)

        monkeypatch.setattr(apply, "save_job", saved)

    yield happens
    monkeypatch.undo()


def test_a_case_whose_proposals_go_in_mid_run_fails_by_name_and_is_done_again(
    finished: tuple[Config, Outputs],
    meanwhile: Callable[[Callable[[], None]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, before = finished
    _take_output(config)
    meanwhile(lambda: [path.unlink() for path in _objects(config.run, "/proposals/", "/d/")])
    assert clean(config).exit_code == 1
    (failed,) = RunFolder(config.run).failed()
    assert failed.case == "d"
    assert "they are proposed again" in failed.error
    assert set(outputs(config)) == set(before) - {"d"}
    monkeypatch.undo()
    assert clean(config).exit_code == 0
    assert outputs(config) == before


def test_a_run_folder_that_is_deleted_in_mid_run_is_an_error_and_the_next_start_is_whole(
    finished: tuple[Config, Outputs],
    meanwhile: Callable[[Callable[[], None]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, before = finished
    _take_output(config)
    meanwhile(lambda: shutil.rmtree(config.run))
    with pytest.raises(RunConflict, match="it was deleted"):
        clean(config)
    assert not RunFolder(config.run).ledger("apply", ApplyRecord).records()
    monkeypatch.undo()
    assert clean(config).exit_code == 0
    assert outputs(config) == before
