"""One cell of the scoreboard: from (data, scenario, line, seed) to scores.

Networks are trained once per family: the run of the family's first entry trains them, and the
others borrow them (`models:`), so lines of one family never train again. Training is timed apart.
Runs share one Ray, because starting one costs more than a small run.
"""

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from archives import EXPERT, MAJORITY, Unavailable, noisy_cases, open_archive, trusted_cases
from cells import (
    EVIDENCE,
    LABEL,
    MEASURED,
    SCOREBOARD,
    TRUTH,
    Change,
    argmax,
    changed_rows,
    mean_bias,
    shifted,
    write_cell,
)
from grid import (
    BASELINES,
    DATA,
    METHODS,
    NO_NETWORK,
    PHANTOM,
    REVISION,
    SCENARIOS,
    Entry,
    owner,
)

from raysegclean.cluster.connection import connect
from raysegclean.cluster.executor import open_executor
from raysegclean.config.settings import Config, make_config
from raysegclean.errors import ConfigError
from raysegclean.evaluate.score import ScoreRow, score_archive
from raysegclean.events import Events, Lines
from raysegclean.evidence.case_scores import Kind
from raysegclean.identity import digest
from raysegclean.methods.base import load_method, make_params
from raysegclean.qc.check import check
from raysegclean.runs.begin import begin
from raysegclean.runs.pipeline import clean
from raysegclean.runs.preflight import prepare
from raysegclean.runs.train import train
from raysegclean.store.archive import Archive
from raysegclean.store.lock import RunLock
from raysegclean.store.run import RunFolder

__all__ = [
    "Key",
    "clean_here",
    "config_of",
    "keep_evidence",
    "label_of",
    "measure",
    "suspicions",
    "write_evidence",
]

log = logging.getLogger("benchmark")


@dataclass(frozen=True)
class Key:
    """Which cell."""

    data: str
    scenario: str
    line: str
    seed: int

    @property
    def path(self) -> Path:
        """Where the cell is kept."""
        return MEASURED / "cells" / f"{self.name}.json.gz"

    @property
    def name(self) -> str:
        """A file name that no other cell has."""
        return f"{self.data}.{self.scenario}.{self.line.replace(' ', '_')}.s{self.seed}"

    @property
    def evidence_path(self) -> Path:
        """Where the scores are kept that its policy read."""
        return EVIDENCE / f"{self.name}.parquet"

    def told(self) -> dict[str, Any]:
        """Return the key as a cell says it, and what it was measured with."""
        return asdict(self) | {"measured_with": self.measured_with}

    @property
    def measured_with(self) -> str:
        """A digest of the settings, and of the revision of the package, that figures depend on.

        Lines that are no method's own (given, truth) have the settings of the data alone.
        """
        entry = METHODS.get(self.line)
        return digest(REVISION, DATA[self.data], PHANTOM, SCENARIOS[self.scenario], entry)


def measure(key: Key, source: Path) -> dict[str, Any]:
    """Return the scores of one cell. Raises Unavailable where it cannot be run here."""
    archive = open_archive(source, key.data, SCENARIOS[key.scenario], key.seed)
    scenario = SCENARIOS[key.scenario]
    counted = sorted(set(archive.case_ids()) - trusted_cases(archive, scenario))
    started = time.monotonic()
    if key.line in BASELINES:
        found: dict[str, Any] = {"rows": changed_rows(archive, _baseline(key, archive), counted)}
        found["wall_s"] = time.monotonic() - started
    else:
        found = _cleaned(key, archive, counted)
    return key.told() | {"noisy": noisy_cases(archive, scenario, counted)} | found


def _baseline(key: Key, archive: Archive) -> Change:
    if key.line == "argmax":
        clean_here(replace(key, line="uncertainty"), archive)
        return argmax(RunFolder(str(_run(key, "uncertainty"))))
    if key.line == "label shift":
        trusted = trusted_cases(archive, SCENARIOS[key.scenario])
        classes = sorted({int(v) for c in trusted for v in _values(archive, c)} - {0})
        return shifted(archive, mean_bias(archive, sorted(trusted), EXPERT, classes))
    if key.line == "majority":
        return lambda case, _: archive.label(case, MAJORITY).read_all()
    return lambda _, given: given


def _values(archive: Archive, case: str) -> Sequence[int]:
    return sorted({int(value) for value in archive.label(case, EXPERT).read_all().ravel()})


def _cleaned(key: Key, archive: Archive, counted: Sequence[str]) -> dict[str, Any]:
    """Train what is missing, clean, and score; keep what the policy read."""
    for line in METHODS[key.line].votes:
        clean_here(replace(key, line=line), archive)
    config = config_of(key, archive)
    train_s = None
    if METHODS[key.line].family != NO_NETWORK:
        train_s = _trained(key, archive)
    connect()
    started = time.monotonic()
    report = clean(config)
    wall_s = time.monotonic() - started
    scores = score_archive(archive, label_of(key), TRUTH, given=LABEL, cases=counted)
    keep_evidence(key, config, archive, counted, scores.rows)
    return {
        "rows": [asdict(row) for row in scores.rows],
        "wall_s": wall_s,
        "train_s": train_s,
        "failed_cases": len(report.failed),
        "ranks": _ranks(config, counted),
    }


def keep_evidence(
    key: Key, config: Config, archive: Archive, counted: Sequence[str], scored: Sequence[ScoreRow]
) -> None:
    """Keep what the policy read, beside how wrong each given label is and what became of it."""
    rows = RunFolder(config.run).read_table("evidence.parquet")
    known = {(row.case, row.label_value): row for row in scored}
    noisy = set(noisy_cases(archive, SCENARIOS[key.scenario], counted))
    for row in rows:
        mine = known.get((row["case"], row["class"]))
        change = mine.change if mine else None
        row |= {
            "counted": row["case"] in counted,
            "noisy": row["case"] in noisy,
            "dice_given": change.dice_given if change else None,
            "dice_after": mine.dice if mine else None,
        }
    EVIDENCE.mkdir(parents=True, exist_ok=True)
    draft = key.evidence_path.with_suffix(".part")
    write_evidence(pa.Table.from_pylist(rows), draft)
    draft.replace(key.evidence_path)


def write_evidence(table: pa.Table, path: Path) -> None:
    """Write the table as small as it gets: counts are mostly zeros in their upper bytes."""
    split = {f"{kind}.list.element": "BYTE_STREAM_SPLIT" for kind in Kind}
    pq.write_table(
        table,
        path,
        compression="zstd",
        compression_level=22,
        use_dictionary=["label", "case", "fold", "class"],
        column_encoding=split,
    )


def _ranks(config: Config, cases: Sequence[str]) -> dict[str, float]:
    """Return how suspicious each case is; the checks rank all cases themselves."""
    if config.method == "integrity":
        worst_first = check(config.archive, config.label).worst_first
        return {case: -float(place) for place, case in enumerate(worst_first) if case in cases}
    return suspicions(RunFolder(config.run).read_table("cases.parquet"), cases)


def config_of(key: Key, archive: Archive) -> Config:
    """Return the config of a method's run. Raises Unavailable where the method is not there."""
    entry, scenario = METHODS[key.line], SCENARIOS[key.scenario]
    settings = DATA[key.data]
    cores = len(os.sched_getaffinity(0))
    values = {
        "archive": archive.store.uri,
        "label": LABEL,
        "run": str(_run(key, key.line)),
        "method": entry.method,
        "params": _params(key, entry),
        "network": dict(settings.network),
        "train": {**settings.train, "seed": key.seed},
        "trusted": {"label": EXPERT} if scenario.trusted else None,
        "models": _lender(key, entry),
        "output": {"label": label_of(key)},
        # Not auto: `clean` cannot see that the Ray it finds has two slots per core.
        "resources": {
            "train": {"workers": 1, "cpus": 1, "gpus": 0},
            "relabel": {"actors": cores, "cpus": 1, "gpus": 0},
        },
    }
    try:
        config = make_config(json.loads(json.dumps(values)))
        method = load_method(entry.method)
        if method.wants_trusted(make_params(method, config.params)) and not scenario.trusted:
            raise Unavailable("it needs trusted cases")
    except ConfigError as error:
        raise Unavailable(str(error)) from error
    return config


def _params(key: Key, entry: Entry) -> Mapping[str, Any]:
    """Return the params of a line: without retraining, which would not change the labels."""
    params = dict(entry.params)
    try:
        known = {item.name for item in fields(load_method(entry.method).params)}
    except ConfigError as error:
        raise Unavailable(str(error)) from error
    if "retrain" in known:
        params["retrain"] = False
    if entry.knows_share:
        params["alpha"] = round(1 - SCENARIOS[key.scenario].share, 6)
    if entry.votes:
        voting = [replace(key, line=line) for line in entry.votes]
        params["labels"] = " ".join(label_of(one) for one in voting)
    return params


def clean_here(key: Key, archive: Archive) -> None:
    """Clean with a line whose figures are known, but whose run is not on this machine."""
    if RunFolder(str(_run(key, key.line))).state().get("status") == "complete":
        return
    config = config_of(key, archive)
    if METHODS[key.line].family != NO_NETWORK:
        _trained(key, archive)
    connect()
    clean(config)


def label_of(key: Key) -> str:
    """Return the name of the label that a cell writes."""
    return f"clean-{key.scenario}-{key.line}"


def _run(key: Key, line: str) -> Path:
    place = f"{SCENARIOS[key.scenario].place}-s{key.seed}"
    return SCOREBOARD / key.data / place / f"run-{key.scenario}-{line}"


def _training_key(key: Key) -> Key:
    """Return the cell whose run trains the networks of this one.

    Only networks that learn from trusted cases know of them: scenarios of one archive share all
    others.
    """
    line = owner(METHODS[key.line].family)
    scenario = key.scenario if METHODS[line].needs_trusted else SCENARIOS[key.scenario].place
    return Key(key.data, scenario, line, key.seed)


def _lender(key: Key, entry: Entry) -> str | None:
    if entry.family == NO_NETWORK or _training_key(key) == key:
        return None
    trains = _training_key(key)
    return str(_run(trains, trains.line))


def _trained(key: Key, archive: Archive) -> float:
    """Train the networks of the cell's family, unless they are; return the seconds it took."""
    trains = _training_key(key)
    note = SCOREBOARD / "voters" / f"{trains.name}.json"
    if not note.exists():
        config = config_of(trains, archive)
        connect()
        started = time.monotonic()
        _train_voters(config)
        write_cell(note, {"train_s": time.monotonic() - started})
    return float(json.loads(note.read_text())["train_s"])


def _train_voters(config: Config) -> None:
    """Do the first part of `clean`; a later `clean` with this config finds the networks."""
    run = RunFolder(config.run)
    prepared = prepare(config)
    lock = RunLock(run.store, job="benchmark")
    epoch = lock.acquire()
    try:
        job = (epoch, lock.check, Events(Lines()))
        session = begin(config, run, prepared, open_executor("ray"), job)
        train(session, prepared.infos)
    finally:
        lock.release()


def suspicions(rows: Sequence[Mapping[str, Any]], cases: Sequence[str]) -> dict[str, float]:
    """Return how suspicious each case is to its run, from the run's table of cases and classes.

    That is the run's own `suspicion` where it tells one, else 1 for a class that is changed or
    sent to a person, plus the posterior of its noisy group; the largest over the classes.
    """
    found = dict.fromkeys(cases, 0.0)
    for row in rows:
        if row["case"] in found:
            acts = row["action"] not in ("keep", "not judged")
            value = row.get("suspicion")
            own = float(acts) + (row["posterior"] or 0.0) if value is None else float(value)
            found[row["case"]] = max(found[row["case"]], own)
    return found
