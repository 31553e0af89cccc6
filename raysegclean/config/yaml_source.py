"""Plain values from a YAML file or the command line, each with the place where it was written.

A wrong setting is only quickly mended when the message names its line, and YAML libraries forget
lines once the values are built. So the values are built here, from the nodes, in a small and
predictable subset: mappings, lists and scalars. `true`, `false`, `null`, whole and decimal numbers
(`1e-3` too) are what they look like; everything else, `001`, `no`, `12:30` and dates among them, is
text, because case ids look like that. Keys are text. No tags, no merge keys, and nothing is ever
constructed but dict, list, str, int, float, bool and None.

Not guaranteed: comments and order are not kept, and an alias is a copy.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from raysegclean.errors import ConfigError

__all__ = ["KeyPath", "Source", "dotted", "parse_scalar", "parse_settings", "read_yaml"]

KeyPath = tuple[str | int, ...]

_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_DECIMAL = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]+")
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_TEXT_TAG = "tag:yaml.org,2002:str"
_MAX_DEPTH = 32
_MAX_NODES = 1_000_000


@dataclass
class Source:
    """Values as plain Python, the place of every key, and what could not be read.

    `places` maps a path such as `("train", "steps")` to "clean.yaml:7" or "--set".
    """

    values: dict[str, Any]
    name: str
    places: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def where(self, path: KeyPath) -> str:
        """Return the place of `path`, or of its nearest parent that somebody wrote."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.places:
                return self.places[path[:end]]
        return self.name

    def get(self, path: KeyPath) -> Any:
        """Return the value at `path`; KeyError, IndexError or TypeError when there is none."""
        value: Any = self.values
        for key in path:
            value = value[key]
        return value

    def has(self, path: KeyPath) -> bool:
        """Return whether there is a value at `path`, None included."""
        try:
            self.get(path)
        except (KeyError, IndexError, TypeError):
            return False
        return True

    def put(self, path: Sequence[str], value: Any, place: str) -> None:
        """Set the value at `path`, making the mappings on the way; a later put wins."""
        node = self.values
        for end, key in enumerate(path[:-1], start=1):
            if not isinstance(node.get(key), dict):
                node[key] = {}
                self.places[tuple(path[:end])] = place
            node = node[key]
        node[path[-1]] = value
        mine = tuple(path)
        self.places = {k: v for k, v in self.places.items() if k[: len(mine)] != mine}
        self.places[mine] = place


def dotted(path: KeyPath) -> str:
    """Return `train.patch_zyx[1]` for `("train", "patch_zyx", 1)`."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
    return text.removeprefix(".")


def parse_scalar(text: str) -> Any:
    """Return the value that an unquoted YAML scalar stands for.

    >>> [parse_scalar(text) for text in ("3", "1e-3", "true", "001", "no", "~")]
    [3, 0.001, True, '001', 'no', None]
    """
    if text in _WORDS:
        return _WORDS[text]
    if _WHOLE.fullmatch(text):
        return int(text)
    if _DECIMAL.fullmatch(text) and not _LEADING_ZERO.fullmatch(text):
        return float(text)
    return text


def read_yaml(path: Path) -> Source:
    """Read one YAML document whose top level is a mapping.

    Raises ConfigError when the file is missing, is not UTF-8, or is not YAML. What is wrong inside
    (a key given twice, a tag) is collected in `problems`, so that it is shown with the rest.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        message = f"{path}: cannot read it: {error.strerror}. Start from examples/clean.yaml."
        raise ConfigError(message) from error
    except UnicodeDecodeError as error:
        message = f"{path}: the config is not UTF-8 text (byte {error.start}). Save it as UTF-8."
        raise ConfigError(message) from error
    return _parse(text, str(path))


def parse_settings(settings: Sequence[str], source: Source) -> None:
    """Lay `KEY.KEY=VALUE` settings over `source`; VALUE is YAML. Problems are collected there."""
    for setting in settings:
        key, separator, text = setting.partition("=")
        path = key.strip().split(".")
        if not separator or not all(path):
            source.problems.append(f"--set {key}: expected KEY=VALUE, as --set train.steps=500")
            continue
        try:
            value = _parse(f"value: {text}", f"--set {key}", lines=False)
        except ConfigError as error:
            source.problems.append(str(error))
            continue
        source.problems.extend(value.problems)
        source.put(path, value.values["value"], "--set")


def _parse(text: str, name: str, *, lines: bool = True) -> Source:
    source = Source(values={}, name=name)
    try:
        # BaseLoader resolves nothing and constructs nothing: all scalars stay text.
        root = yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{name}:{mark.line + 1}" if mark is not None and lines else name
        reason = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{place}: not valid YAML: {reason}") from error
    if root is None:
        return source
    value = _Builder(source, lines=lines).build(root, ())
    if isinstance(value, dict):
        source.values = value
    else:
        source.problems.append(f"{name}: expected settings as `key: value` lines, got {value!r}")
    return source


@dataclass
class _Builder:
    source: Source
    lines: bool

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        """Return the plain value of `node` and note where it stands."""
        place = self._place(node)
        self.source.places.setdefault(path, place)
        if len(path) > _MAX_DEPTH or len(self.source.places) > _MAX_NODES:
            # An alias inside its own anchor never ends.
            raise ConfigError(f"{place}: nested too deep or too large. Write it without aliases.")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*path, i)) for i, item in enumerate(node.value)]
        if not isinstance(node, yaml.ScalarNode) or node.tag != _TEXT_TAG:
            self.source.problems.append(f"{place}: {dotted(path)}: the tag {node.tag} is not read")
            return None
        text = str(node.value)
        return parse_scalar(text) if node.style is None else text

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            place = self._place(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                self.source.problems.append(f"{place}: {dotted(path)}: a key must be plain text")
                continue
            here = (*path, str(key_node.value))
            if key_node.value in values:
                first = self.source.places[here]
                self.source.problems.append(f"{place}: {dotted(here)} is already set at {first}")
                continue
            self.source.places[here] = place
            values[str(key_node.value)] = self.build(value_node, here)
        return values

    def _place(self, node: yaml.Node) -> str:
        return f"{self.source.name}:{node.start_mark.line + 1}" if self.lines else self.source.name
