"""A method in a file outside the package runs like those inside, and the page about it is true."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from raysegclean.errors import ConfigError
from raysegclean.evidence.records import ProposeRecord
from raysegclean.evidence.stats import CaseStats
from raysegclean.methods.base import load_method, make_params
from raysegclean.runs.pipeline import clean
from raysegclean.store.archive import Archive
from raysegclean.store.run import RunFolder

from .scenes import LABEL, Scene, config_for, lend_networks, outputs, write_archive

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "own_method.py"
PAGE = ROOT / "docs" / "own-method.md"
SCENES = tuple(Scene(f"c{n}", (6 + n % 3, 20, 24), (2.0, 1.0, 1.0)) for n in range(6))


@pytest.fixture
def on_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    yield
    sys.modules.pop("own_method", None)


def test_the_page_shows_the_file_and_the_file_is_short() -> None:
    (shown,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert shown == EXAMPLE.read_text()
    assert len(shown.splitlines()) <= 60


@pytest.mark.usefixtures("on_path", "local_executor")
def test_an_own_method_cleans_the_worst_cases_and_no_other(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "a", SCENES)
    settings = {
        "method": "own_method:METHOD",
        "params": {"worst": 0.34, "confidence": 0.3},
        "relabel__max_change": 1.0,
    }
    lender = lend_networks(config_for(archive, tmp_path / "none", **settings), tmp_path / "lender")
    config = config_for(archive, tmp_path / "run", models=lender, **settings)
    assert clean(config).exit_code == 0
    rows = RunFolder(config.run).read_table("cases.parquet")
    records = RunFolder(config.run).ledger("propose", ProposeRecord).records()
    badness = {}
    for record in records:
        stats = CaseStats.from_text(record.stats)
        foreground_vox = stats.confusion.sum() - stats.confusion[0, 0]
        badness[record.case] = stats.cross_entropy[0] / foreground_vox
    worst = set(sorted(badness, key=badness.get)[-3:])
    assert {row["case"] for row in rows if row["action"] == "replace"} == worst
    reasons = {case: np.frombuffer(r, np.uint8).any() for case, (_, r) in outputs(config).items()}
    assert {case for case, changed in reasons.items() if changed} <= worst
    assert any(reasons.values()), "random networks disagree with something"


@pytest.mark.usefixtures("on_path")
def test_its_parameters_are_checked_like_any_others(tmp_path: Path) -> None:
    archive = Archive.open(tmp_path)
    with pytest.raises(ConfigError, match=r"worts is not a parameter.*worst"):
        config_for(archive, "r", method="own_method:METHOD", params={"worts": 0.2}, label=LABEL)
    with pytest.raises(ConfigError, match="above 0 and up to 1"):
        make_params(load_method("own_method:METHOD"), {"worst": 0.0})
