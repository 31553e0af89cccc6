"""`import raysegclean as rsc`: the verbs as functions, on a real archive and a real run."""

from pathlib import Path

import numpy as np
import pytest

import raysegclean as rsc
from raysegclean.errors import ConfigError
from raysegclean.interface.cli import VERBS
from raysegclean.store.archive import Archive

from .scenes import LABEL, Scene, write_archive

SCENES = tuple(Scene(f"c{n}", (6 + n % 2, 16, 17)) for n in range(3))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return write_archive(tmp_path_factory.mktemp("api") / "archive", SCENES)


def test_an_archive_goes_out_comes_in_is_corrupted_checked_and_scored(
    archive: Archive, tmp_path: Path
) -> None:
    uri = archive.store.uri
    assert rsc.export(uri, str(tmp_path / "labels"), LABEL, cases=["c0", "c1"]).done == {
        "c0": "written",
        "c1": "written",
    }
    labels, again = str(tmp_path / "labels"), str(tmp_path / "again")
    assert rsc.ingest(labels, labels, again, LABEL, more_labels={"expert": labels}).exit_code == 0
    noisy = str(tmp_path / "noisy")
    made = rsc.simulate_noise(uri, noisy, LABEL, noise="shift", fraction=1, params={"length": 3})
    assert made.corrupted == ("c0", "c1", "c2")
    assert rsc.check(noisy, LABEL, classes=[1, 2], labels_only=True).cases == 3
    report = rsc.score(noisy, LABEL, f"{LABEL}_truth")
    assert len(report.rows) == 6
    assert min(row.dice for row in report.rows) < 1


def test_a_run_is_planned_made_looked_at_proved_and_taken_back(
    archive: Archive, tmp_path: Path
) -> None:
    for case in archive.case_ids():
        given = archive.label(case, LABEL).read_all()
        for name in ("moved", "moved_too"):
            archive.add_label(case, name, np.roll(given, 2, axis=2), {})
    config = tmp_path / "clean.yaml"
    config.write_text(
        f"archive: {archive.store.uri}\nlabel: {LABEL}\nrun: {tmp_path / 'run'}\ngroup: case\n"
        "method: combine\nparams: {labels: moved moved_too}\nrelabel: {max_change: 1.0}\n"
        "resources: {executor: local}\n"
    )
    changed = {"output.label": "001"}  # text that YAML alone would keep so only in quotes
    assert rsc.plan(config, changed).cases == 3
    report = rsc.clean(str(config), changed)
    assert (report.output_label, report.changed_cases, report.exit_code) == ("001", 3, 0)
    assert rsc.status(report.run)["status"] == "complete"
    assert rsc.verify(report.run).failed == ()
    assert rsc.undo(report.run, case="c1").changed_cases == 2
    with pytest.raises(ConfigError, match=r"Did you mean train\.steps"):
        rsc.clean(config, {"train.stpes": 5})


def test_the_package_names_every_verb_and_nothing_that_it_has_not() -> None:
    verbs = set(VERBS.commands) - {"version", "simulate"} | {"simulate_noise", "__version__"}
    assert set(dir(rsc)) == verbs
    assert all(callable(getattr(rsc, name)) for name in dir(rsc) if name != "__version__")
    with pytest.raises(AttributeError, match="claen"):
        rsc.claen  # type: ignore[attr-defined]  # noqa: B018
