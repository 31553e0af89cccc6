"""What each verb may bring into the process: the budget of its CPU time, whatever the machine."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from raysegclean.store.archive import Archive, write_case
from raysegclean.store.index import load_index
from raysegclean.store.run import RunFolder

ROOT = Path(__file__).resolve().parents[2]
NEVER = {"sklearn", "matplotlib", "ray", "scipy.optimize", "scipy.stats"}
"""What only a run needs; together some six seconds."""
CODE = """
import sys
from raysegclean.interface.cli import main
code = main(sys.argv[1:])
print("imported", *sys.modules)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight cases in `archive` and its index, a config, and a run that has begun."""
    place = tmp_path_factory.mktemp("imports")
    archive = Archive.open(place / "archive")
    rng = np.random.default_rng(0)
    for number in range(8):
        image = rng.normal(0, 100, (8, 16, 16)).astype(np.int16)
        label = (image > 0).astype(np.uint8)
        write_case(archive, f"c{number}", image, {"organs": label}, spacing_mm=(2.0, 1.0, 1.0))
    load_index(archive)  # pyarrow imports pandas to write a table, not to read one
    (place / "clean.yaml").write_text("archive: archive\nlabel: organs\nrun: new\ngroup: case\n")
    RunFolder(str(place / "run")).freeze({"config": {}})
    return place


@pytest.mark.parametrize(
    ("words", "code", "not_imported"),
    [
        ("version", 0, {"numpy", "pydantic"}),
        ("clean clean.yaml --set train.stpes=1", 2, {"numpy", "torch"}),
        ("status run", 0, {"pandas", "torch", "scipy", "tensorstore"}),
        ("plan clean.yaml", 0, {"pandas"}),
        ("verify run", 2, set()),
        ("export archive out --label organs", 0, {"torch", "pandas", "pydantic"}),
        ("score archive --label organs --truth organs", 0, {"torch", "pydantic"}),
        ("check archive --label organs", 0, {"torch", "pydantic"}),
        ("simulate archive noisy --label organs --noise shift", 0, {"torch"}),
    ],
)
def test_a_verb_imports_no_more_than_it_needs(
    place: Path, words: str, code: int, not_imported: set[str]
) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", CODE, *words.split()],
        capture_output=True,
        text=True,
        check=False,
        cwd=place,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(place)},
    )
    assert ended.returncode == code, ended.stderr
    told, *imported = ended.stdout.splitlines()[-1].split()
    assert told == "imported"
    assert not sorted((NEVER | not_imported) & set(imported))
