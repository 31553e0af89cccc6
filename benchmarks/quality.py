"""What cleaning brings and what it costs on real data: writes docs/results.md.

`python benchmarks/quality.py [--data hippocampus|lung] [--noise NAME] [--method NAME]` runs the
cells that are missing (a cell is data x noise x method, kept under benchmarks/measured/quality) and
rewrites the page.
Voters are shared: the dropout cell reuses a network of the ensemble cell. Baselines cost nothing.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cells import (
    BENCH,
    LABEL,
    MEASURED,
    NIFTI,
    ROOT,
    TRUTH,
    Change,
    argmax,
    changed_rows,
    default_source,
    ingest,
    mean_bias,
    read_cells,
    shifted,
    write_cell,
)
from grid import TRAIN
from results import write_page

from raysegclean.evaluate.score import score_archive
from raysegclean.simulate.noisy_archive import load_simulated, simulate
from raysegclean.store.archive import Archive
from raysegclean.store.run import RunFolder

__all__ = ["main"]

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
    parser.add_argument("--data", choices=NIFTI, action="append")
    parser.add_argument("--noise", choices=NOISES, action="append")
    parser.add_argument("--method", choices=METHODS, action="append")
    parser.add_argument("--source", type=Path, default=default_source())
    parser.add_argument("--page-only", action="store_true", help="only write docs/results.md")
    options = parser.parse_args(argv)
    for data in () if options.page_only else options.data or NIFTI:
        for noise in options.noise or NOISES:
            archive = _archive(options.source, data, noise)
            for method in (*(options.method or METHODS), *BASELINES):
                _once(archive, data, noise, method)
    write_page(read_cells(MEASURED / "quality"), ROOT / "docs" / "results.md")
    return 0


def _cell_path(data: str, noise: str, method: str) -> Path:
    return MEASURED / "quality" / f"{data}-{noise}-{method.replace(' ', '_')}.json.gz"


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
    write_cell(path, cell)


def _archive(source: Path, data: str, noise: str) -> Archive:
    """Ingest the data once, and corrupt a copy for this noise."""
    clean, copy = ingest(source, data, BENCH / data / "clean"), BENCH / data / noise
    name, fraction, params = NOISES[noise]
    simulate(clean, str(copy), LABEL, noise=name, fraction=fraction, seed=1, params=params)
    return Archive.open(copy)


def _run_uri(data: str, noise: str, method: str) -> Path:
    return BENCH / data / f"run-{noise}-{method}"


def _clean_cell(archive: Archive, data: str, noise: str, method: str) -> dict[str, Any]:
    run = _run_uri(data, noise, method)
    config = {
        "archive": archive.store.uri,
        "label": LABEL,
        "run": str(run),
        "train": TRAIN[data],
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
    rows = [asdict(row) for row in report.rows]
    return _cell(archive, rows) | {"wall_s": wall_s, "command": " ".join(command)}


def _first_time_s(data: str, noise: str, method: str, wall_s: float) -> float:
    """Keep the time of the run that trained: a cell that is scored again only settles again."""
    path = BENCH / "times" / f"{data}-{noise}-{method}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(wall_s))
    return float(json.loads(path.read_text()))


def _baseline_cell(archive: Archive, data: str, noise: str, name: str) -> dict[str, Any]:
    """Score a rule that needs nothing but what the ensemble cell left behind."""
    change = _change(archive, RunFolder(str(_run_uri(data, noise, "ensemble"))), name)
    rows = changed_rows(archive, change)
    return _cell(archive, rows) | {"command": f"benchmarks/quality.py: {name}"}


def _change(archive: Archive, run: RunFolder, name: str) -> Change:
    if name == "argmax":
        return argmax(run)
    if name == "mean shift":  # an oracle: measured on the truth of all cases
        return shifted(archive, mean_bias(archive, archive.case_ids(), TRUTH))
    return lambda _, given: given


def _cell(archive: Archive, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"noisy": sorted(load_simulated(archive)), "rows": rows}


if __name__ == "__main__":
    sys.exit(main())
