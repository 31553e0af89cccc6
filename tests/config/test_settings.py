"""The config: what it accepts, what it refuses, and how it says so."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from raysegclean.config import settings as config_module
from raysegclean.config.problems import settings_of
from raysegclean.config.settings import (
    Config,
    load_config,
    make_config,
    parse_params,
    validate_params,
)
from raysegclean.config.yaml_source import parse_scalar
from raysegclean.errors import ConfigError
from raysegclean.interface.demo import CONFIG as DEMO_CONFIG

REQUIRED = {"archive": "a", "label": "organs", "run": "r"}
UNSHOWN = {("trusted", "label"), ("search", "samples"), ("search", "space")}
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "clean.yaml"


def written(folder: Path, text: str) -> Path:
    path = folder / "clean.yaml"
    path.write_text("archive: a\nlabel: organs\nrun: r\n" + text, encoding="utf-8")
    return path


def problems(folder: Path, text: str, sets: list[str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(written(folder, text), sets or [])
    return str(caught.value).replace(f"{folder}/", "").splitlines()


def test_the_three_required_settings_are_enough() -> None:
    config = make_config(REQUIRED)
    assert config.train.steps == "auto"
    assert (config.network.preset, config.network.widths) == ("auto", "auto")
    assert config.output.label == "organs_clean"


def test_the_template_shows_every_setting_with_its_default() -> None:
    example = load_config(EXAMPLE)
    shared = {name: getattr(example, name) for name in REQUIRED}
    assert example == make_config(shared)
    text = EXAMPLE.read_text()
    for path in settings_of(Config):
        if path[:-1] != ("policy",) and path not in UNSHOWN:
            assert f"{path[-1]}:" in text, f"{path} is not in the template"


def test_without_a_file_the_phantom_is_cleaned() -> None:
    config = load_config(None, ["train.steps=7"])
    assert config.archive == "demo/archive"
    assert config.train.steps == 7


def test_without_a_file_the_run_of_the_demo_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "clean.yaml"
    path.write_text(DEMO_CONFIG.format(archive="demo/archive", run="demo/run"))
    assert load_config(path) == load_config(None)


def test_every_setting_says_what_it_expects() -> None:
    assert all(settings_of(Config).values())


def test_an_unknown_key_is_answered_with_file_line_and_the_nearest(tmp_path: Path) -> None:
    found = problems(tmp_path, "train:\n  batch: 2\n  stpes: 5\n")
    assert found == ["clean.yaml:6: train.stpes is not a setting. Did you mean train.steps?"]


def test_a_key_in_the_wrong_section_is_sent_to_the_right_one(tmp_path: Path) -> None:
    found = problems(tmp_path, "steps: 5\n")
    assert found == ["clean.yaml:4: steps is not a setting. Did you mean train.steps?"]


def test_a_key_like_no_other_is_answered_with_all(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, "trusted: {zzz: 1, label: e}\n")
    assert found == "clean.yaml:4: trusted.zzz is not a setting. Known here: label."


def test_all_errors_are_shown_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = "train:\n  batch: many\n  crosfit: 2\nmax_failed: 2\nbogus\n"
    text = text.replace("bogus\n", "relabel: {halo: [1, 2]}\n")
    found = problems(tmp_path, text, ["network.dims=4", "nonsense"])
    assert [line.split(":")[1] if line.startswith("clean") else line[:5] for line in found] == [
        *("5", "6", "7", "8"),
        *("--set", "--set"),
    ]
    assert found[0] == (
        "clean.yaml:5: train.batch: expected patches per step, a whole number >= 1, or auto; "
        'got "many".'
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train: {steps: 0}", "train.steps: expected a whole number >= 1, or auto; got 0."),
        ("train: {steps: 5.0}", "got 5.0."),
        ("train: {steps: '5'}", 'got "5".'),
        ("train: {steps: true}", "got true."),
        ("train: {patch_zyx: [1, 2]}", "train.patch_zyx: expected [z, y, x] in voxels"),
        ("train: {patch_zyx: [1, 2, 0]}", "got [1, 2, 0]."),
        ("train: {lr: .nan}", 'got ".nan".'),
        ("train: {flips: [x, w]}", "train.flips: expected a list of axes"),
        ("train: {steps: 9, max_steps: 10}", "this bounds train.steps: auto; it is 9. Keep one."),
        ("train: {steps: 9, budget_minutes: 5}", "train.budget_minutes: this bounds train.steps"),
        ("train: {budget_minutes: 0}", "expected minutes above 0, or null"),
        ("train: {crossfit: 1}", "train.crossfit: one fold leaves nothing to train on"),
        ("train: 5", "train: expected settings of training; got 5."),
        ("relabel: {shard_vox: 100}", "a multiple of 64"),
        ("network: {widths: []}", "network.widths: expected"),
        ("network: {widths: [8, 16], strides: []}", "expected 1 triples for 2 widths; got 0."),
        ("network: {name: resnet}", "network.name: expected unet, or an import path"),
        ("method: cosegg", 'method: "cosegg" is not a method. Did you mean coseg?'),
        ("output: {label: organs}", "the given label is never written"),
        ("output: {label: a/b}", "output.label: expected the name of a label"),
        ("trusted: {label: organs}", "also the given or the output label"),
        ("trusted: 4", "trusted: expected `label: NAME`, or null; got 4."),
        ("search: {space: {alpha: 0.3}}", "search.space.alpha: expected a list of values"),
        ("search: {samples: 4}", "search.space: expected a parameter of coseg with values to try"),
        ("params: {alpha: [1]}", "params.alpha: expected parameters"),
        ("index: s3://key:secret@bucket/i", "a URI must not hold credentials"),
        ("label: other", "label is already set at clean.yaml:2"),
        ("cases: !!set {a, b}", "cases: "),
        ("group: site", "group: expected patient, or case"),
        ("1: 2", "1 is not a setting."),
    ],
)  # fmt: skip
def test_a_wrong_value_is_answered_with_what_was_expected(
    tmp_path: Path, text: str, says: str
) -> None:
    found = problems(tmp_path, text + "\n")
    assert any(line.startswith("clean.yaml:4: ") and says in line for line in found), found


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train: {steps: 5", "clean.yaml:5: not valid YAML"),
        ("train:\n\t steps: 5", "not valid YAML"),
        ("---\nother: document", "not valid YAML"),
        ("params: &me {again: *me}", "nested too deep"),
    ],
)
def test_what_is_not_yaml_is_refused_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    assert says in problems(tmp_path, text + "\n")[0]


def test_a_missing_file_an_empty_file_and_a_list_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read it.*examples/clean\.yaml"):
        load_config(tmp_path / "none.yaml")
    empty = tmp_path / "empty.yaml"
    empty.write_text("")
    with pytest.raises(ConfigError, match="archive is missing"):
        load_config(empty)
    empty.write_text("- a\n- b\n")
    with pytest.raises(ConfigError, match="expected settings as"):
        load_config(empty)
    empty.write_bytes(b"archive: \xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(empty)


def test_settings_of_the_command_line_win_and_are_named_in_errors(tmp_path: Path) -> None:
    path = written(tmp_path, "train: {steps: many, batch: 2}\nparams: {}\n")
    sets = ["train.steps=500", "relabel.tile_zyx=[8, 16, 16]", "trusted=null", "cases=[a, '002']"]
    config = load_config(path, sets)
    assert (config.train.steps, config.train.batch) == (500, 2)
    assert config.relabel.tile_zyx == (8, 16, 16)
    assert config.cases == ("a", "002")
    assert problems(tmp_path, "", ["train.stpes=5"]) == [
        "--set: train.stpes is not a setting. Did you mean train.steps?"
    ]


def test_a_secret_is_never_repeated(tmp_path: Path) -> None:
    found = problems(tmp_path, "", ["archive=s3://key:hidden@bucket/a"])
    assert "hidden" not in "".join(found)


def test_an_empty_section_means_its_defaults(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, "train:\nrelabel:\n  # halo: 3\nparams:\n"))
    assert config == make_config(REQUIRED)


def test_case_ids_stay_text(tmp_path: Path) -> None:
    ids = "cases: [001, 2024-01-31, no, 12:30, 1_000]\n"
    wanted = ("001", "2024-01-31", "no", "12:30", "1_000")
    assert load_config(written(tmp_path, ids)).cases == wanted


def test_numbers_are_read_as_people_write_them(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, "train: {lr: 1e-3}\nmax_failed: 0\n"))
    assert (config.train.lr, config.max_failed) == (0.001, 0.0)


def test_a_config_is_frozen() -> None:
    config = make_config(REQUIRED)
    with pytest.raises(ValueError, match="frozen"):
        config.label = "other"
    for model in (Config, *(s for s in vars(config_module).values() if isinstance(s, type))):
        if isinstance(model, type) and issubclass(model, BaseModel) and model is not BaseModel:
            assert model.model_config["frozen"]


def test_with_settings_returns_a_checked_copy() -> None:
    config = make_config(REQUIRED)
    changed = config.with_settings({"train.steps": 9, "relabel.halo": [1, 2, 3]})
    assert (changed.train.steps, changed.relabel.halo) == (9, (1, 2, 3))
    assert config.train.steps == "auto"
    with pytest.raises(ConfigError, match="Did you mean train"):
        config.with_settings({"train.stpes": 9})


PARAMS = st.dictionaries(
    st.sampled_from(["network.dropout", "max_failed", "train.seed", "relabel.halo", "cases"]),
    st.one_of(st.integers(0, 3), st.floats(0, 0.9), st.just("auto"), st.lists(st.text("ab"))),
)


@given(PARAMS)
def test_what_was_resolved_is_read_back_the_same(changes: dict[str, Any]) -> None:
    try:
        config = make_config(REQUIRED).with_settings(changes)
    except ConfigError:
        return
    assert make_config(json.loads(json.dumps(config.resolved()))) == config
    backwards = make_config(dict(reversed(config.resolved().items())))
    assert backwards == config


def test_json_is_yaml_so_a_resolved_config_can_be_run_again(tmp_path: Path) -> None:
    config = make_config(REQUIRED).with_settings({"train.lr": 1e-5, "cases": ["001", "true"]})
    path = tmp_path / "resolved.json"
    path.write_text(json.dumps(config.resolved(), indent=2))
    assert load_config(path) == config


@given(st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.booleans()))
def test_json_scalars_keep_their_value_and_type(value: float) -> None:
    found = parse_scalar(json.dumps(value))
    assert found == value
    assert type(found) is type(value)


def test_params_are_checked_against_the_method() -> None:
    found = validate_params("coseg", {"alhpa": 1}, lambda name: f"clean.yaml:{len(name)}")
    assert found[0].startswith("clean.yaml:5: alhpa is not a parameter of coseg.")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        validate_params("no_such_package:METHOD", {}, str)


def test_params_out_of_range_are_all_told_with_their_lines(tmp_path: Path) -> None:
    first, second = problems(
        tmp_path, "method: coseg\nparams:\n  alpha: 1.5\n  keep: 0.8\n  start_epoch: -1\n"
    )
    assert first == "clean.yaml:6: alpha: expected less than or equal to 1; got 1.5."
    assert second.startswith("clean.yaml:8: start_epoch: expected greater than or equal to 0")


def test_params_that_do_not_fit_each_other_are_told_at_one_of_them(tmp_path: Path) -> None:
    text = "method: uncertainty\nparams:\n  rule: published\n  delta: 0.3\n"
    (told,) = problems(tmp_path, text)
    assert told.startswith("clean.yaml:7: delta: expected a number above 0 and below 0.25")
    (told,) = problems(tmp_path, "method: combine\n")
    assert "labels: expected the names of 2 to 7 different labels" in told


def test_noise_params_are_scalars() -> None:
    assert parse_params(["n_max=2", "p=.5", "kind=a=b"]) == {"n_max": 2, "p": 0.5, "kind": "a=b"}
    with pytest.raises(ConfigError, match="--param n_max: expected KEY=VALUE"):
        parse_params(["n_max"])
