"""`make` on a fresh machine: which Python makes the environment, and what is said where none can.

The interpreters are stubs, so that the test needs no second Python and installs nothing.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Makes an environment whose pip does nothing, and says who made it.
WORKS = """#!/bin/sh
case "$1" in
-c) exit 0 ;;
-m) mkdir -p "$3/bin"; echo "${0##*/}" > "$3/made-by"; ln -s /bin/true "$3/bin/pip" ;;
esac
"""
# As Debian's without python3-venv, or pyenv's stub of a version that is not chosen.
FAILS = "#!/bin/sh\nexit 127\n"

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    for tool in ("sh", "mkdir", "ln", "touch", "env", "grep"):
        (tmp_path / "path").mkdir(exist_ok=True)
        (tmp_path / "path" / tool).symlink_to(shutil.which(tool) or f"/bin/{tool}")
    return tmp_path


def make_venv(checkout: Path, pythons: dict[str, str], *more: str) -> subprocess.CompletedProcess:
    for name, text in pythons.items():
        (checkout / "path" / name).write_text(text)
        (checkout / "path" / name).chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "MAKEFLAGS")}
    return subprocess.run(
        [shutil.which("make") or "make", "venv", "TORCH_INDEX=none", *more],
        cwd=checkout,
        env=environment | {"PATH": str(checkout / "path")},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("pythons", "chosen"),
    [
        ({"python3.11": WORKS, "python3.12": WORKS, "python3.13": WORKS}, "python3.11"),
        ({"python3.12": WORKS, "python3.13": WORKS}, "python3.12"),
        ({"python3.13": WORKS}, "python3.13"),
        ({"python3.11": FAILS, "python3.12": FAILS, "python3.13": WORKS}, "python3.13"),
    ],
    ids=["all", "no 3.11", "3.13 alone", "two that cannot"],
)
def test_the_first_python_that_can_makes_the_environment(checkout, pythons, chosen) -> None:
    done = make_venv(checkout, pythons)
    assert done.returncode == 0, done.stderr
    assert (checkout / ".venv" / "made-by").read_text().strip() == chosen


def test_a_named_python_is_taken_and_no_other(checkout: Path) -> None:
    done = make_venv(checkout, {"python3.11": WORKS, "mine": WORKS}, "PYTHON=mine")
    assert done.returncode == 0, done.stderr
    assert (checkout / ".venv" / "made-by").read_text().strip() == "mine"


def test_without_a_python_make_says_what_it_looked_for_and_what_to_do(checkout: Path) -> None:
    done = make_venv(checkout, {"python3.12": FAILS})
    assert done.returncode != 0
    assert "python3.11 python3.12 python3.13" in done.stderr
    assert "Install Python 3.11" in done.stderr
    assert not (checkout / ".venv").exists()
