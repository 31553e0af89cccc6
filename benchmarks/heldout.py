"""What cleaned labels are worth to a network that learns from them.

It is trained on the labels of one half of the patients and judged by the other half's true labels.
The half that trains is the one on which winners are chosen, so the patients that judge had no say
in the choice of lines; the voters that cleaned the other half's labels did learn from their images
and given labels. Every network is one plain network with the training of its data set.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from archives import open_archive, trusted_cases
from cells import LABEL, MEASURED, SCOREBOARD, TRUTH
from grid import METHODS, SCENARIOS
from running import Key, clean_here, config_of, label_of
from winners import chooses

from raysegclean.cluster.executor import open_executor
from raysegclean.cluster.predict import Predictor, VoteJob
from raysegclean.cluster.train_groups import train_group
from raysegclean.cluster.train_jobs import TrainJob
from raysegclean.evaluate.score import score_labels
from raysegclean.identity import digest
from raysegclean.methods.base import Voters
from raysegclean.nets.hooks import PLAIN_HOOK
from raysegclean.planning.plan import RunPlan
from raysegclean.runs.preflight import prepare
from raysegclean.store.archive import Archive
from raysegclean.store.index import build_index
from raysegclean.voxels.geometry import Box

__all__ = ["held_out", "held_out_path"]

FOLDER = SCOREBOARD / "heldout"
THREADS = 2
SIDES = (True, False)


def held_out_path(key: Key) -> Path:
    """Return where a held-out cell is kept."""
    return MEASURED / "heldout" / f"{key.name}.json.gz"


def held_out(key: Key, source: Path) -> dict[str, Any]:
    """Return the Dice of a network trained on `key.line`'s labels, on patients that it never saw.

    The line is one of the scoreboard, or "given" or "truth". Raises Unavailable.
    """
    archive = open_archive(source, key.data, SCENARIOS[key.scenario], key.seed)
    label = {"given": LABEL, "truth": TRUTH}.get(key.line, label_of(key))
    if key.line in METHODS:
        clean_here(key, archive)
    plan = _plan(key, archive)
    cases = set(archive.case_ids()) - trusted_cases(archive, SCENARIOS[key.scenario])
    halves = {side: sorted(c for c in cases if _chooses(archive, c) is side) for side in SIDES}
    network = _trained(archive, plan, label, halves[True])
    return key.told() | {"rows": _judged(archive, plan, network, halves[False])}


def _chooses(archive: Archive, case: str) -> bool:
    return chooses(archive.attributes(case).get("patient") or case)


def _plan(key: Key, archive: Archive) -> RunPlan:
    """Return the plan of the plain method on this archive, with one network for all cases."""
    config = config_of(replace(key, line="uncertainty"), archive)
    plan = prepare(config.with_settings({"models": None})).plan(config, gpu=False)
    train = replace(plan.train, peers=1, hook=PLAIN_HOOK, threads=THREADS)
    cases = tuple(replace(case, fold=0) for case in plan.cases)
    return replace(plan, train=train, voters=Voters(members=1), folds=1, cases=cases)


def _trained(archive: Archive, plan: RunPlan, label: str, cases: Sequence[str]) -> str:
    infos = tuple(build_index(archive, cases, require_label=label))
    versions = [(info.case, info.label(label).version) for info in infos]
    job = TrainJob(
        key=digest("held out", versions, plan.train, plan.network),
        run_uri=str(FOLDER / "networks"),
        archive_uri=plan.archive,
        label=label,
        cases=infos,
        folds=(tuple(info.case for info in infos),),
        network=plan.network,
        normaliser=plan.normaliser,
        classes=plan.classes,
        train=plan.train,
        patch_zyx=plan.patch_zyx,
        flips=plan.flips,
        cpus=THREADS,
    )
    ((network,),) = train_group(job, open_executor("ray"))
    return network


def _judged(
    archive: Archive, plan: RunPlan, network: str, cases: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the scores of the network's predictions."""
    folder = str(FOLDER / "networks")
    job = VoteJob(
        run=folder, models_run=folder, models=((network,),), plan=plan, keys={}, numerics=None
    )
    predictor, values = Predictor(job), np.asarray(plan.classes)
    rows = []
    for name in cases:
        case = plan.case(name)
        window = predictor.read(case, Box.whole(case.shape_zyx))
        prob_czyx, _ = predictor.means(case, window)
        predicted_zyx = values[prob_czyx.argmax(axis=0)].astype(case.dtype)
        truth_zyx = archive.label(name, TRUTH).read_all()
        patient = archive.attributes(name).get("patient")
        scores = score_labels(predicted_zyx, truth_zyx, case.spacing_mm, case=name, patient=patient)
        rows += [asdict(row) for row in scores]
    return rows
