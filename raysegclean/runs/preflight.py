"""Before anything is computed: check config and archive, and decide the plan; no cluster yet."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from raysegclean.config.settings import Config
from raysegclean.errors import ConfigError, InputError
from raysegclean.evidence.cases import CaseInfo
from raysegclean.methods.base import Method, load_method, make_params
from raysegclean.nets.hooks import HookContext, make_hook
from raysegclean.nets.losses import LOSSES
from raysegclean.nets.receptive import total_stride
from raysegclean.planning.named_cases import named_cases, select_cases, wanted_ids
from raysegclean.planning.network_plan import check_features
from raysegclean.planning.plan import RunPlan, make_plan, split_usable
from raysegclean.store.archive import Archive
from raysegclean.store.class_names import class_names
from raysegclean.store.index import CaseIndex, load_index
from raysegclean.store.run import RunFolder

__all__ = ["Prepared", "prepare"]

SHOWN = 3


@dataclass(frozen=True)
class Prepared:
    """Config and archive, checked: all that is known before anything is computed."""

    method: Method
    params: Any
    infos: tuple[CaseInfo, ...]
    unusable: dict[str, str]
    """Case -> why it cannot be used; the other cases go on."""
    lender: RunPlan | None
    """The plan of the run whose networks are used, where `models:` names one."""
    resumed: bool = False
    """Whether the run has begun: then its folds are dealt, whatever cases are wanted today."""
    names: Mapping[int, str] = field(default_factory=dict)
    """What label values are called: by the config, else as the label itself says."""

    def plan(self, config: Config, *, gpu: bool) -> RunPlan:
        """Decide everything that the config leaves open."""
        return make_plan(
            config,
            self.infos,
            self.method.voters(self.params),
            gpu=gpu,
            lender=self.lender,
            dealt=self.resumed,
            names=self.names,
        )


def prepare(config: Config) -> Prepared:
    """Check config and archive; write nothing but the archive's index."""
    method = load_method(config.method)
    params = make_params(method, config.params)
    index = load_index(Archive.open(config.archive), config.index, require_label=config.label)
    if not len(index) and not index.failed:
        Archive.open(config.archive).wanted_cases()  # says that there is none, and what to do
    unusable = _unreadable(config, index)
    lender = _lender(config)
    infos, misfits = split_usable(config, select_cases(config.cases, index), lender)
    infos, lacking = _with_votes(config, infos, method.voters(params).labels)
    unusable |= misfits | lacking
    if not infos and unusable:
        case, reason = min(unusable.items())
        raise InputError(
            f"archive {config.archive}: none of {len(unusable)} cases can be used. "
            f"First: case {case}: {reason}"
        )
    resumed = RunFolder(config.run).resolved() is not None
    names = _names(config, infos)
    prepared = Prepared(method, params, tuple(infos), unusable, lender, resumed, names)
    plan = prepared.plan(config, gpu=False)  # raises what is wrong before a cluster is asked for
    wants_trusted = method.wants_trusted(params) or plan.train.needs_trusted
    if not resumed and (wants_trusted or config.trusted is not None):
        _check_trusted(config, plan)
    _check_classes(method.binary_only(params), plan)
    if method.needs_features:
        check_features(config, plan.network, averaged=plan.averaged)
    if lender is None and not resumed:
        _check_hook(plan)
    return prepared


def _names(config: Config, infos: Sequence[CaseInfo]) -> dict[int, str]:
    """Return what label values are called: as the config says, else as the first cases do."""
    cases = (info.case for info in infos)
    kept = class_names(Archive.open(config.archive), config.label, cases)
    return kept | {value: name for name, value in config.classes.items()}


def _unreadable(config: Config, index: CaseIndex) -> dict[str, str]:
    """Return the wanted cases that the index has not, and why."""
    reasons = {fault.case: fault.reason for fault in index.failed}
    unusable = {case: reasons[case] for case in wanted_ids(config.cases, list(reasons))}
    _check_named(config, {info.case for info in index} | set(reasons))
    return unusable


def _check_named(config: Config, known: Collection[str]) -> None:
    """Raise ConfigError where `cases:` lists what the archive does not have."""
    named = named_cases(config.cases) or frozenset()
    strangers = sorted(named - set(known))
    if strangers:
        like = {name: get_close_matches(name, sorted(known), 1) for name in strangers[:SHOWN]}
        said = ", ".join(f"{n} (is it {c[0]}?)" if c else n for n, c in like.items())
        more = f" and {len(strangers) - SHOWN} more" if len(strangers) > SHOWN else ""
        raise ConfigError(
            f"cases: {config.archive} has no case {said}{more}. Correct the list of {len(named)}."
        )


def _check_classes(binary_only: str, plan: RunPlan) -> None:
    if binary_only and len(plan.classes) != 2:
        raise ConfigError(
            f"params: {binary_only} flips binary labels, and label {plan.label!r} has "
            f"{len(plan.classes) - 1} classes {list(plan.classes[1:])}. Use another rule."
        )


def _with_votes(
    config: Config, infos: Sequence[CaseInfo], labels: Sequence[str]
) -> tuple[list[CaseInfo], dict[str, str]]:
    """Return the cases that have all labels that vote, and why each of the others cannot be used.

    Raises ConfigError for a label that cannot vote.
    """
    for name in {config.label, config.output.label} & set(labels):
        which = "given" if name == config.label else "output"
        raise ConfigError(
            f"params.labels: {name!r} is the {which} label of this run. Name labels that other "
            "runs published."
        )
    usable, lacking = [], {}
    for info in infos:
        missing = [name for name in labels if name not in {s.name for s in info.labels}]
        if missing:
            lacking[info.case] = (
                f"label {', '.join(map(repr, missing))}, which votes, is missing. Publish it with "
                "its own run first, or leave the case out with `cases:`."
            )
        else:
            usable.append(info)
    return usable, lacking


def _check_hook(plan: RunPlan) -> None:
    """Refuse what the method's hook refuses, as labels of the wrong kind, before it is trained."""
    train = plan.train
    for fold in range(plan.folds) if train.needs_trusted else ():
        learnt = set(plan.training_cases(fold))
        if not any(case.trusted and case.case in learnt for case in plan.cases):
            raise ConfigError(
                f"trusted: all trusted cases fall into fold {fold + 1} of {plan.folds}, whose "
                "voters judge them and must not learn from them. Give cases of another patient a "
                "trusted label as well, or set train.crossfit: 0."
            )
    context = HookContext(
        classes=len(plan.classes),
        steps=train.steps,
        most_steps=train.bound,
        epoch_steps=train.epoch_steps,
        loss=LOSSES[train.loss],
        stride_zyx=total_stride(plan.network),
    )
    make_hook(train.hook, context)


def _check_trusted(config: Config, plan: RunPlan) -> None:
    """Refuse a method that learns from trusted labels, or a name of them, where no case has one."""
    if any(case.trusted for case in plan.cases):
        return
    found = (
        f"none of {len(plan.cases)} cases has the label {plan.trusted_label!r}"
        if plan.trusted_label
        else "`trusted:` is not set"
    )
    raise ConfigError(
        f"method: {config.method} learns from cases with a trusted label, and {found}. Set "
        "`trusted: {label: NAME}` to the label of an expert that at least one case has, or use "
        "a method that needs none, without `trusted:`."
    )


def _lender(config: Config) -> RunPlan | None:
    if config.models is None:
        return None
    frozen = RunFolder(config.models).resolved()
    if frozen is None:
        raise ConfigError(f"models: {config.models} is no run folder; resolved.json is missing.")
    return RunPlan.from_json(frozen["plan"])
