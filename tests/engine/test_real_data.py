"""Real cases go the whole road: ingest, simulate, clean, score, export.

The data are not part of the project: they lie in a folder `shared/data` beside the checkout, or
where RAYSEGCLEAN_DATA says. Quality is measured by benchmarks/quality.py; here it must only run,
harm nothing and come back as it went in.
"""

import os
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from raysegclean.config.settings import make_config
from raysegclean.evaluate.score import score_archive
from raysegclean.runs.pipeline import clean
from raysegclean.simulate.noisy_archive import simulate
from raysegclean.store.archive import Archive
from raysegclean.store.export import export_nifti
from raysegclean.store.ingest import ingest_nifti

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("RAYSEGCLEAN_DATA", ROOT.parent / "shared" / "data"))
SETS = {
    "hippocampus_mr": (r"(hippocampus_\d+)", [24, 32, 24]),
    "lung_nodules_ct": (r"(LIDC-IDRI-\d+)", [8, 40, 40]),
}

pytestmark = [
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA}: set RAYSEGCLEAN_DATA"),
]


@pytest.mark.parametrize("name", SETS)
def test_real_cases_go_the_whole_road_and_no_class_is_lost(name: str, tmp_path: Path) -> None:
    regex, patch = SETS[name]
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
        for path in sorted((DATA / name / kind).iterdir())[:12]:
            shutil.copy(path, tmp_path / kind)
    folders = (tmp_path / "images", tmp_path / "labels")
    report = ingest_nifti(*folders, tmp_path / "real", "given", patient_regex=regex)
    assert not report.failed
    simulate(
        Archive.open(tmp_path / "real"),
        tmp_path / "noisy",
        "given",
        noise="boundary",
        fraction=0.5,
        seed=1,
        params={"n_max": 1},
    )
    archive = Archive.open(tmp_path / "noisy")
    config = make_config(
        {
            "archive": str(tmp_path / "noisy"),
            "label": "given",
            "run": str(tmp_path / "run"),
            "method": "uncertainty",
            "params": {"members": 1},
            "network": {"widths": [4, 8]},
            "train": {"steps": 30, "batch": 2, "patch_zyx": patch},
        }
    )
    assert clean(config).exit_code == 0
    scores = score_archive(archive, "given_clean", "given_truth", given="given")
    assert len({row.case for row in scores.rows}) == 12
    assert all(row.label_voxels > 0 for row in scores.rows if row.truth_voxels)

    export_nifti(archive, "given_clean", tmp_path / "out")
    for path in sorted(folders[1].iterdir()):
        source, back = nibabel.load(path), nibabel.load(tmp_path / "out" / path.name)
        assert np.array_equal(source.affine, back.affine)
        case = path.name.removesuffix(".gz").removesuffix(".nii")
        stored = archive.label(case, "given_clean").read_all()
        assert np.array_equal(np.asarray(back.dataobj).T, stored)
