"""Multi-SA end to end: it trains its own network, ranks, and labels only what has no label."""

from pathlib import Path

import numpy as np
import pytest

from raysegclean.policy.edits import Reason
from raysegclean.runs.pipeline import clean
from raysegclean.store.archive import Archive, write_case
from raysegclean.store.run import RunFolder

from .scenes import LABEL, Scene, config_for, lend_networks, outputs, two_blobs, write_archive

pytestmark = pytest.mark.usefixtures("local_executor")

SCENES = tuple(Scene(f"c{n}", (8, 20, 24), (2.0, 1.0, 1.0)) for n in range(5))
BLANK = Scene("blank", (8, 20, 24), (2.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    archive = write_archive(tmp_path_factory.mktemp("archive") / "a", SCENES)
    image, label = two_blobs(BLANK, 9)
    nothing = {LABEL: np.zeros_like(label)}
    write_case(archive, BLANK.case, image, nothing, spacing_mm=BLANK.spacing_mm)
    return archive


def test_it_trains_its_own_network_and_changes_nothing(archive: Archive, tmp_path: Path) -> None:
    config = config_for(archive, tmp_path / "run", method="multisa", output={"label": "ranked"})
    report = clean(config)
    assert (report.exit_code, report.changed_vox) == (0, 0)
    frozen = RunFolder(config.run).resolved() or {}
    assert frozen["plan"]["network"]["name"] == "multisa"
    actions = {row["action"] for row in RunFolder(config.run).read_table("cases.parquet")}
    assert actions <= {"keep", "not judged", "review"}


def test_by_rule_pseudo_a_case_without_a_label_gets_one_and_no_other_changes(
    archive: Archive, tmp_path: Path
) -> None:
    settings = {
        "method": "multisa",
        "params": {"rule": "pseudo", "confidence": 0.01},
        "output": {"label": "pseudo"},
    }
    lender = lend_networks(config_for(archive, tmp_path / "none", **settings), tmp_path / "lender")
    config = config_for(archive, tmp_path / "run", models=lender, **settings)
    clean(config)
    assert not RunFolder(config.run).read_json("actions.json")["held"]
    changed = {
        case: set(np.frombuffer(reasons, np.uint8)) - {0}
        for case, (_, reasons) in outputs(config).items()
    }
    assert changed.pop(BLANK.case) == {Reason.FILL}
    assert set(changed) == {scene.case for scene in SCENES}
    assert not any(changed.values())
