"""The shape of the code: which way imports run, how long things get, what may be imported early."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from raysegclean.dependencies import PACKAGES

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "raysegclean"
FILES = sorted(PACKAGE.rglob("*.py")) + sorted((ROOT / "jobs").glob("*.py"))
CODE = [*FILES, *sorted((ROOT / "benchmarks").glob("*.py"))]
NAMES = [str(path.relative_to(ROOT)) for path in FILES]

# A room may import itself and the rooms above it in this list; rooms on one line do not know each
# other. What it may import of them stands in their `DOOR`.
LEVELS = [
    {"errors", "events", "names", "identity", "render", "__init__"},
    {"dependencies"},
    {"voxels"},
    {"evidence"},
    {"store"},
    {"evaluate", "policy", "qc", "nets"},
    {"simulate", "methods"},
    {"config"},
    {"planning"},
    {"cluster"},
    {"runs"},
    {"interface"},
    {"__main__"},
    {"jobs"},
]
ROOMS = sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists())
LARGEST_SHARE = 0.2
HEAVY = {"torch", "ray", "numpy", "scipy", "zarr", "tensorstore", "obstore", "pyarrow", "pydantic"}
ONLY_IN = {
    "ray": {"cluster"},
    "tensorstore": {"store"},
    "obstore": {"store"},
    "zarr": {"store"},
    "nibabel": {"store"},
    "matplotlib": {"interface"},
}
MAX_FUNCTION_LINES = 70
MAX_FILE_LINES = 500
MAX_PARAMETERS = 8

every_file = pytest.mark.parametrize("path", FILES, ids=NAMES)


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    if parts[0] in ("jobs", "benchmarks"):
        return parts[0]
    return parts[1].removesuffix(".py")


def level_of(room: str) -> int:
    for level, rooms in enumerate(LEVELS):
        if room in rooms:
            return level
    raise AssertionError(f"{room} has no place in LEVELS: say which rooms it may import")


def imports_of(path: Path) -> Iterator[tuple[str, int]]:
    """Yield every imported module of a file, inside functions too, with its line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module is not None
            yield node.module, node.lineno


def functions_of(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@every_file
def test_imports_run_one_way(path: Path) -> None:
    mine = room_of(path)
    # The page of the package names the verbs, which are only imported when they are used.
    level = len(LEVELS) if path == PACKAGE / "__init__.py" else level_of(mine)
    wrong = []
    for module, line in imports_of(path):
        parts = module.split(".")
        if parts[0] != "raysegclean":
            continue
        room = parts[1] if len(parts) > 1 else "__init__"
        if room != mine and level_of(room) >= level:
            wrong.append(f"{path.name}:{line} imports {module}")
    assert not wrong, f"{mine} must not know: {wrong}"


@every_file
def test_rooms_are_entered_by_their_doors(path: Path) -> None:
    mine = room_of(path)
    wrong = []
    for module, line in imports_of(path):
        parts = module.split(".")
        if parts[0] == "raysegclean" and len(parts) > 2 and parts[1] != mine:
            inner = ".".join(parts[2:])
            if inner not in import_module(f"raysegclean.{parts[1]}").DOOR:
                wrong.append(f"{path.name}:{line} imports {module}")
    assert not wrong, f"not in the DOOR of their room: {wrong}"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_names_its_files_and_every_door_is_used(room: str) -> None:
    page = import_module(f"raysegclean.{room}")
    folder = PACKAGE / room
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    named = set(re.findall(r"^- `(\w+)`:", page.__doc__ or "", re.MULTILINE))
    assert named == files, f"{room}: the page names {named ^ files} otherwise than the folder"
    outside = [path for path in CODE if room_of(path) != room]
    used = {module for path in outside for module, _ in imports_of(path)}
    unused = [door for door in page.DOOR if f"raysegclean.{room}.{door}" not in used]
    assert not unused, f"{room}: nobody enters by {unused}"


def test_no_room_holds_more_than_a_fifth() -> None:
    lines = {
        room: sum(len(path.read_text().splitlines()) for path in (PACKAGE / room).rglob("*.py"))
        for room in ROOMS
    }
    large = {
        room: count for room, count in lines.items() if count > LARGEST_SHARE * sum(lines.values())
    }
    assert not large, f"of {sum(lines.values())} lines: {large}"


@every_file
def test_third_parties_stay_in_their_rooms(path: Path) -> None:
    mine = room_of(path)
    tops = {module.split(".")[0]: line for module, line in imports_of(path)}
    wrong = {top: line for top, line in tops.items() if mine not in ONLY_IN.get(top, {mine})}
    assert not wrong, f"{path}: {wrong} belong to {[ONLY_IN[top] for top in wrong]}"


@every_file
def test_functions_and_files_stay_readable(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= MAX_FILE_LINES, f"{path}: {lines} lines, split it"
    for function in functions_of(path):
        where = f"{path}:{function.lineno} {function.name}"
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        assert length <= MAX_FUNCTION_LINES, f"{where}: {length} lines"
        arguments = function.args
        names = [
            argument.arg
            for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
            if argument.arg not in ("self", "cls")
        ]
        assert len(names) <= MAX_PARAMETERS, f"{where}: {len(names)} parameters"


@every_file
def test_everything_public_is_listed_and_documented(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{path}: no module docstring"
    body = [node for node in tree.body if not isinstance(node, ast.Expr)]
    listed = [
        node
        for node in body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        and "__all__" in ast.unparse(node).split("=")[0]
    ]
    assert listed or not body or path.name == "__init__.py", f"{path}: no __all__"
    for owner in [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))]:
        for node in owner.body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            if not node.name.startswith("_") and not getattr(owner, "name", "").startswith("_"):
                assert ast.get_docstring(node), f"{path}:{node.lineno} {node.name}: no docstring"


@every_file
def test_all_names_in_all_exist(path: Path) -> None:
    tree = ast.parse(path.read_text())
    defined = {
        name
        for node in tree.body
        for name in (
            [node.name]
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            else [
                part.id if isinstance(part, ast.Name) else part.asname or part.name
                for part in ast.walk(node)
                if isinstance(part, ast.Name | ast.alias)
            ]
        )
    }
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            missing = set(ast.literal_eval(node.value)) - defined
            assert not missing, f"{path}: __all__ names {missing}"


def test_what_trains_or_measures_in_a_test_is_held_to_any_cpu() -> None:
    unmarked = [
        str(path)
        for room in ("nets", "methods", "planning")
        for path in sorted((ROOT / "tests" / room).glob("test_*.py"))
        if re.search(r"\.step\(|trainer_of\(|VmHWM", text := path.read_text())
        and "mark.numeric" not in text
    ]
    assert not unmarked, f"mark it `numeric`, see CONTRIBUTING.md: {unmarked}"


def test_the_job_stays_under_forty_lines() -> None:
    assert len((ROOT / "jobs" / "clean.py").read_text().splitlines()) < 40


def test_every_third_party_that_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[\[<>=]", item)[0].lower() for item in project["dependencies"]}
    brought_along = {"pandas"}  # by ray[data]
    optional = {"dynamic-network-architectures"}  # the extra nnunet
    owners = packages_distributions()
    for path in FILES:
        for module, line in imports_of(path):
            top = module.split(".")[0]
            if top in sys.stdlib_module_names or top == "raysegclean":
                continue
            names = {name.lower().replace("_", "-") for name in owners.get(top, [top])}
            assert names & (declared | brought_along | optional), (
                f"{path}:{line}: {top} is not declared"
            )
    assert {name.lower() for name in PACKAGES.values()} == declared
    for module, package in PACKAGES.items():
        assert package in owners[module]


def test_every_declared_dependency_has_an_exact_tested_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = (ROOT / "constraints.txt").read_text().lower().replace("_", "-").splitlines()
    pinned = {line.split("==")[0] for line in pins if "==" in line}
    assert "torch==2.13.0" in pins
    assert not [line for line in pins if " @ " in line or "/" in line], "a local path is pinned"
    for item in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        name = re.split(r"[\[<>=]", item)[0].lower()
        assert name in pinned, f"{name} is declared but not in constraints.txt"


@pytest.mark.parametrize(
    "module", ["raysegclean", "raysegclean.errors", "raysegclean.interface.cli"]
)
def test_the_front_door_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(out.stdout.split())


def test_config_needs_no_engine() -> None:
    code = "import sys, raysegclean.config.settings; print(*{n.split('.')[0] for n in sys.modules})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not (HEAVY - {"pydantic"}) & set(out.stdout.split())
