"""Numbers that decide outside of the default policy: none changes unnoticed.

Those of the policy have their own place and test (`policy/params.py`). The checks' and the papers'
stand where they are used; `pinned_numbers.json` holds them all. Whoever changes one shows first
what it does (a benchmark, a source, a stored case), says so where it stands, and pins it anew with
`python tests/test_numbers.py`.
"""

import ast
import json
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "raysegclean"
PINNED = Path(__file__).with_name("pinned_numbers.json")
DECIDING = ("qc", "methods", "policy/blending.py", "policy/corrector.py", "cluster/apply.py")
PLAIN = {-1, 0, 1, 2, 3}
"""Signs, ends of ranges, pairs, halves and axes: they decide nothing."""


def test_every_number_is_the_one_that_is_pinned() -> None:
    found, pinned = _numbers(), json.loads(PINNED.read_text())
    changed = [
        f"{place}: {pinned.get(place)} became {found.get(place)}"
        for place in sorted(found.keys() | pinned.keys())
        if found.get(place) != pinned.get(place)
    ]
    assert not changed, "show what it rests on, then pin it anew:\n" + "\n".join(changed)


def test_a_number_that_changes_is_told_with_its_place() -> None:
    text = "LIMIT = 0.3\nclass Params:\n    least: int = 8\ndef f(a=5):\n    return a > 40"
    found = dict(_places(ast.parse(text)))
    assert found == {"LIMIT": [0.3], "Params.least": [8], "f": [5, 40]}


def _numbers() -> dict[str, list[float]]:
    """Return the numbers by file and constant, field or function."""
    found: dict[str, list[float]] = {}
    for part in DECIDING:
        place = SOURCE / part
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            name = path.relative_to(SOURCE).as_posix()
            tree = ast.parse(path.read_text())
            found |= {f"{name} {where}": values for where, values in _places(tree)}
    return found


def _places(tree: ast.AST, inside: str = "") -> Iterator[tuple[str, list[float]]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield from _places(node, f"{inside}{node.name}.")
            continue
        name = _name(node)
        values = [one.value for one in ast.walk(node) if _decides(one)]
        if name and values:
            yield inside + name, values


def _name(node: ast.AST) -> str:
    if isinstance(node, ast.FunctionDef):
        return node.name
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return ", ".join(ast.unparse(one) for one in targets if one is not None)


def _decides(one: ast.AST) -> bool:
    plain = isinstance(one, ast.Constant) and type(one.value) in (int, float)
    return plain and one.value not in PLAIN


if __name__ == "__main__":
    lines = (f" {json.dumps(place)}: {json.dumps(values)}" for place, values in _numbers().items())
    PINNED.write_text("{\n" + ",\n".join(lines) + "\n}\n")
