"""A Python that lacks a package: which one, what to do, and exit code 3, at every verb."""

import subprocess
import sys
from pathlib import Path

import pytest
from ray.exceptions import RayTaskError

from raysegclean.dependencies import PACKAGES, lacking
from raysegclean.errors import ConfigError
from raysegclean.interface.cli import VERBS
from raysegclean.nets.networks import build_network
from raysegclean.nets.unet import NetworkSpec

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "archive: a\nlabel: organs\nrun: r\n"
WORDS = {
    "check": ["a", "--label", "x"],
    "clean": ["clean.yaml"],
    "demo": [],
    "export": ["a", "b", "--label", "x"],
    "ingest": ["a", "b", "c", "--label", "x"],
    "plan": ["clean.yaml"],
    "rank": ["r"],
    "replay": ["r"],
    "score": ["a", "--label", "x", "--truth", "y"],
    "warp": ["a.nii", "b.nii", "c", "--label", "x"],
    "simulate": ["a", "b", "--label", "x", "--noise", "drop"],
    "status": ["r"],
    "undo": ["r"],
    "verify": ["r"],
}
# Python raises for a module that is None what it raises for one that is not there.
WITHOUT = """
import sys
sys.modules[sys.argv[1]] = None
from raysegclean.__main__ import main
sys.exit(main(sys.argv[2:]))
"""


def without(module: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT, module, *words]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=cwd, env={"PYTHONPATH": str(ROOT)}
    )


def assert_told(done: subprocess.CompletedProcess[str], package: str, python: str) -> None:
    assert done.returncode == 3, done.stderr
    assert f"the Python {python} lacks the package {package} " in done.stderr
    assert f"{python} -m pip install" in done.stderr
    assert "defect" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("verb", sorted(set(VERBS.commands) - {"version"}))
def test_every_verb_tells_what_is_lacking(verb: str, tmp_path: Path) -> None:
    (tmp_path / "clean.yaml").write_text(CONFIG)
    module = "pyarrow" if verb in ("rank", "status") else "numpy"  # all that these need
    assert_told(without(module, verb, *WORDS[verb], cwd=tmp_path), module, sys.executable)


@pytest.mark.parametrize("module", ["yaml", "scipy"])
def test_a_package_is_named_as_it_is_installed(module: str, tmp_path: Path) -> None:
    (tmp_path / "clean.yaml").write_text(CONFIG)
    done = without(module, "clean", "clean.yaml", cwd=tmp_path)
    assert_told(done, PACKAGES[module], sys.executable)


def test_what_a_package_needs_itself_is_told_in_the_same_way(tmp_path: Path) -> None:
    (tmp_path / "clean.yaml").write_text(CONFIG)
    done = without("pydantic_core", "clean", "clean.yaml", cwd=tmp_path)
    assert_told(done, "pydantic_core", sys.executable)


@pytest.mark.parametrize("words", [["-m", "raysegclean", "status", "r"], ["jobs/clean.py"]])
def test_a_python_without_any_package_says_so(words: list[str], tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    python = str(tmp_path / "bare" / "bin" / "python")
    done = subprocess.run([python, *words], capture_output=True, text=True, check=False, cwd=ROOT)
    assert_told(done, "click", python)


def test_what_only_code_of_a_user_imports_keeps_its_own_message(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import of_no_package\n")
    (tmp_path / "clean.yaml").write_text(CONFIG)
    done = without("nothing", "plan", "clean.yaml", "--set", "method=mine:METHOD", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "method: 'mine:METHOD' cannot be loaded" in done.stderr
    assert "No module named 'of_no_package'" in done.stderr
    assert "lacks" not in done.stderr


def test_a_name_in_the_config_that_is_no_module_is_no_lack() -> None:
    for name in ("of_no_package:build", "torch.of_no_module:build"):
        with pytest.raises(ConfigError) as caught:
            build_network(NetworkSpec(classes=2, name=name))
        assert lacking(caught.value) is None


def test_a_package_that_a_worker_alone_lacks_is_told_of_the_worker() -> None:
    missed = ModuleNotFoundError("No module named 'edt'", name="edt")
    told = str(lacking(RayTaskError("apply", "", missed).as_instanceof_cause()))
    assert "the Python of a worker lacks the package edt" in told
    assert "every node" in told


def test_other_errors_are_no_lack() -> None:
    assert lacking(ValueError("x")) is None
    assert (
        lacking(ModuleNotFoundError("No module named 'raysegclean.x'", name="raysegclean.x"))
        is None
    )
