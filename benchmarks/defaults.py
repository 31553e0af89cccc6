"""What a user gets who sets nothing: archives with many kinds of errors, cleaned by defaults.

`python benchmarks/defaults.py hippocampus [--cases N] [--method NAME] [--seed N]`, or `ct`, makes
the archive with the public verbs (`ingest` or `warp`, `simulate --mix`), cleans it with a config
that names nothing but paths and the method, and keeps what became of each case, and what the policy
read, under benchmarks/measured/defaults. docs/results.md is written from what is there. `type1` has
one 2D slice of each warped CT, and Co-Seg's noise; `published` is Co-Seg's rule, which is told the
noise level, on the networks of the line before it.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from by_kind import case_rows, figures
from cells import BENCH, MEASURED, NIFTI, ROOT, default_source, read_cell, read_cells, write_cell
from cpu import CpuMeter
from ranking import ranking, scored
from results import write_section
from slices import write_slices

import raysegclean
from raysegclean.errors import RaysegcleanError
from raysegclean.store.archive import Archive
from raysegclean.store.each import CasesReport
from raysegclean.store.parquet import from_parquet
from raysegclean.store.run import RunFolder

__all__ = ["main"]

LABEL = "organs"
SCENARIOS = ROOT / "benchmarks" / "scenarios"
CT = "multiorgan_ct"
CASES = {"hippocampus": 200, "ct": 40, "type1": 120}
METHODS = ("uncertainty", "coseg")
PUBLISHED = "published"
LEVELS = (0.2, 0.4, 0.1, 0.3, 0.5)
"""Noise levels of `type1`: the share of wrong cases."""
LIVER = 5
KEPT = MEASURED / "defaults"
INTRODUCTION = """\
Written by `make bench-hippocampus`, `make bench-ct` and `make bench-type1`. Archives with many
kinds of errors, cleaned with a config that names nothing but the archive, the label, the run folder
and the method. A case's Dice is the mean over the classes that the truth or its label has; E is
over all wrong cases together: 1 - (sum of 1 - Dice after) / (sum of 1 - Dice given). Gross errors
are `drop`, `cut`, `leak`, `shift`, `mirror`, `swap`, `merge` and `another_case`, whatever a mixture
calls them; they are repaired where the classes that they left below Dice .85 have .85 again, in the
mean. Clean cases: Dice to their own given label. The cases of `ct` are warped from one CT, whose
labels are a model's; those of `type1` are one slice of 256 x 256 pixels of the liver each, outlines
off by 1 to 8 pixels, l20 to say in 20 % of the cases (Type I of Co-Seg). `published` is the rule of
Co-Seg, which is told that share, on the networks of `coseg`; nothing else is told it.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is missing, then write the section from all that is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", choices=CASES)
    parser.add_argument("--cases", type=int)
    parser.add_argument("--classes", choices=("groups", "all"), default="groups", help="of ct")
    parser.add_argument("--level", type=float, choices=LEVELS, action="append", help="of type1")
    parser.add_argument("--method", choices=(*METHODS, PUBLISHED), action="append")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--source", type=Path, default=default_source())
    parser.add_argument("--again", action="store_true", help="measure what is kept once more")
    options = parser.parse_args(argv)
    options.cases = options.cases or CASES[options.data]
    type1 = options.data == "type1"
    levels = (options.level or LEVELS) if type1 else (0.0,)
    methods = options.method or ((*METHODS, PUBLISHED) if type1 else METHODS)
    for options.level, method in product(levels, methods):
        name = f"{_name(options)}.{method}"
        path = KEPT / f"{name}.json.gz"
        if options.again or not path.exists():
            print(name, file=sys.stderr, flush=True)
            write_cell(path, _measured(options, method))
            read = _place(options) / f"run-{method}" / "evidence.parquet"
            shutil.copy(read, KEPT / f"{name}.evidence.parquet")
        print(json.dumps(figures(read_cell(path)["rows"]), indent=1))
    write_section(ROOT / "docs" / "results.md", [INTRODUCTION, *_lines(read_cells(KEPT))])
    return 0


def _name(options: argparse.Namespace) -> str:
    classes = ".all" if options.data == "ct" and options.classes == "all" else ""
    level = f".l{100 * options.level:.0f}" if options.level else ""
    return f"{options.data}{classes}.{options.cases}{level}.s{options.seed}"


def _place(options: argparse.Namespace) -> Path:
    return BENCH / "defaults" / _name(options)


def _measured(options: argparse.Namespace, method: str) -> dict[str, Any]:
    """Make the archive, clean it with nothing set, and return all that was seen.

    A run that was cut short is gone on with; the CPU time is that of the last part then.
    """
    place = _place(options)
    archive = _noisy_archive(options, place)
    cleaned, run = f"{LABEL}_{method}", place / f"run-{method}"
    if options.again:
        shutil.rmtree(run, ignore_errors=True)
        for case in archive.case_ids():
            archive.delete_label(case, cleaned)
            archive.delete_label(case, f"{cleaned}.reason")
    resumed = run.exists()
    values = {"archive": archive.store.uri, "label": LABEL, "run": str(run)}
    values |= _told(options, place, method)
    config = place / f"{method}.yaml"
    config.write_text(yaml.safe_dump({**values, "output": {"label": cleaned}}))
    words = ["-m", "raysegclean", "clean", str(config), "--json"]
    meter, started = CpuMeter(), time.time()
    with (
        subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE) as process,
        meter.watching(process.pid),
    ):
        said = process.communicate()[0]
    if process.returncode not in (0, 1):
        raise RaysegcleanError(f"{config}: exit code {process.returncode}; see above, or --again.")
    told = json.loads(said)
    folder = RunFolder(str(run))
    table = folder.read_table("cases.parquet")
    return {
        "data": options.data,
        "name": _name(options),
        "method": method,
        "rows": case_rows(archive, LABEL, cleaned, table),
        "classes": _classes(table),
        "notes": told.get("notes", []),
        "agreement": [
            {name: row[name] for name in ("part", "done", "agreement")}
            for row in _metrics(run)
            if row["kind"] == "agreement"
        ],
        "resumed": resumed,
        "wall_s": time.time() - started,
        "cpu_minutes": meter.minutes(),
        "training_cpu_minutes": meter.minutes(*_training(run)),
        "peak_rss_bytes": meter.peak_rss_bytes,
        "command": _command(options, method),
    }


def _told(options: argparse.Namespace, place: Path, method: str) -> dict[str, Any]:
    """Return what the config says of the method; more than its name where it is as published."""
    if method != PUBLISHED:
        return {"method": method}
    known = {"alpha": round(1 - options.level, 2), "retrain": False}
    return {"method": "coseg", "params": known, "models": str(place / "run-coseg")}


def _command(options: argparse.Namespace, method: str) -> str:
    more = " --classes all" if options.data == "ct" and options.classes == "all" else ""
    more += f" --level {options.level}" if options.level else ""
    args = f"--cases {options.cases}{more} --method {method} --seed {options.seed}"
    return f'make bench-{options.data} ARGS="{args}"'


def _classes(table: Sequence[Mapping[str, Any]]) -> dict[str, bool]:
    """Return, per class, whether the networks have learnt it: no case says that they have not."""
    found: dict[str, bool] = {}
    for row in table:
        name = str(row["class"])
        found[name] = found.get(name, True) and "not learnt this class" not in row["why"]
    return found


def _training(run: Path) -> tuple[float, float]:
    """Return when the training began and ended, in seconds since 1970."""
    times = [row["time"] for row in _metrics(run) if row["stage"] == "train"]
    return (min(times), max(times)) if times else (0.0, 0.0)


def _metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _noisy_archive(options: argparse.Namespace, place: Path) -> Archive:
    """Make the archive with wrong labels by the public verbs; what is there is reused."""
    clean, noisy = str(place / "clean"), str(place / "noisy")
    noise: dict[str, Any] = {"mix": SCENARIOS / f"ct_{options.classes}_mix.yaml"}
    if options.data == "ct":
        _warp(options, clean)
    elif options.data == "type1":
        clean = _slices(options)
        noise = {"noise": "boundary", "fraction": options.level}
    else:
        folder, patient_regex = NIFTI[options.data]
        images, labels = (_some(options, folder, kind, place) for kind in ("images", "labels"))
        _done(raysegclean.ingest(images, labels, clean, LABEL, patient_regex=patient_regex))
        noise = {"mix": ROOT / "examples" / "mix.yaml"}
    _done(raysegclean.simulate_noise(clean, noisy, LABEL, seed=options.seed, **noise))
    return Archive.open(noisy)


def _warp(options: argparse.Namespace, target: str) -> None:
    source, whole = options.source / CT, options.classes == "all"
    made = raysegclean.warp(
        str(source / "example_ct.nii.gz"),
        str(source / "example_seg.nii.gz"),
        target,
        LABEL,
        cases=options.cases,
        seed=options.seed,
        groups=None if whole else SCENARIOS / "ct_groups.yaml",
        more_labels={"fast": str(source / "example_seg_fast.nii.gz")},
    )
    _done(made)


def _slices(options: argparse.Namespace) -> str:
    """Make one slice of each warped CT, the same for all noise levels, and return their archive."""
    place = BENCH / "defaults" / f"{options.data}.{options.cases}.s{options.seed}"
    _warp(options, str(place / "volumes"))
    clean = Archive.open(place / "clean")
    write_slices(Archive.open(place / "volumes"), clean, LABEL, LIVER, options.seed)
    return clean.store.uri


def _done(report: CasesReport) -> None:
    if report.failed:
        raise report.failed[0]


def _some(options: argparse.Namespace, folder: str, kind: str, place: Path) -> str:
    """Link so many files of the data set, evenly from all of them, and return their folder."""
    files = sorted((options.source / folder / kind).glob("*.nii.gz"))
    target = place / kind
    target.mkdir(parents=True, exist_ok=True)
    for number in range(options.cases):
        file = files[number * len(files) // options.cases]
        link = target / file.name
        if not link.is_symlink():
            link.symlink_to(file.resolve())
    return str(target)


def _lines(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lay out all that is kept as Markdown."""
    lines: list[str] = []
    for cell in sorted(cells, key=lambda one: (one["data"], one["name"], one["method"])):
        found = figures(cell["rows"])
        lines += [
            f"### {cell['name']}, {cell['method']}",
            "",
            f"`{cell['command']}`",
            "",
            *_summary(cell, found),
            "",
            "| kind | cases | Dice given | after | worst after | E | worse | in review |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for kind, one in found["kinds"].items():
            lines.append(
                f"| {kind} | {one['cases']} | {one['given']:.3f} | {one['after']:.3f} | "
                f"{one['worst_after']:.3f} | {one['error_removed']:.2f} | {one['worse']} | "
                f"{one['in_review']} |"
            )
        lines.append("")
    return lines


def _summary(cell: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    learnt, silent = sum(cell["classes"].values()), len(found["gross_kept_silently"])
    error, wrong, cases = found["error_removed"], found["wrong"], len(cell["rows"])
    mean, worst, clean = found["clean_mean"], found["clean_worst"], found["clean"]
    training, cpu = cell["training_cpu_minutes"], cell["cpu_minutes"]
    told, since = found["clean_in_review"], ", since it was resumed" if cell["resumed"] else ""
    return [
        f"- E {error:.2f} over {wrong} wrong cases of {cases}",
        f"- gross errors neither repaired nor in review: {silent} of {found['gross']}",
        f"- clean cases: mean {mean:.4f}, worst {worst:.3f}, {told} of {clean} in review",
        f"- learnt {learnt} of {len(cell['classes'])} classes",
        *_ranked(cell),
        f"- {training:.0f} CPU minutes of training, {cpu:.0f} in all{since}",
    ]


def _ranked(cell: Mapping[str, Any]) -> list[str]:
    """Say how well the quality score ranks the cases, where the default policy decided."""
    evidence = KEPT / f"{cell['name']}.{cell['method']}.evidence.parquet"
    if cell["method"] == PUBLISHED or not evidence.exists():
        return []
    found = ranking(cell["rows"], scored(from_parquet(evidence.read_bytes()).to_pylist()))
    score, most, gross = found["spearman"], found["ceiling"], found["gross_auc"]
    told = f"rank correlation with true Dice {score:.2f} (true order {most:.2f})"
    return [f"- quality score: {told}, gross errors against right labels AUC {gross:.2f}"]


if __name__ == "__main__":
    sys.exit(main())
