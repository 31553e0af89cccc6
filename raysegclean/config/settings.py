"""The whole configuration of a run: its keys, types, defaults, and errors that name file and line.

Everything is validated before any compute, and all errors are shown at once. A `Config` is frozen
and holds plain values only; `auto` stays `auto` here and is decided once by the pipeline, which
writes the decided config into the run folder. This module is light: no torch, no Ray, no I/O but
reading the config file itself, so that a typing error is answered in a fraction of a second.

Not checked here: whether the archive, the label or the cases exist (the pipeline asks the store).
"""

import dataclasses
import json
import re
import sys
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raysegclean.config.network_checks import network_problems
from raysegclean.config.problems import nearest, problems_of, section_of, shown, type_problem
from raysegclean.config.yaml_source import (
    KeyPath,
    Source,
    dotted,
    parse_scalar,
    parse_settings,
    read_yaml,
)
from raysegclean.errors import ConfigError
from raysegclean.names import BUILT_IN
from raysegclean.policy.params import PolicyParams
from raysegclean.store.objects import LABEL_NAME

if typing.TYPE_CHECKING:
    from raysegclean.methods.base import Method

__all__ = [
    "DEMO_VALUES",
    "METHODS",
    "Auto",
    "Config",
    "Network",
    "Output",
    "Relabel",
    "RelabelResources",
    "Resources",
    "Scalar",
    "Search",
    "Train",
    "TrainResources",
    "Triple",
    "Trusted",
    "load_config",
    "make_config",
    "parse_params",
    "validate_params",
]

METHODS = tuple(BUILT_IN["method"])
"""The methods that come with the package; any other is named by import path, `package:Name`."""

_IMPORT_PATH = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"

Auto = Literal["auto"]
Scalar = bool | int | float | str | None
Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Amount = Annotated[float, Field(ge=0)]
Triple = tuple[Count, Count, Count]
HaloTriple = tuple[Whole, Whole, Whole]
Text = Annotated[str, Field(min_length=1)]
LabelName = Annotated[str, Field(pattern=LABEL_NAME)]
ImportPath = Annotated[str, Field(pattern=_IMPORT_PATH)]

_LABEL_TEXT = "the name of a label: letters, digits, '_', '-' and '.'"
_GPUS_TEXT = "a number of GPUs per worker, 0 for none, or auto"
_CPUS_TEXT = "a number of CPUs per worker, or auto"


def _setting(expects: str, default: Any = ...) -> Any:
    """Return a field whose description is what an error message says it expected."""
    return Field(default, description=expects)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Trusted(_Section):
    """Which cases also have an expert label."""

    label: LabelName = _setting(_LABEL_TEXT)


class Network(_Section):
    """The network that every voter is made of; `name` may be an import path.

    With `torchscript` or `nnunet` finished networks vote and none is trained. A TorchScript file is
    code that is run.
    """

    name: Literal["unet"] | ImportPath = _setting("unet, or an import path package:build", "unet")
    torchscript: Text | None = _setting("a path or URI of a TorchScript file, or null", None)
    nnunet: Text | None = _setting("a path or URI of an nnU-Net v2 results folder, or null", None)
    classes: dict[str, Count] = _setting(
        "labels of nnU-Net and the archive's values as `liver: 5` pairs", {}
    )
    dims: Literal[2, 3] = _setting("2 (reads slices) or 3", 3)
    spacing_mm: tuple[Amount, Amount, Amount] | Auto | None = _setting(
        "[z, y, x] in mm, 0 along an axis that stays native, null (all native), or auto", "auto"
    )
    preset: Literal["auto", "small", "base", "large"] = _setting(
        "small, base, large, or auto (from the data and the device)", "auto"
    )
    widths: Annotated[tuple[Count, ...], Field(min_length=1)] | Auto = _setting(
        "channels per level, a list of whole numbers >= 1, or auto", "auto"
    )
    strides: tuple[Triple, ...] | Auto = _setting(
        "one [z, y, x] for each step down (one fewer than widths), or auto", "auto"
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = _setting("a number from 0 to below 1", 0.2)
    normalise: Literal["auto", "ct", "case"] = _setting(
        "ct (one window for the archive), case (each case's own mean and deviation), or auto",
        "auto",
    )

    @property
    def finished(self) -> bool:
        """Whether finished networks vote, so that none is trained."""
        return self.torchscript is not None or self.nnunet is not None


class Train(_Section):
    """How the voters are trained."""

    steps: Count | Auto = _setting("a whole number >= 1, or auto", "auto")
    max_steps: Count | Auto = _setting("a whole number >= 1, or auto", "auto")
    budget_minutes: Positive | None = _setting("minutes above 0, or null", None)
    batch: Count | Auto = _setting("patches per step, a whole number >= 1, or auto", "auto")
    patch_zyx: Triple | Auto = _setting("[z, y, x] in voxels, whole numbers >= 1, or auto", "auto")
    crossfit: Whole = _setting("a number of folds >= 2, or 0 for in-sample voters", 2)
    seed: Whole = _setting("a whole number >= 0", 0)
    lr: Positive | Auto = _setting("a learning rate above 0, or auto", "auto")
    loss: Literal["ce_dice", "gce", "nr_dice", "sce", "t_loss"] = _setting(
        "ce_dice, gce, nr_dice, sce or t_loss", "ce_dice"
    )
    flips: tuple[Literal["z", "y", "x"], ...] = _setting(
        "a list of axes out of z, y, x along which the labels are symmetric", ()
    )
    augment: bool = _setting("true or false", False)
    threads: Count = _setting("CPU threads per worker, a whole number >= 1", 1)
    precision: Literal["auto", "fp32", "bf16"] = _setting("fp32, bf16 or auto", "auto")
    checkpoint_every: Count | Auto = _setting("a number of steps >= 1, or auto", "auto")
    placement: Literal["auto", "process", "ranks"] = _setting(
        "process (both peers in one worker), ranks (one worker each), or auto", "auto"
    )


class Relabel(_Section):
    """How the archive is gone through and what one case may change."""

    tile_zyx: Triple | Auto = _setting("[z, y, x] in voxels, whole numbers >= 1, or auto", "auto")
    halo: HaloTriple | Whole | Auto = _setting(
        "voxels of context, one whole number >= 0 or [z, y, x], or auto (measured)", "auto"
    )
    max_change: Share = _setting("a share of a class in a case, 0 to 1", 0.2)
    shard_vox: Annotated[int, Field(ge=64, le=1024, multiple_of=64)] = _setting(
        "the edge of an output shard in voxels, a multiple of 64 from 64 to 1024", 256
    )


class Search(_Section):
    """Values that are tried by training again; two numbers are a range, other lists are choices."""

    samples: Count = _setting("a number of trials >= 1", 8)
    space: Annotated[dict[str, Annotated[tuple[Scalar, ...], Field(min_length=1)]], Field()] = (
        _setting("a list of values for each parameter", {})
    )


class Output(_Section):
    """Where the cleaned label goes; `archive` is None for beside the given label."""

    label: LabelName = _setting(_LABEL_TEXT)
    archive: Text | None = _setting("a path or URI, or null", None)


class TrainResources(_Section):
    """What training may take."""

    workers: Count | Auto = _setting("data-parallel workers per network, >= 1, or auto", "auto")
    cpus: Positive | Auto = _setting(_CPUS_TEXT, "auto")
    gpus: Amount | Auto = _setting(_GPUS_TEXT, "auto")


class RelabelResources(_Section):
    """What relabelling may take."""

    actors: Count | Auto = _setting("a whole number >= 1, or auto", "auto")
    cpus: Positive | Auto = _setting(_CPUS_TEXT, "auto")
    gpus: Amount | Auto = _setting(_GPUS_TEXT, "auto")
    memory_gb: Positive | Auto = _setting(
        "gigabytes per actor, above 0, or auto (estimated)", "auto"
    )
    labels: dict[str, str] = _setting("node labels as `key: text` pairs", {})


class Resources(_Section):
    """What the run may take of the cluster; auto takes what the cluster has.

    `executor: local` works in this process, without Ray, one thing after the other.
    """

    executor: Literal["ray", "local"] = _setting("ray, or local for this process alone", "ray")
    train: TrainResources = _setting("settings of training", TrainResources())
    relabel: RelabelResources = _setting("settings of relabelling", RelabelResources())


class Config(_Section):
    """One run. Axes are z, y, x; sizes are voxels unless the name says otherwise."""

    archive: Text = _setting("a path or URI")
    label: LabelName = _setting(_LABEL_TEXT)
    label_ignore: Count | None = _setting("a label value >= 1, or null", None)
    run: Text = _setting("a path or URI for the run folder")
    cases: Text | tuple[Text, ...] = _setting(
        "a glob, a list of ids, a file of ids, or a query", "*"
    )
    group: Literal["patient", "case"] = _setting(
        "patient, or case where no two cases are of one patient", "patient"
    )
    index: Text | None = _setting("a path or URI, or null for inside the archive", None)
    trusted: Trusted | None = _setting("`label: NAME`, or null", None)
    classes: dict[str, Annotated[int, Field(ge=1)]] = _setting(
        "names of label values as `liver: 1` pairs", {}
    )
    method: Text = _setting("the name of a method", "coseg")
    params: dict[str, Scalar] = _setting("parameters of the method as `name: value` pairs", {})
    policy: PolicyParams = _setting("numbers of the default policy", PolicyParams())
    network: Network = _setting("settings of the network", Network())
    train: Train = _setting("settings of training", Train())
    relabel: Relabel = _setting("settings of relabelling", Relabel())
    search: Search | None = _setting("settings of the search, or null", None)
    harm: Annotated[float, Field(gt=0, lt=1)] | None = _setting(
        "a share above 0 and below 1, or null", None
    )
    models: Text | None = _setting("the URI of an earlier run, or null to train", None)
    output: Output = _setting("settings of the output")
    resources: Resources = _setting("settings of the resources", Resources())
    numerics: Literal["same", "any"] = _setting(
        "same (refuse to resume on other hardware or builds) or any", "same"
    )
    max_failed: Share = _setting("a share of the cases, 0 to 1", 0.05)

    def resolved(self) -> dict[str, Any]:
        """Return every setting as plain JSON values; `make_config` takes them back."""
        return self.model_dump(mode="json")

    def with_settings(self, changes: Mapping[str, Any]) -> "Config":
        """Return a validated copy in which dotted keys, as `train.steps`, have other values."""
        source = Source(values=self.resolved(), name="config")
        for key, value in changes.items():
            source.put(key.split("."), value, "config")
        return _validated(source)


DEMO_VALUES: Mapping[str, Any] = {
    "archive": "demo/archive",
    "label": "organs",
    "run": "demo/run",
    "group": "case",
    "network": {"preset": "small"},
    "train": {"steps": 250, "batch": 2},
}
"""What is cleaned when no config is given: the phantom archive, as `raysegclean demo` does."""


def load_config(path: Path | None, sets: Sequence[str] = ()) -> Config:
    """Read, override and validate; without a `path` it is the demo on the phantom archive.

    `sets` are `key.key=value` texts whose values are YAML; they win over the file. Raises
    ConfigError with one line per problem, each with its place and, for a wrong key, the nearest.
    """
    source = _copied(DEMO_VALUES, "demo") if path is None else read_yaml(path)
    parse_settings(sets, source)
    return _validated(source)


def parse_params(settings: Sequence[str], example: str = "--param n_max=2") -> dict[str, Scalar]:
    """Return `KEY=VALUE` texts, whose values are YAML scalars, as a dict.

    Raises ConfigError, which names the option that `example` begins with.
    """
    option = example.partition(" ")[0]
    params: dict[str, Scalar] = {}
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator or not key.strip():
            raise ConfigError(f"{option} {setting}: expected KEY=VALUE, as in {example}")
        params[key.strip()] = parse_scalar(text.strip())
    return params


def make_config(values: Mapping[str, Any]) -> Config:
    """Validate plain values, as `Config.resolved` returns them; raises ConfigError."""
    return _validated(_copied(values, "config"))


def validate_params(
    method: str, params: Mapping[str, Any], where: Callable[[str], str]
) -> list[str]:
    """Return what is wrong with `params` for `method`; `where(name)` is the place of a parameter.

    Checked against the method's own frozen dataclass of parameters: names, types, and what each
    value is refused for by itself. Imports the method; raises ConfigError when it cannot be loaded.
    """
    # Methods bring numpy along, which --help and a mistyped key should not wait for.
    from raysegclean.methods.base import load_method

    found = load_method(method)
    known = typing.get_type_hints(found.params, include_extras=True)
    names = [item.name for item in dataclasses.fields(found.params)]
    problems = []
    for name, value in params.items():
        if name not in names:
            hint = nearest(name, names, "")
            problems.append(f"{where(name)}: {name} is not a parameter of {method}.{hint}")
        elif (wrong := type_problem(known[name], value)) is not None:
            problems.append(f"{where(name)}: {name}: {wrong}")
        else:
            told = _refusal(found, {name: value})
            mine = told.startswith((f"{name}:", "params:"))
            problems += [f"{where(name)}: {told}"] if mine else []
    return problems


def _refusal(method: "Method", params: Mapping[str, Any]) -> str:
    """Return why params are refused, beginning with the name of one or `params`; or nothing."""
    from raysegclean.methods.base import make_params

    try:
        make_params(method, params)
    except ConfigError as error:
        # Others are missing: that is told when all are known.
        lacking = isinstance(error.__cause__, TypeError)
        return "" if lacking else str(error).removeprefix("params.")
    return ""


def _copied(values: Mapping[str, Any], name: str) -> Source:
    return Source(values=json.loads(json.dumps(values)), name=name)


def _validated(source: Source) -> Config:
    _fill_gaps(source.values)
    problems = list(source.problems)
    config = None
    try:
        # As JSON: lists become tuples and nothing else is converted ("5" is not 5, 1 is not true).
        config = Config.model_validate_json(json.dumps(source.values))
    except ValidationError as error:
        problems.extend(problems_of(error, Config, source))
    if config is not None:
        wrong = _cross_checks(config)
        problems.extend(f"{source.where(path)}: {dotted(path)}: {text}" for path, text in wrong)
        if not any(path == ("method",) for path, _ in wrong):
            problems.extend(_params_problems(config, source))
    if config is None or problems:
        raise ConfigError("\n".join(sorted(dict.fromkeys(problems), key=_line)))
    return config


def _line(problem: str) -> int:
    """Return the line of the file that a problem names; what has none, as --set, comes last."""
    found = re.match(r"[^\n]*?:(\d+): ", problem)
    return int(found[1]) if found else sys.maxsize


def _fill_gaps(values: dict[str, Any]) -> None:
    """Name the cleaned label after the given one; a section with nothing under it is empty."""
    for name, info in Config.model_fields.items():
        is_section = section_of(info.annotation) is not None or name == "params"
        if is_section and info.default is not None and values.get(name, 0) is None:
            values[name] = {}
    output = values.setdefault("output", {})
    if isinstance(output, dict) and isinstance(values.get("label", ""), str):
        # Without a given label that one alone is reported missing.
        output.setdefault("label", f"{values.get('label', 'label')}_clean")


def _params_problems(config: Config, source: Source) -> list[str]:
    """Check params, and what a search would try, against the method."""
    try:
        found = validate_params(
            config.method, config.params, lambda name: source.where(("params", name))
        )
    except ConfigError as error:
        return [f"{source.where(('method',))}: {error}"]
    if not found:
        from raysegclean.methods.base import load_method

        together = _refusal(load_method(config.method), config.params)
        name = together.partition(":")[0]
        found += [f"{source.where(('params', name))}: {together}"] if together else []
    for name, values in (config.search.space if config.search else {}).items():
        place = source.where(("search", "space", name))
        for value in values:
            found += validate_params(config.method, {name: value}, {name: place}.__getitem__)
    return found


def _cross_checks(config: Config) -> list[tuple[KeyPath, str]]:
    """Return what no single setting can know: the path of the one to change, and why."""
    found: list[tuple[KeyPath, str]] = []
    given, out = config.label, config.output.label
    if config.method not in METHODS and not re.match(_IMPORT_PATH, config.method):
        hint = nearest(config.method, METHODS, "")
        text = f"{shown(config.method)} is not a method.{hint} Your own is package.module:Name."
        found.append((("method",), text))
    if out == given and config.output.archive is None:
        text = f"the given label is never written. Choose another name, as {given}_clean."
        found.append((("output", "label"), text))
    if config.output.archive is not None:
        text = "another archive is not supported yet. Leave it null: beside the given label."
        found.append((("output", "archive"), text))
    if config.harm is not None:
        text = "a certified bound is not supported yet. Leave it null; see relabel.max_change."
        found.append((("harm",), text))
    if config.trusted is not None and config.trusted.label in (given, out):
        text = "this is also the given or the output label. Name the expert label or drop trusted."
        found.append((("trusted", "label"), text))
    found += _beyond_steps(config.train)
    if config.train.crossfit == 1:
        text = "one fold leaves nothing to train on. Set 2 or more, or 0 for in-sample voters."
        found.append((("train", "crossfit"), text))
    found += network_problems(config)
    if config.resources.executor == "local":
        found += _beyond_local(config)
    if config.search is not None and not config.search.space:
        text = (
            f"expected a parameter of {config.method} with values to try. Name one, or drop search."
        )
        found.append((("search", "space"), text))
    found.extend(
        (("search", "space", name), "this is also set under params. Keep one of the two.")
        for name in (config.search.space if config.search else ())
        if name in config.params
    )
    found.extend((path, _NO_WITH_USERS) for path, uri in _uris(config) if _WITH_USER.match(uri))
    return found


def _beyond_steps(train: Train) -> Iterable[tuple[KeyPath, str]]:
    bounds = {"max_steps": train.max_steps != "auto", "budget_minutes": bool(train.budget_minutes)}
    for name in (name for name, is_set in bounds.items() if is_set and train.steps != "auto"):
        yield ("train", name), f"this bounds train.steps: auto; it is {train.steps}. Keep one."


def _beyond_local(config: Config) -> Iterable[tuple[KeyPath, str]]:
    if config.search is not None:
        text = "local cannot search, because trials are processes of Ray. Set ray, or drop search."
        yield ("resources", "executor"), text
    if config.resources.train.workers not in ("auto", 1):
        text = "local is one worker. Set executor: ray, or workers to 1."
        yield ("resources", "train", "workers"), text


_WITH_USER = re.compile(r"[A-Za-z0-9+.-]+://[^/]*@")
_NO_WITH_USERS = (
    "a URI must not hold credentials: they would end up in logs and in the run folder. "
    "Set them in the environment (AWS_ACCESS_KEY_ID and so on)."
)


def _uris(config: Config) -> Iterable[tuple[KeyPath, str]]:
    for key in ("archive", "run", "index", "models"):
        yield (key,), getattr(config, key) or ""
    yield ("network", "torchscript"), config.network.torchscript or ""
    yield ("network", "nnunet"), config.network.nnunet or ""
    yield ("output", "archive"), config.output.archive or ""
