"""What cleaning brings and what it costs on real data: writes docs/results.md.

`python benchmarks/quality.py [--data hippocampus|lung] [--noise NAME] [--method NAME]` runs the
cells that are missing (a cell is data x noise x method, kept under bench/) and rewrites the page.
Voters are shared: the dropout cell reuses a network of the ensemble cell. Baselines cost nothing.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from results import write_page

from raysegclean.core.boundary import shift_label, signed_distance
from raysegclean.core.geometry import Box
from raysegclean.dist.proposals import ProposalFolder
from raysegclean.plan import RunPlan
from raysegclean.store.archive import Archive
from raysegclean.store.ingest import ingest_nifti
from raysegclean.store.run import RunFolder
from raysegclean.store.score import ScoreRow, score_archive, score_labels
from raysegclean.store.simulate import load_simulated, simulate

__all__ = ["main"]

ROOT = Path(__file__).resolve().parents[1]
BENCH = ROOT / "bench"
LABEL, TRUTH = "given", "given_truth"
Label = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Data:
    """One data set and how its networks are trained."""

    folder: str
    patient_regex: str
    train: Mapping[str, Any]


DATA = {
    "hippocampus": Data(
        "hippocampus_mr",
        r"(hippocampus_\d+)",
        {"steps": 350, "batch": 2, "patch_zyx": [24, 32, 24]},
    ),
    "lung": Data(
        "lung_nodules_ct", r"(LIDC-IDRI-\d+)", {"steps": 400, "batch": 4, "patch_zyx": [8, 40, 40]}
    ),
}
NOISES: Mapping[str, tuple[str, float, Mapping[str, Any]]] = {
    "boundary": ("boundary", 0.5, {"n_max": 1}),
    "polygon": ("polygon", 0.5, {"vertices": 5}),
    "none": ("boundary", 0.0, {"n_max": 1}),
}
METHODS: Mapping[str, Mapping[str, Any]] = {
    "coseg": {"method": "coseg", "params": {"retrain": False}},
    "ensemble": {"method": "uncertainty", "params": {"voters": "ensemble", "members": 2}},
    "dropout": {
        "method": "uncertainty",
        "params": {"voters": "dropout", "members": 1, "passes": 8},
    },
}
BASELINES = ("nothing", "argmax", "mean shift")


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing of the chosen cells, then write the page from all cells there are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=DATA, action="append")
    parser.add_argument("--noise", choices=NOISES, action="append")
    parser.add_argument("--method", choices=METHODS, action="append")
    parser.add_argument("--source", type=Path, default=_default_source())
    parser.add_argument("--page-only", action="store_true", help="only write docs/results.md")
    options = parser.parse_args(argv)
    for data in () if options.page_only else options.data or DATA:
        for noise in options.noise or NOISES:
            archive = _archive(options.source, data, noise)
            for method in (*(options.method or METHODS), *BASELINES):
                _once(archive, data, noise, method)
    write_page(_cells(), ROOT / "docs" / "results.md")
    return 0


def _default_source() -> Path:
    return Path(os.environ.get("RAYSEGCLEAN_DATA", ROOT.parent / "shared" / "data"))


def _cell_path(data: str, noise: str, method: str) -> Path:
    return BENCH / "cells" / f"{data}-{noise}-{method.replace(' ', '_')}.json"


def _once(archive: Archive, data: str, noise: str, method: str) -> None:
    path = _cell_path(data, noise, method)
    if path.exists():
        return
    print(f"{data}, {noise}, {method}", file=sys.stderr, flush=True)
    started = time.monotonic()
    run = _baseline_cell if method in BASELINES else _clean_cell
    try:
        cell = run(archive, data, noise, method)
    except FileNotFoundError as error:
        print(f"  skipped: {error}", file=sys.stderr)
        return
    cell |= {"data": data, "noise": noise, "method": method}
    cell.setdefault("wall_s", time.monotonic() - started)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(cell))


def _archive(source: Path, data: str, noise: str) -> Archive:
    """Ingest the data once, and corrupt a copy for this noise."""
    folder = source / DATA[data].folder
    clean, copy = BENCH / data / "clean", BENCH / data / noise
    ingest_nifti(
        folder / "images",
        folder / "labels",
        str(clean),
        LABEL,
        patient_regex=DATA[data].patient_regex,
    )
    name, fraction, params = NOISES[noise]
    simulate(
        Archive.open(clean), str(copy), LABEL, noise=name, fraction=fraction, seed=1, params=params
    )
    return Archive.open(copy)


def _run_uri(data: str, noise: str, method: str) -> Path:
    return BENCH / data / f"run-{noise}-{method}"


def _clean_cell(archive: Archive, data: str, noise: str, method: str) -> dict[str, Any]:
    run = _run_uri(data, noise, method)
    config = {
        "archive": archive.store.uri,
        "label": LABEL,
        "run": str(run),
        "train": DATA[data].train,
        "output": {"label": f"clean_{method}"},
        **METHODS[method],
    }
    if method == "dropout":
        config["models"] = str(_run_uri(data, noise, "ensemble"))
    path = run.with_suffix(".yaml")
    path.write_text(json.dumps(config, indent=1))
    command = ["python", "jobs/clean.py", str(path.relative_to(ROOT))]
    started = time.monotonic()
    subprocess.run([sys.executable, *command[1:]], cwd=ROOT, check=True, stdout=sys.stderr)
    wall_s = _first_time_s(data, noise, method, time.monotonic() - started)
    report = score_archive(archive, f"clean_{method}", TRUTH, given=LABEL)
    return _cell(archive, report.rows) | {"wall_s": wall_s, "command": " ".join(command)}


def _first_time_s(data: str, noise: str, method: str, wall_s: float) -> float:
    """Keep the time of the run that trained: a cell that is scored again only settles again."""
    path = BENCH / "times" / _cell_path(data, noise, method).name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(wall_s))
    return float(json.loads(path.read_text()))


def _baseline_cell(archive: Archive, data: str, noise: str, name: str) -> dict[str, Any]:
    """Score a rule that needs nothing but what the ensemble cell left behind."""
    change = _change(archive, RunFolder(str(_run_uri(data, noise, "ensemble"))), name)
    rows: list[ScoreRow] = []
    for case in archive.case_ids():
        given, truth = (archive.label(case, label).read_all() for label in (LABEL, TRUTH))
        rows += score_labels(
            change(case, given),
            truth,
            archive.spacing_mm(case),
            case=case,
            patient=archive.attributes(case).get("patient"),
            given_zyx=given,
        )
    return _cell(archive, rows) | {"command": f"benchmarks/quality.py: {name}"}


Change = Callable[[str, Label], Label]


def _change(archive: Archive, run: RunFolder, name: str) -> Change:
    if name == "argmax":
        return _argmax(run)
    if name == "mean shift":
        return _mean_shift(archive)
    return lambda _, given: given


def _argmax(run: RunFolder) -> Change:
    """Replace every label by the out-of-fold prediction."""
    frozen = run.resolved()
    if frozen is None:
        raise FileNotFoundError(f"{run.uri}: the argmax baseline needs the ensemble cell")
    plan = RunPlan.from_json(frozen["plan"])
    keys = {record["case"]: record["key"] for record in run.ledger("propose").records()}
    values = np.asarray(plan.classes)

    def change(name: str, given: Label) -> Label:
        case = plan.case(name)
        proposal = ProposalFolder.of(run.store, plan, case, keys[name]).read(
            Box.whole(case.shape_zyx)
        )
        channels = np.searchsorted(values, given).astype(np.uint8)
        return values[proposal.predicted_zyx(channels)].astype(given.dtype)

    return change


def _mean_shift(archive: Archive) -> Change:
    """Shift every label by the mean bias of all labels, measured on the truth (an oracle)."""
    offsets = []
    for case in archive.case_ids():
        given, truth = (archive.label(case, n).read_all() > 0 for n in (LABEL, TRUTH))
        phi, psi = (
            signed_distance(m, archive.spacing_mm(case), limit_vox=5.0) for m in (given, truth)
        )
        band = np.abs(psi) < 1
        offsets.append(float((phi - psi)[band].mean()))
    bias = float(np.mean(offsets))

    def change(name: str, given: Label) -> Label:
        classes = [int(v) for v in np.unique(given) if v]
        shifts = dict.fromkeys(classes, bias)
        return shift_label(given, shifts, classes=classes, spacing_mm=archive.spacing_mm(name))

    return change


def _cell(archive: Archive, rows: Sequence[ScoreRow]) -> dict[str, Any]:
    return {"noisy": sorted(load_simulated(archive)), "rows": [asdict(row) for row in rows]}


def _cells() -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((BENCH / "cells").glob("*.json"))]


if __name__ == "__main__":
    sys.exit(main())
