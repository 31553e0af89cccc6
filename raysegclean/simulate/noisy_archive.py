"""A copy of an archive whose label is wrong in known ways, to measure a cleaning against.

A case has one of the noises of `simulate.noise`, or a label that was made for something else:
`another_label` of the same case, as another model's, or that of `another_case`. The label keeps its
name in the copy, so the same configuration cleans the real archive and the simulated one; the
original stays beside it as `<label>_truth`. Which cases are corrupted, and each corruption, depend
on the seed and the case's id alone, but for `another_case`. Running the same simulation again
reuses what is there and reads no voxel; another one into the same place, or one of an image or
label that was written since, is refused. The source is only read.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raysegclean.errors import CaseError, ConfigError, MissingObject
from raysegclean.evaluate.metrics import dice
from raysegclean.simulate.mixture import ErrorKind, share_out
from raysegclean.simulate.noise import case_rng, corrupt
from raysegclean.store.archive import Archive, write_case
from raysegclean.store.each import CasesReport, for_each_case
from raysegclean.store.fit import as_label
from raysegclean.store.index import load_index, source_versions
from raysegclean.voxels.boxes import IntLabel
from raysegclean.voxels.surface import Spacing

__all__ = ["SIMULATED", "SimulateReport", "load_simulated", "simulate", "truth_name"]

SIMULATED = "simulated.json"
"""Object at the root of a simulated archive: corrupted case -> noise, params, seed, Dice, and
its kind in a mixture."""

ELSEWHERE: Mapping[str, tuple[str, ...]] = {"another_label": ("name",), "another_case": ()}
"""Labels that were made for something else, and the parameters that each needs."""


@dataclass(frozen=True)
class SimulateReport(CasesReport):
    """What became of each case: corrupted or clean."""

    dice: Mapping[int, float]
    """Mean Dice of the corrupted labels to the truth, per class, over corrupted cases."""

    @property
    def corrupted(self) -> tuple[str, ...]:
        """The cases whose label was corrupted."""
        return tuple(case for case, outcome in self.done.items() if outcome == "corrupted")

    @property
    def clean(self) -> tuple[str, ...]:
        """The cases that were only copied."""
        return tuple(case for case, outcome in self.done.items() if outcome == "clean")

    def _more(self) -> dict[str, Any]:
        return {"dice_of_corrupted": self.dice}


@dataclass(frozen=True)
class _Plan:
    """One simulation; cases are corrupted as `chosen` says."""

    source: Archive
    target: Archive
    label: str
    seed: int
    cases: Sequence[str]
    chosen: Mapping[str, ErrorKind]

    def record(self, case: str) -> dict[str, Any]:
        """Return what identifies a case of the copy; JSON values only."""
        told: dict[str, Any] = {"label": self.label, "noise": None}
        if kind := self.chosen.get(case):
            told |= {"noise": kind.noise, "params": dict(kind.params), "seed": self.seed}
            told |= {"kind": kind.name} if kind.name else {}
        told["source"] = source_versions(self.source, case, self.label)
        return dict(json.loads(json.dumps(told)))


def simulate(
    src: Archive,
    dst_uri: str | os.PathLike[str],
    label: str,
    *,
    noise: str | Sequence[ErrorKind],
    fraction: float = 0.5,
    seed: int = 0,
    params: Mapping[str, Any] | None = None,
    cases: Iterable[str] | None = None,
) -> SimulateReport:
    """Copy the cases of `src` (default: all) and corrupt `label` in a fraction of them.

    `noise` and `params` are those of `simulate.noise.corrupt`, or `another_label` (its `name`) or
    `another_case`; a mixture of kinds brings its own shares and params. Images, other given labels,
    spacing, affine, patient, site and annotator are kept; labels made by runs are not copied.
    Raises ConfigError for an impossible noise or target, InputError when there is no case at all,
    UnfitEnvironment when nothing can be written.
    """
    target = Archive.open(dst_uri)
    if target.store.uri == src.store.uri:
        raise ConfigError(f"{target.store.uri}: source and copy are one. Choose another place.")
    kinds = [ErrorKind(noise, fraction, params or {})] if isinstance(noise, str) else noise
    for kind in kinds:
        _check(kind)
    names = src.wanted_cases(cases)
    chosen = share_out(names, kinds, seed)
    plan = _Plan(src, target, label, seed, names, chosen)
    target.check_writable()
    done, failed = for_each_case(names, lambda case: _simulate_case(plan, case))
    corrupted = {case: facts for case, facts in done.items() if case in chosen}
    target.store.put_json(SIMULATED, {**load_simulated(target), **corrupted})
    load_index(target)
    return SimulateReport(
        done={case: "corrupted" if case in chosen else "clean" for case in done},
        failed=failed,
        dice=_mean_dice([facts["dice"] for facts in corrupted.values()]),
    )


def load_simulated(archive: Archive) -> dict[str, dict[str, Any]]:
    """Return {corrupted case: {label, noise, params, seed, dice[, kind]}}, or {} if it is real."""
    try:
        return dict(archive.store.get_json(SIMULATED))
    except MissingObject:
        return {}


def truth_name(label: str) -> str:
    """Return the name under which the original of a corrupted label is kept."""
    return f"{label}_truth"


def _simulate_case(plan: _Plan, case: str) -> dict[str, Any]:
    """Write one case of the copy, unless it is there; return its record."""
    wanted = plan.record(case)
    if plan.target.at(case).head("zarr.json") is not None:
        present = plan.target.attributes(case).get("simulated", {})
        if not _is_same(present, wanted):
            raise CaseError(
                case,
                f"exists in {plan.target.store.uri} from another simulation or source, or its "
                "source was written again since. Choose another place for this one.",
            )
        return dict(present)
    source, spacing_mm = plan.source, plan.source.spacing_mm(case)
    image = source.image(case)
    label = source.published_label(case, plan.label)
    given = as_label(case, plan.label, label.read_all(), image.shape_zyx)
    noisy = given
    if case in plan.chosen:
        noisy = _wrong(plan, case, given, spacing_mm)
        wanted["dice"] = {str(value): score for value, score in dice(given, noisy).items()}
    labels, own = _other_labels(plan, case)
    about = source.label_attributes(case, plan.label)
    truth = truth_name(plan.label)
    attributes = source.attributes(case)
    attributes.pop("affine", None)
    write_case(
        plan.target,
        case,
        image.read_all(),
        {**labels, plan.label: noisy, truth: given},
        spacing_mm=spacing_mm,
        affine=source.affine(case),
        attributes={**attributes, "simulated": wanted},
        label_attributes={**own, plan.label: about, truth: about},
    )
    return wanted


def _check(kind: ErrorKind) -> None:
    """Raise ConfigError for an impossible kind, before anything is written."""
    if kind.noise not in ELSEWHERE:
        corrupt(np.ones((1, 4, 4), np.uint8), kind.noise, case_rng(0, ""), **kind.params)
    elif {*kind.params} != {*ELSEWHERE[kind.noise]}:
        wanted = ", ".join(ELSEWHERE[kind.noise]) or "no parameter"
        raise ConfigError(f"Noise {kind.noise!r} needs {wanted}, got {dict(kind.params)}.")


def _wrong(plan: _Plan, case: str, given_zyx: IntLabel, spacing_mm: Spacing) -> IntLabel:
    """Return the wrong label of a case. One of another case is stretched to this one's shape."""
    kind, source, shape_zyx = plan.chosen[case], plan.source, given_zyx.shape
    if kind.noise not in ELSEWHERE:
        rng = case_rng(plan.seed, case)
        return corrupt(given_zyx, kind.noise, rng, spacing_mm, **kind.params)
    if kind.noise == "another_label":
        name = str(kind.params["name"])
        return as_label(case, name, source.published_label(case, name).read_all(), shape_zyx)
    following = (plan.cases.index(case) + 1) % len(plan.cases)
    other = source.published_label(plan.cases[following], plan.label).read_all()
    pairs = zip(shape_zyx, other.shape, strict=True)
    where = np.ix_(*((np.arange(n) * m // n for n, m in pairs)))
    return as_label(case, plan.label, other[where], shape_zyx)


def _is_same(present: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Return whether a case is there as wanted; older copies do not tell their source."""
    told = {"source": wanted["source"], **present}
    return {key: told.get(key) for key in wanted} == wanted


def _other_labels(plan: _Plan, case: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return voxels and attributes of the labels that came with the case, the one apart."""
    source = plan.source
    names = [name for name in source.label_names(case) if not source.is_derived(case, name)]
    if truth_name(plan.label) in names:
        raise CaseError(
            case,
            f"has a label {truth_name(plan.label)!r} already: it is a simulation itself. "
            "Simulate from the real archive.",
        )
    others = [name for name in names if name != plan.label]
    voxels = {name: source.label(case, name).read_all() for name in others}
    return voxels, {name: source.label_attributes(case, name) for name in others}


def _mean_dice(per_case: list[dict[str, float]]) -> dict[int, float]:
    values = sorted({int(value) for scores in per_case for value in scores})
    return {
        value: math.fsum(scores[str(value)] for scores in per_case if str(value) in scores)
        / sum(str(value) in scores for scores in per_case)
        for value in values
    }
