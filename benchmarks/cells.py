"""What the two benchmarks share: places, cells on disk, real data, and baselines without a method.

A cell is one measurement, kept as one compressed JSON file under benchmarks/measured/, because all
of them take more than a working day. What is there is never measured again. Real data is read where
it lies and only ever copied into bench/.
"""

import gzip
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from grid import REVISION
from numpy.typing import NDArray

from raysegclean.cluster.proposal_folder import ProposalFolder
from raysegclean.evaluate.score import ScoreRow, score_labels
from raysegclean.evidence.records import ShardRecord
from raysegclean.planning.plan import RunPlan
from raysegclean.store.archive import Archive
from raysegclean.store.ingest import ingest_nifti
from raysegclean.store.run import RunFolder
from raysegclean.voxels.geometry import Box
from raysegclean.voxels.signed_distance import shift_label, signed_distance

__all__ = [
    "BENCH",
    "EVIDENCE",
    "LABEL",
    "MEASURED",
    "NIFTI",
    "ROOT",
    "SCOREBOARD",
    "TRUTH",
    "Change",
    "Label",
    "argmax",
    "changed_rows",
    "default_source",
    "ingest",
    "mean_bias",
    "read_cell",
    "read_cells",
    "shifted",
    "write_cell",
]

ROOT = Path(__file__).resolve().parents[1]
BENCH = ROOT / "bench"
MEASURED = ROOT / "benchmarks" / "measured"
EVIDENCE = ROOT / "benchmarks" / "evidence"
SCOREBOARD = BENCH / ("methods" if REVISION == 1 else f"methods-r{REVISION}")
"""Archives, runs and networks of `methods.py`; no other revision uses them again."""
LABEL, TRUTH = "given", "given_truth"
Label = NDArray[np.integer[Any]]
Change = Callable[[str, Label], Label]
"""From a case and its given label to what a baseline makes of it."""

NIFTI: Mapping[str, tuple[str, str]] = {
    "hippocampus": ("hippocampus_mr", r"(hippocampus_\d+)"),
    "lung": ("lung_nodules_ct", r"(LIDC-IDRI-\d+)"),
}
"""Real data of NIfTI pairs: its folder, and how the id of a case tells the patient."""


def default_source() -> Path:
    """Return the folder of the real data: RAYSEGCLEAN_DATA, or shared/data beside this checkout."""
    return Path(os.environ.get("RAYSEGCLEAN_DATA", ROOT.parent / "shared" / "data"))


def ingest(source: Path, data: str, target: Path, *, patients: int | None = None) -> Archive:
    """Ingest a data set of NIfTI pairs, or what of it is missing.

    `patients`: only one case each of so many. Raises ConfigError or FileNotFoundError where the
    data is not.
    """
    folder, patient_regex = NIFTI[data]
    place = source / folder
    if patients is not None:
        place = _some(place, patient_regex, patients, target.with_name("chosen"))
    ingest_nifti(
        place / "images", place / "labels", str(target), LABEL, patient_regex=patient_regex
    )
    return Archive.open(target)


def _some(folder: Path, patient_regex: str, patients: int, target: Path) -> Path:
    """Link the first case of so many patients, in the order of a hash, under `target`."""
    first: dict[str, str] = {}
    for name in sorted(file.name for file in (folder / "images").iterdir()):
        if found := re.search(patient_regex, name):
            first.setdefault(found[1], name)
    for patient in sorted(first, key=lambda one: blake2b(one.encode()).digest())[:patients]:
        for kind in ("images", "labels"):
            link = target / kind / first[patient]
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to((folder / kind / first[patient]).resolve())
    return target


def read_cells(folder: Path, names: str = "*.json*") -> list[dict[str, Any]]:
    """Return the cells of a folder whose file names match, sorted by name."""
    return [read_cell(path) for path in sorted(folder.glob(names)) if path.suffix != ".part"]


def read_cell(path: Path) -> dict[str, Any]:
    """Return one cell; a name that ends in .gz is that of a compressed one."""
    data = path.read_bytes()
    cell: dict[str, Any] = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    return cell


def write_cell(path: Path, cell: Mapping[str, Any]) -> None:
    """Write a cell, whole or not at all; numbers keep six digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_rounded(cell), separators=(",", ":")).encode()
    draft = path.with_suffix(".part")
    draft.write_bytes(gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)
    draft.replace(path)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {name: _rounded(one) for name, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list | tuple) else value


def changed_rows(
    archive: Archive, change: Change, cases: Iterable[str] | None = None
) -> list[dict[str, Any]]:
    """Return the scores of a rule that needs nothing but the given label and the case's name."""
    rows: list[ScoreRow] = []
    for case in archive.case_ids() if cases is None else cases:
        given, truth = (archive.label(case, label).read_all() for label in (LABEL, TRUTH))
        rows += score_labels(
            change(case, given),
            truth,
            archive.spacing_mm(case),
            case=case,
            patient=archive.attributes(case).get("patient"),
            given_zyx=given,
        )
    return [asdict(row) for row in rows]


def argmax(run: RunFolder) -> Change:
    """Replace every label by the prediction that a run's networks made for its case.

    Raises FileNotFoundError when that run has not proposed yet.
    """
    frozen = run.resolved()
    records = run.ledger("propose", ShardRecord).records()
    if frozen is None or not records:
        raise FileNotFoundError(f"{run.uri}: argmax needs the proposals of this run")
    plan = RunPlan.from_json(frozen["plan"])
    keys = {record.case: record.key for record in records}
    values = np.asarray(plan.classes)

    def change(name: str, given: Label) -> Label:
        case = plan.case(name)
        proposal = ProposalFolder.of(run.store, plan, case, keys[name]).read(
            Box.whole(case.shape_zyx)
        )
        channels = np.searchsorted(values, given).astype(np.uint8)
        return values[proposal.predicted_zyx(channels)].astype(given.dtype)

    return change


def mean_bias(
    archive: Archive, cases: Iterable[str], truth: str, classes: Sequence[int] = ()
) -> dict[int, float]:
    """Return how far the given outline lies outside the true one, per class, in voxels.

    The mean over cases of the mean over the true boundary; without `classes`, that of all
    foreground together, under 0.
    """
    found: dict[int, list[float]] = {value: [] for value in classes or (0,)}
    for case in cases:
        labels = [archive.label(case, name).read_all() for name in (LABEL, truth)]
        spacing_mm = archive.spacing_mm(case)
        for value, offsets in found.items():
            masks = [one == value if value else one > 0 for one in labels]
            if all(mask.any() for mask in masks):
                phi, psi = (signed_distance(m, spacing_mm, limit_vox=5.0) for m in masks)
                offsets.append(float((phi - psi)[np.abs(psi) < 1].mean()))
    return {value: float(np.mean(offsets)) if offsets else 0.0 for value, offsets in found.items()}


def shifted(archive: Archive, bias: Mapping[int, float]) -> Change:
    """Move every outline inwards by its class's bias; under 0, by that of all foreground."""

    def change(name: str, given: Label) -> Label:
        classes = [int(v) for v in np.unique(given) if v]
        shifts = {value: bias.get(value, bias.get(0, 0.0)) for value in classes}
        return shift_label(given, shifts, classes=classes, spacing_mm=archive.spacing_mm(name))

    return change
