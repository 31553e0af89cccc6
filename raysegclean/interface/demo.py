"""A whole run on embedded data: phantoms with known truth, corrupted, cleaned, scored, drawn.

The numbers that it prints are those of phantoms; they show that the road works, and say nothing
about patients.
"""

import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raysegclean.errors import RaysegcleanError
from raysegclean.evaluate.score import ScoreRow, score_archive
from raysegclean.interface.picture import Panel, draw_panels, most_changed_slice
from raysegclean.render import as_text
from raysegclean.simulate.noisy_archive import load_simulated, simulate
from raysegclean.simulate.phantom import PHANTOM_CLASSES, write_phantom_archive
from raysegclean.store.archive import Archive

__all__ = ["DemoReport", "prepare_archive", "run_demo"]

LABEL = "organs"
CASES = 20
SHAPE_ZYX = (24, 64, 64)
SPACING_MM = (3.0, 2.5, 2.5)
NOISE = "boundary"
PANELS = 6
JOB = Path(__file__).resolve().parents[2] / "jobs" / "clean.py"

CONFIG = """\
# What `raysegclean demo` runs; a template for your own is examples/clean.yaml.
archive: {archive}
label: organs
run: {run}
group: case          # every phantom is its own patient
method: coseg
network: {{preset: small}}
train: {{steps: 250, batch: 2}}
"""


@dataclass(frozen=True)
class DemoReport:
    """Dice of the label against the known truth, before and after cleaning."""

    rows: tuple[Mapping[str, object], ...]
    archive: str
    run: str
    picture: str
    exit_code: int

    def text(self) -> str:
        """Return the table and where everything is."""
        head = ("cases", "class", "n", "Dice before", "Dice after", "worst after")
        table = [dict(zip(head, row.values(), strict=True)) for row in self.rows]
        return "\n".join(
            [
                as_text(table),
                "",
                f"cleaned label  organs_clean in {self.archive}",
                f"reasons        organs_clean.reason, and {self.run}/changes.parquet",
                f"picture        {self.picture}",
            ]
        )


def prepare_archive(archive: str) -> None:
    """Write the phantoms and corrupt half of their labels; what is there is reused."""
    clean = f"{archive.rstrip('/')}_without_noise"
    write_phantom_archive(clean, CASES, shape_zyx=SHAPE_ZYX, spacing_mm=SPACING_MM, label=LABEL)
    simulate(
        Archive.open(clean), archive, LABEL, noise=NOISE, fraction=0.5, seed=1, params={"n_max": 2}
    )


def run_demo(folder: Path) -> DemoReport:
    """Prepare, clean, score and draw below `folder`; a second call reuses what the first made."""
    archive, run, config = folder / "archive", folder / "run", folder / "clean.yaml"
    prepare_archive(str(archive))
    config.write_text(CONFIG.format(archive=archive, run=run), encoding="utf-8")
    job = [str(JOB)] if JOB.exists() else ["-m", "raysegclean", "clean"]
    command = [sys.executable, *job, str(config)]
    ended = subprocess.run(command, check=False, stdout=sys.stderr)  # noqa: S603  (our own)
    if ended.returncode not in (0, 1):
        raise RaysegcleanError(f"the run ended with exit code {ended.returncode}; see above.")
    opened = Archive.open(archive)
    noisy = set(load_simulated(opened))
    cleaned = f"{LABEL}_clean"
    report = score_archive(opened, cleaned, f"{LABEL}_truth", given=LABEL)
    picture = folder / "contours.png"
    picture.write_bytes(draw_panels(list(_panels(opened, sorted(noisy)))))
    return DemoReport(
        rows=tuple(_table(report.rows, noisy)),
        archive=str(archive),
        run=str(run),
        picture=str(picture),
        exit_code=ended.returncode,
    )


def _table(rows: Iterable[ScoreRow], noisy: set[str]) -> Iterable[Mapping[str, object]]:
    known = [row for row in rows if row.change is not None]
    for kind, wanted in (("noisy", True), ("clean", False)):
        mine = [row for row in known if (row.case in noisy) is wanted]
        for value, name in PHANTOM_CLASSES.items():
            chosen = [row for row in mine if row.label_value == value]
            before = [row.change.dice_given for row in chosen if row.change]
            after = [row.dice for row in chosen]
            if chosen:
                yield {
                    "cases": kind,
                    "class": name,
                    "n": len(chosen),
                    "before": float(np.mean(before)),
                    "after": float(np.mean(after)),
                    "worst": min(after),
                }


def _panels(archive: Archive, cases: Iterable[str]) -> Iterable[Panel]:
    """Yield the most changed slice of the cases that changed most."""
    labels = {
        case: tuple(
            archive.label(case, name).read_all()
            for name in (LABEL, f"{LABEL}_clean", f"{LABEL}_truth")
        )
        for case in cases
    }
    ranked = sorted(labels, key=lambda case: -int((labels[case][0] != labels[case][1]).sum()))
    for case in ranked[:PANELS]:
        given, cleaned, truth = labels[case]
        z = most_changed_slice(given, cleaned)
        spacing = archive.spacing_mm(case)
        yield Panel(
            title=f"{case}, slice {z}",
            image_yx=archive.image(case).read_all()[z].astype(np.float32),
            labels_yx={"given": given[z], "cleaned": cleaned[z], "true": truth[z]},
            aspect=spacing[1] / spacing[2],
        )
