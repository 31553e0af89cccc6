"""The command line: verbs, hints, exit codes, streams and signals.

What a verb calls is stood in for where it is heavy; the verbs run for real in the tests of their
rooms and in the end-to-end tests.
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from raysegclean.errors import UnfitEnvironment
from raysegclean.interface.cli import VERBS, main
from raysegclean.render import as_json, as_text
from raysegclean.simulate.noisy_archive import load_simulated
from raysegclean.store.archive import Archive

ROOT = Path(__file__).resolve().parents[2]
JOB = ROOT / "jobs" / "clean.py"
CONFIG = "archive: a\nlabel: organs\nrun: r\n"


@dataclass(frozen=True)
class Report:
    run: str = "r"
    failed: list[dict[str, Any]] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        return 1 if self.failed else 0


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Stand in for the modules that would import torch and Ray."""
    fake = types.ModuleType("pipeline")
    for name in ("pipeline", "status", "verify", "undo"):
        monkeypatch.setitem(sys.modules, f"raysegclean.runs.{name}", fake)
    return fake


def run(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "raysegclean", *words]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=cwd, env=env, timeout=60
    )


def cpu_seconds(*words: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run(*words).returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("words", [("--help",), ("clean", "--help")])
def test_help_takes_less_than_a_third_of_a_second_of_cpu(words: tuple[str, ...]) -> None:
    assert min(cpu_seconds(*words) for _ in range(3)) < 0.3


def test_help_names_every_verb_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {verb} " in shown for verb in VERBS.commands)
    assert "exit codes: 0 done, 1 some cases failed" in shown


@pytest.mark.parametrize("verb", VERBS.commands)
def test_every_verb_explains_every_argument(verb: str) -> None:
    command = VERBS.commands[verb]
    records = [parameter.to_info_dict() for parameter in command.params]
    assert command.help
    assert all(record["help"] for record in records)
    assert "--json" in {name for record in records for name in record["opts"]}


def test_the_verbs_of_the_manual_exist() -> None:
    wanted = {"ingest", "simulate", "check", "plan", "clean", "status", "verify", "undo", "score"}
    assert wanted | {"export", "demo", "rank", "replay", "version", "warp"} == set(VERBS.commands)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["calen"], "No such command 'calen'. Did you mean 'clean'?"),
        (["clean", "--sett", "a=1"], "No such option '--sett'. Did you mean '--set'?"),
        (["status", "r", "--jsno=1"], "No such option '--jsno'. Did you mean '--json'?"),
        (["version", "extra"], "Got unexpected extra argument (extra)"),
        (["--jsno"], "No such option '--jsno'."),
    ],
)
def test_a_mistyped_word_is_answered_with_the_nearest(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert says in err
    assert not out


@pytest.mark.parametrize("words", [["score", "a", "--label", "x"], ["ingest"], ["undo"]])
def test_a_missing_argument_is_a_usage_error(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: Missing ")
    assert f"See `raysegclean {words[0]} --help`." in told


def test_no_words_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "\nRuns:\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "found"), [(["cl"], "clean"), (["clean", "--s"], "--set"), (["undo", "--"], "--case")]
)
def test_a_shell_completes_verbs_and_options(words: list[str], found: str) -> None:
    env = os.environ | {
        "PYTHONPATH": str(ROOT),
        "_RAYSEGCLEAN_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(["raysegclean", *words]),
        "COMP_CWORD": str(len(words)),
    }
    command = [sys.executable, "-m", "raysegclean"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert f"plain,{found}\n" in shown.stdout


def test_version_is_the_same_as_verb_and_as_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    text = capsys.readouterr().out
    assert main(["version"]) == 0
    assert capsys.readouterr().out == text
    assert main(["version", "--json"]) == 0
    assert {"raysegclean", "torch", "ray"} <= set(json.loads(capsys.readouterr().out))


@pytest.mark.parametrize(("failed", "code"), [([], 0), ([{"case": "c1", "error": "bad"}], 1)])
def test_clean_hands_the_config_on_and_its_report_decides_the_exit_code(
    pipeline: types.ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    failed: list[dict[str, Any]],
    code: int,
) -> None:
    seen = []
    pipeline.clean = lambda config, _: seen.append(config) or Report(failed=failed)  # type: ignore[attr-defined]
    path = tmp_path / "clean.yaml"
    path.write_text(CONFIG)
    assert main(["clean", str(path), "--set", "train.steps=5", "--set", "label=liver"]) == code
    assert (seen[0].train.steps, seen[0].label, seen[0].output.label) == (5, "liver", "liver_clean")
    assert ("bad" in capsys.readouterr().out) == bool(failed)


def test_clean_without_a_config_prepares_and_cleans_the_phantom(
    pipeline: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    pipeline.clean = lambda config, _: seen.append(config.archive) or Report()  # type: ignore[attr-defined]
    demo = types.ModuleType("raysegclean.interface.demo")
    demo.prepare_archive = lambda folder: seen.append(f"prepared {folder}")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "raysegclean.interface.demo", demo)
    assert main(["clean"]) == 0
    assert seen == ["prepared demo/archive", "demo/archive"]


def test_an_unfit_environment_is_3_and_goes_to_stderr(
    pipeline: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    def status(uri: str) -> None:
        raise UnfitEnvironment(f"{uri} cannot be read")

    pipeline.status = status  # type: ignore[attr-defined]
    assert main(["status", "s3://b/r"]) == 3
    assert capsys.readouterr() == ("", "error: s3://b/r cannot be read\n")


def test_a_defect_is_not_mistaken_for_failed_cases(
    pipeline: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.verify = partial(divmod, 1)  # type: ignore[attr-defined]
    assert main(["verify", "r"]) == 70
    assert "TypeError" in capsys.readouterr().err


def test_an_error_of_the_users_own_code_is_told_as_theirs(
    pipeline: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.verify = lambda _: 1 / 0  # type: ignore[attr-defined]
    assert main(["verify", "r"]) == 2
    told = capsys.readouterr().err
    assert "ZeroDivisionError" in told
    assert f"code of your own, {Path(__file__)}, line" in told


def test_undo_passes_what_to_take_back(pipeline: types.ModuleType) -> None:
    seen = []
    pipeline.undo = lambda *words, events: seen.append(words) or Report()  # type: ignore[attr-defined]
    assert main(["undo", "r", "--case", "c1", "--class", "3", "--reason", "offset"]) == 0
    assert main(["undo", "r"]) == 0
    assert seen == [("r", "c1", "3", "offset"), ("r", None, None, None)]


def test_json_goes_to_stdout_and_nothing_else(
    pipeline: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.status = lambda _: {"status": "running", "share": float("nan")}  # type: ignore[attr-defined]
    assert main(["status", "r", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"status": "running", "share": None}
    assert not err


def test_a_wrong_config_is_2_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    path = tmp_path / "clean.yaml"
    path.write_text(CONFIG + "train:\n  stpes: 5\n")
    job = subprocess.run(
        [sys.executable, "-X", "importtime", str(JOB), str(path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=60,
    )
    assert job.returncode == 2
    assert f"error: {path}:5: train.stpes is not a setting. Did you mean train.steps?" in job.stderr
    assert " torch\n" not in job.stderr
    assert " ray\n" not in job.stderr


@pytest.fixture
def nifti_pairs(tmp_path: Path) -> Path:
    """Three small cases, and an image without a label."""
    rng = np.random.default_rng(3)
    affine = np.diag([0.8, 0.8, 2.5, 1.0])
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for name in ("p1_a", "p1_b", "p2_a", "p3_a"):
        image = rng.integers(-1000, 1000, (20, 18, 9)).astype(np.int16)
        label = np.zeros(image.shape, np.uint8)
        label[4:12, 5:11, 2:6] = 1
        nib.save(nib.Nifti1Image(image, affine), tmp_path / "images" / f"{name}.nii.gz")
        if name != "p3_a":
            nib.save(nib.Nifti1Image(label, affine), tmp_path / "labels" / f"{name}.nii.gz")
    return tmp_path


def test_labels_go_in_are_checked_and_come_out_the_same(
    nifti_pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels, archive, out = (
        str(nifti_pairs / name) for name in ("images", "labels", "archive", "out")
    )
    regex = ["--patient-regex", "(p[0-9]+)_"]
    assert main(["ingest", images, labels, archive, "--label", "organs", *regex]) == 1
    said = capsys.readouterr().out
    assert "written: 3" in said
    assert "p3_a" in said
    assert main(["check", archive, "--label", "organs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cases"] == 3
    assert main(["export", archive, out, "--label", "organs"]) == 0
    for path in sorted((nifti_pairs / "labels").iterdir()):
        before, after = nib.load(path), nib.load(Path(out) / path.name)
        assert np.array_equal(np.asanyarray(before.dataobj), np.asanyarray(after.dataobj))
        assert np.array_equal(before.affine, after.affine)
    assert main(["check", archive, "--label", "liver"]) == 2
    noisy = str(nifti_pairs / "noisy")
    noise = ["--noise", "boundary", "--fraction", "1", "--seed", "1", "--param", "n_max=1"]
    assert main(["simulate", archive, noisy, "--label", "organs", *noise]) == 0
    assert "corrupted: 3" in capsys.readouterr().out.replace("  ", " ")
    scored = ["score", noisy, "--label", "organs", "--truth", "organs_truth"]
    assert main([*scored, "--given", "organs", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert all(0 < row["dice"] < 1 and row["change"]["harm"] == 0 for row in rows)
    assert main(scored) == 0
    assert "hd95_mm" in capsys.readouterr().out


def test_one_labelled_ct_becomes_an_archive_with_a_mixture_of_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    label = np.zeros((24, 24, 16), np.uint8)
    label[4:20, 4:20] = np.where(np.arange(16) < 8, 5, 7)
    for name, array in (("ct", label.astype(np.int16) * 20), ("organs", label)):
        nib.save(nib.Nifti1Image(array, np.diag([2.0, 2, 3, 1])), tmp_path / f"{name}.nii.gz")
    (tmp_path / "groups.yaml").write_text("upper: 7\nlower: [5, 6]\n")
    (tmp_path / "mix.yaml").write_text("gone: {noise: drop, share: 0.5}\nmirror: {share: 0.25}\n")
    ct, organs, groups, mix, clean, noisy = (
        str(tmp_path / name)
        for name in ("ct.nii.gz", "organs.nii.gz", "groups.yaml", "mix.yaml", "clean", "noisy")
    )
    warp = ["warp", ct, organs, clean, "--label", "organs", "--cases", "4", "--groups", groups]
    assert main(warp) == 0
    simulate = ["simulate", clean, noisy, "--label", "organs"]
    assert main([*simulate, "--mix", mix]) == 0
    assert "corrupted: 3" in capsys.readouterr().out.replace("  ", " ")
    assert sorted(one["kind"] for one in load_simulated(Archive.open(noisy)).values()) == [
        *("gone", "gone", "mirror")
    ]
    assert main([*simulate, "--mix", mix, "--noise", "drop"]) == main(simulate) == 2
    assert capsys.readouterr().err.count("--noise or --mix, and not both") == 2
    (tmp_path / "groups.yaml").write_text("upper: liver\n")
    assert main(warp) == 2
    assert "groups, upper: expected whole numbers" in capsys.readouterr().err


def test_an_archive_without_cases_and_a_label_that_none_has_are_2(
    nifti_pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels, archive, none = (
        str(nifti_pairs / name) for name in ("images", "labels", "archive", "none")
    )
    assert main(["export", none, str(nifti_pairs / "out"), "--label", "organs"]) == 2
    noise = ["--label", "organs", "--noise", "shift"]
    assert main(["simulate", none, str(nifti_pairs / "noisy"), *noise]) == 2
    assert capsys.readouterr().err.count("no case here") == 2
    assert not (nifti_pairs / "noisy").exists()
    ingest = ["ingest", images, labels, archive, "--label", "organs"]
    (nifti_pairs / "expert").mkdir()
    shutil.copy(nifti_pairs / "labels" / "p1_a.nii.gz", nifti_pairs / "expert")
    assert main([*ingest, "--add-label", "expert", str(nifti_pairs / "expert")]) == 1
    score = ["score", archive, "--label", "organs", "--truth"]
    assert main([*score, "expert"]) == 1
    assert main([*score, "typo"]) == 2


def test_a_label_that_is_added_twice_is_2_and_nothing_is_written(
    nifti_pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels, archive = (str(nifti_pairs / n) for n in ("images", "labels", "archive"))
    ingest = ["ingest", images, labels, archive, "--label", "organs"]
    assert main([*ingest, *["--add-label", "expert", labels] * 2]) == 2
    assert "--add-label expert is given twice" in capsys.readouterr().err
    assert main([*ingest, "--add-label", "organs", labels]) == 2
    assert not (nifti_pairs / "archive").exists()


STOPPABLE = """
import signal, sys, time, types
# A shell starts what runs in its background with this signal ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
fake = types.ModuleType("raysegclean.runs.pipeline")
def clean(config, events):
    print("ready", flush=True)
    time.sleep(60)
fake.clean = clean
sys.modules["raysegclean.runs.pipeline"] = fake
from raysegclean.interface.cli import main
sys.exit(main(["clean", "clean.yaml", "--set", "cases=a b"]))
"""


@contextmanager
def a_running_clean(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    (folder / "clean.yaml").write_text(CONFIG)
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPABLE],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_says_how_to_resume(tmp_path: Path, signum: signal.Signals) -> None:
    with a_running_clean(tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signum)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signum
    assert "raysegclean clean clean.yaml --set 'cases=a b'" in err
    assert "Traceback" not in err


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m raysegclean version | head -c 0; echo ${{PIPESTATUS[0]}}"
    out = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert "Traceback" not in out.stderr


def test_results_read_well_as_text() -> None:
    value = {"run": "r", "ok": True, "dice": 0.98765, "cases": [{"case": "a", "vox": 5}]}
    assert as_text(value).splitlines() == [
        "run:  r",
        "ok:   yes",
        "dice: 0.9877",
        "cases:",
        "  case  vox",
        "  a       5",
    ]
    sizes = {"peak_memory_bytes": 2_130_000_000, "voxels": 12_345_678, "tile_zyx": (8, 16, 16)}
    assert as_text(sizes).splitlines() == [
        "peak_memory_bytes: 2.13 GB",
        "voxels:            12,345,678",
        "tile_zyx:          [8, 16, 16]",
    ]
    nested = [{"case": "a", "empty": None, "change": {"harm": 0.5}}, {"case": "b", "change": None}]
    assert as_text(nested).splitlines() == ["case  harm", "a      0.5", "b        -"]
    assert as_text([]) == as_text({}) == ""
    assert as_text(["a", "b"]) == "a\nb"


def test_results_are_strict_json() -> None:
    value = {"path": Path("a"), "inf": float("inf"), "of": (1, 2), "set": {"b", "a"}, 3: Report()}
    assert json.loads(as_json(value)) == {
        "path": "a",
        "inf": None,
        "of": [1, 2],
        "set": ["a", "b"],
        "3": {"run": "r", "failed": []},
    }
