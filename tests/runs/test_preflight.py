"""What is refused before anything is computed, beyond what the config alone can tell."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from raysegclean.cluster.driver import ClusterFacts
from raysegclean.cluster.executor import ray_executor
from raysegclean.errors import ConfigError, InputError, RunConflict
from raysegclean.events import Events
from raysegclean.methods.base import Method
from raysegclean.methods.coseg.method import COSEG
from raysegclean.nets.hooks import PLAIN_HOOK
from raysegclean.planning.plan import with_current_cases
from raysegclean.runs import preflight
from raysegclean.runs.begin import _tell_other_archive, begin
from raysegclean.runs.preflight import prepare
from raysegclean.store.archive import Archive
from raysegclean.store.run import RunFolder
from tests.engine.scenes import Scene, config_for, write_archive

SCENES = (Scene("a", (6, 16, 16)), Scene("b", (6, 16, 16)))


@dataclass(frozen=True)
class Params:
    learns: bool = True


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return write_archive(tmp_path / "archive", SCENES)


def learning_from_trusted(monkeypatch: pytest.MonkeyPatch, params: object) -> None:
    """Let every config name a method that needs trusted cases where its params say so."""
    method: Method = replace(
        COSEG,
        params=Params,
        voters=lambda _: COSEG.voters(COSEG.params()),
        needs_trusted=lambda p: p.learns,
    )
    monkeypatch.setattr(preflight, "load_method", lambda _: method)
    monkeypatch.setattr(preflight, "make_params", lambda *_: params)


def test_a_method_that_learns_from_trusted_labels_is_refused_without_the_setting(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learning_from_trusted(monkeypatch, Params())
    with pytest.raises(ConfigError, match=r"coseg.*`trusted:` is not set.*label: NAME"):
        prepare(config_for(archive, tmp_path / "run"))


def test_and_where_no_case_has_the_label(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learning_from_trusted(monkeypatch, Params())
    config = config_for(archive, tmp_path / "run", trusted={"label": "expert"})
    with pytest.raises(ConfigError, match=r"none of 2 cases has the label 'expert'"):
        prepare(config)


def test_trusted_cases_that_only_one_fold_judges_teach_nobody_else(
    archive: Archive, tmp_path: Path
) -> None:
    archive.add_label("b", "expert", np.zeros((6, 16, 16), np.uint8), {})
    config = config_for(archive, tmp_path / "run", method="reweight", trusted={"label": "expert"})
    with pytest.raises(ConfigError, match=r"all trusted cases fall into fold \d of 2.*crossfit: 0"):
        prepare(config)
    prepare(config.with_settings({"train.crossfit": 0}))
    archive.add_label("a", "expert", np.zeros((6, 16, 16), np.uint8), {})
    both = prepare(config).plan(config, gpu=False)
    assert all(case.trusted_version for case in both.cases)
    again = replace(both, cases=(replace(both.cases[0], trusted_version="new"), *both.cases[1:]))
    assert again.train_key() != both.train_key(), "other trusted labels make other networks"
    plain = replace(both, train=replace(both.train, hook=PLAIN_HOOK))
    unasked = replace(again, train=plain.train)
    assert unasked.train_key() == plain.train_key()


def test_one_trusted_case_is_enough_and_params_may_do_without(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learning_from_trusted(monkeypatch, Params(learns=False))
    prepare(config_for(archive, tmp_path / "run"))
    learning_from_trusted(monkeypatch, Params())
    archive.add_label("b", "expert", np.zeros((6, 16, 16), np.uint8), {})
    config = config_for(archive, tmp_path / "run", trusted={"label": "expert"})
    assert any(case.trusted for case in prepare(config).plan(config, gpu=False).cases)


def test_a_rule_for_binary_labels_is_refused_for_several_classes(
    archive: Archive, tmp_path: Path
) -> None:
    config = config_for(archive, tmp_path / "run", method="uncertainty")
    for params in ({"rule": "published"}, {"rule": "published", "relabel_from": 1}):
        with pytest.raises(
            ConfigError, match=r"params: rule: published flips binary labels.*2 classes \[1, 2\]"
        ):
            prepare(config.with_settings({"params": params}))


@pytest.mark.parametrize(
    ("network", "told"),
    [
        ("tests.nets.own_networks:instance", "looks at its whole window"),
        ("tests.nets.own_networks:plain", "has no layer `head`"),
    ],
)
def test_a_method_that_compares_features_is_refused_where_the_network_shows_none(
    archive: Archive, tmp_path: Path, network: str, told: str
) -> None:
    settings = {"network": {"name": network, "strides": [[1, 2, 2]], "widths": [4, 6]}}
    config = config_for(archive, tmp_path / "run", method="transition", params={})
    with pytest.raises(ConfigError, match=f"transition compares the features.*{told}.*unet"):
        prepare(config.with_settings(settings))
    prepare(config)


def test_an_archive_that_is_not_there_is_told_as_such(archive: Archive, tmp_path: Path) -> None:
    config = config_for(archive, tmp_path / "run")
    with pytest.raises(InputError, match=r"nowhere: no case here.*ingest"):
        prepare(config.with_settings({"archive": str(tmp_path / "nowhere")}))


def test_a_trusted_label_that_no_case_has_is_refused_and_not_passed_over(
    archive: Archive, tmp_path: Path
) -> None:
    config = config_for(archive, tmp_path / "run", trusted={"label": "expret"})
    with pytest.raises(ConfigError, match="none of 2 cases has the label 'expret'"):
        prepare(config)


def test_a_run_that_goes_on_with_another_archive_says_so(archive: Archive, tmp_path: Path) -> None:
    config = config_for(archive, tmp_path / "run")
    begun, said = prepare(config).plan(config, gpu=False), []
    events = Events(said.append)
    first, second = begun.cases
    changed = replace(begun, archive="elsewhere", cases=(first, replace(second, version="other")))
    _tell_other_archive(begun, begun, events)
    _tell_other_archive(begun, changed, events)
    assert len(said) == 1
    assert "goes on with elsewhere; 1 of 2 cases differ" in said[0].text


def test_fewer_cases_than_folds_are_enough_for_a_run_that_has_begun(
    archive: Archive, tmp_path: Path
) -> None:
    config = config_for(archive, tmp_path / "run")
    narrow = config.with_settings({"cases": ["a"]})
    with pytest.raises(ConfigError, match="folds need at least 2 patients"):
        prepare(narrow)
    plan = prepare(config).plan(config, gpu=False)
    RunFolder(config.run).freeze({"identity": {}, "plan": plan.to_json(), "train_key": "k"})
    today = prepare(narrow).plan(narrow, gpu=False)
    merged = with_current_cases(plan, today)
    assert merged.cases == tuple(case for case in plan.cases if case.case == "a")


def test_a_start_that_goes_well_forgets_the_error_of_the_last_one(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path / "run"))
    run.write_state(status="failed", error="the disk is full")
    run.write_state(status="running", error=None)
    assert run.state().keys() == {"status", "updated"}


def test_a_run_that_began_on_gpus_asks_for_them_when_it_goes_on(
    archive: Archive, tmp_path: Path
) -> None:
    config = config_for(archive, tmp_path / "run")
    with_gpu = ClusterFacts(4.0, 1.0, 1, 1 << 33, True, False)
    without = replace(with_gpu, gpus=0.0, has_bf16=False)
    job = (1, lambda: None, lambda _: None)
    first = begin(config, RunFolder(config.run), prepare(config), ray_executor(with_gpu), job)
    again = begin(config, RunFolder(config.run), prepare(config), ray_executor(without), job)
    assert first.plan == again.plan
    assert again.plan.train.precision == "bf16"
    assert [again.gpus(wanted) for wanted in ("auto", 0.0, 0.5)] == [1.0, 0.0, 0.5]


def test_precision_is_left_at_32_bits_where_a_gpu_only_emulates_16(
    archive: Archive, tmp_path: Path
) -> None:
    config = config_for(archive, tmp_path / "run")
    facts = ClusterFacts(4.0, 1.0, 1, 1 << 33, False, False)
    job = (1, lambda: None, lambda _: None)
    session = begin(config, RunFolder(config.run), prepare(config), ray_executor(facts), job)
    assert session.plan.train.precision == "fp32"
    assert session.gpus("auto") == 1.0


@pytest.mark.parametrize(("names", "found"), [({}, 1), ({"format": 2}, 2)])
def test_a_run_of_an_earlier_format_is_refused_with_what_to_do(
    tmp_path: Path, names: dict[str, int], found: int
) -> None:
    run = RunFolder(str(tmp_path / "run"))
    run.write_json("resolved.json", {"identity": {}, "plan": {}, "train_key": "k", **names})
    with pytest.raises(RunConflict, match=rf"format {found}, this version reads 3\. Go on with it"):
        run.resolved()


def test_a_typo_in_the_list_of_cases_is_refused_by_name(archive: Archive, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no case aa \(is it a\?\), zzz\. Correct the list"):
        prepare(config_for(archive, tmp_path / "run", cases=["a", "aa", "zzz"]))


def test_a_case_by_another_name_is_not_left_out_without_a_word(
    archive: Archive, tmp_path: Path
) -> None:
    (tmp_path / "archive" / "b.ome.zarr").rename(tmp_path / "archive" / "b.zarr")
    (tmp_path / "archive" / "b.zarr").joinpath("zarr.json").touch()
    config = config_for(archive, tmp_path / "run", group="case", train={"crossfit": 0})
    assert prepare(config).unusable == {
        "b": "its folder is called b.zarr, not b.ome.zarr. Rename it."
    }
