"""Methods that look twice: the same answer on any number of workers, and nothing twice.

The networks are lent, with random weights: what they predict is nonsense, but every method finds
something to change in it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raysegclean.config.settings import Config
from raysegclean.errors import ConfigError
from raysegclean.events import Events, Lines
from raysegclean.policy.edits import Reason
from raysegclean.runs.pipeline import clean
from raysegclean.runs.verify import verify
from raysegclean.store.archive import Archive
from raysegclean.store.run import RunFolder

from .scenes import LABEL, Scene, config_for, lend_networks, outputs, write_archive

pytestmark = pytest.mark.usefixtures("ray_cluster")

EXPERT = "expert"
SCENES = (
    Scene("big", (12, 90, 70), (3.0, 1.0, 1.0)),
    *(Scene(f"odd{n}", (8 + n, 27 - n, 22 + 2 * n), (2.0, 1.0, 1.0)) for n in range(7)),
)
METHODS: Mapping[str, tuple[dict[str, Any], Reason]] = {
    "spatial": ({"rule": "published"}, Reason.BIAS),
    "transition": ({"rule": "published", "rows": 4000}, Reason.POSTERIOR),
    "confident": ({"rule": "cleanlab"}, Reason.REPLACE),
}
LOOKS = {"spatial": 2, "transition": 2, "confident": 0}
"""Passes of a method's own: a look and a revision."""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """Write the scenes; two cases have an expert label, without the outermost voxels."""
    archive = write_archive(tmp_path_factory.mktemp("looks") / "a", SCENES)
    for case in ("odd1", "odd4"):
        label = archive.label(case, LABEL).read_all()
        archive.add_label(case, EXPERT, np.where(np.roll(label, 1, axis=2) > 0, label, 0), {})
    return archive


def _config(archive: Archive, folder: Path, method: str, executor: str = "ray") -> Config:
    settings = {
        "method": method,
        "params": METHODS[method][0] | {"members": 1},
        "trusted": {"label": EXPERT},
        "relabel__shard_vox": 64,
        "relabel__tile_zyx": [8, 32, 32],
        "relabel__max_change": 1.0,
        "resources__relabel": {"actors": 2},
        "resources__executor": executor,
        "output": {"label": f"{method}-{executor}"},
    }
    lender = folder / "lender"
    if not lender.exists():
        lend_networks(config_for(archive, folder / "none", **settings), lender)
    return config_for(archive, folder / f"run-{executor}", models=str(lender), **settings)


@pytest.mark.parametrize(
    "method",
    [
        "spatial",
        pytest.param("transition", marks=pytest.mark.slow),
        pytest.param("confident", marks=pytest.mark.slow),
    ],
)
def test_either_executor_publishes_the_same_changes_and_a_second_start_looks_at_nothing_again(
    archive: Archive, tmp_path: Path, method: str
) -> None:
    configs = [_config(archive, tmp_path, method, executor) for executor in ("ray", "local")]
    for config in configs:
        assert clean(config).exit_code == 0
    one, two = (outputs(config) for config in configs)
    assert len(one) == len(SCENES)
    assert one == two
    reasons = np.concatenate([np.frombuffer(reason, np.uint8) for _, reason in one.values()])
    assert set(np.unique(reasons)) == {Reason.UNCHANGED, METHODS[method][1]}
    first, second = (RunFolder(config.run) for config in configs)
    assert first.state()["chosen"] == second.state()["chosen"]

    before = _committed(first)
    said: list[str] = []
    assert clean(configs[0], Events(Lines(said.append))).exit_code == 0
    assert outputs(configs[0]) == one
    assert _committed(first) == before
    again = [line for line in said if line.startswith(("look-", "revise-"))]
    assert len(again) == LOOKS[method]
    assert all("0 are left" in line for line in again)
    assert verify(configs[0].run).exit_code == 0


def _committed(run: RunFolder) -> dict[str, str]:
    """Return every object that a look or a commit left, with its version."""
    found = {}
    for prefix in ("ledger", "looks", "corrector", "proposals"):
        found |= {info.key: info.etag for info in run.store.list(prefix)}
    return found


def test_without_a_trusted_case_spatial_correction_is_refused_before_anything_runs(
    archive: Archive, tmp_path: Path
) -> None:
    config = _config(archive, tmp_path, "spatial")
    with pytest.raises(ConfigError, match=r"spatial learns from cases with a trusted label"):
        clean(config.with_settings({"trusted": None}))
    assert not RunFolder(config.run).resolved()
