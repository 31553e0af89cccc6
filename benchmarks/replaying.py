"""Decides again on all stored evidence: writes docs/policy.md.

`python benchmarks/replaying.py` replays the default policy on the files of benchmarks/evidence that
`make bench-evidence` keeps, and tells what it does to clean cases (the floor) and to wrong ones
(recall), and what each rule is worth; `--numbers` also halves and doubles every number (minutes).
No network runs and no voxel is read; what needs voxels (the corrector, the guard against harm) is
not replayed.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow.parquet as pq
from cells import EVIDENCE, ROOT

from raysegclean.evidence.case_scores import CaseScore, Kind, scores_of
from raysegclean.policy import default
from raysegclean.policy.outlier_cases import CORRUPTION, find_groups
from raysegclean.policy.params import PolicyParams
from raysegclean.runs import replay
from raysegclean.runs.replay import Edits, edits_of

__all__ = ["NUMBERS_OFF", "PARTS_OFF", "Archive", "Outcome", "archives", "main", "replayed"]

PAGE = ROOT / "docs" / "policy.md"
KEPT = ("keep", "not judged", "review")
"""Edits that change no voxel."""
FAR = 1e9
NUMBERS_OFF: Mapping[str, Mapping[str, float]] = {
    "outlines off the centre": {"offset_sds": FAR},
    "two ways of drawing": {"min_way_separation": FAR},
    "rough outlines": {"min_rough_separation": FAR},
    "noisy groups": {"min_separation": FAR},
    "what is not learnt is not edited": {"min_agreement": 0.0, "min_lower_agreement": 0.0},
    "a shift is one of the whole outline": {"min_effect": 0.0},
    "a few odd cases are no way of drawing": {"min_shifted": 0.0},
    "odd cases leave their group": {"odd_sds": FAR},
    "a group fits the networks worse": {"min_corruption": 0.0},
}
"""Rule -> the numbers that switch it off."""


def _nowhere(scores: Sequence[Any], *_: Any) -> Any:
    return np.zeros(len(scores), np.bool_)


def _groups_but(evidence: str) -> Callable[..., Any]:
    return lambda *args: [group for group in find_groups(*args) if group.evidence != evidence]


Part = tuple[Any, str, Callable[..., Any]]
PARTS_OFF: Mapping[str, Part] = {
    "lacking classes are filled": (default, "forgotten", _nowhere),
    "classes elsewhere go to a person": (default, "elsewhere", _nowhere),
    "noisy groups by added candidates": (default, "find_groups", _groups_but(Kind.ADDED)),
    "noisy groups by removed candidates": (default, "find_groups", _groups_but(Kind.REMOVED)),
    "noisy groups by corruption": (default, "find_groups", _groups_but(CORRUPTION)),
    "outlines are blended": (replay, "with_blends", lambda _, decisions, *__: (decisions, {})),
}
"""Rule that no number switches off -> the module, the name in it, and what stands in for it."""


@dataclass(frozen=True)
class Archive:
    """The evidence of one run, and what is known to be wrong in its archive."""

    name: str
    rows: list[dict[str, Any]]

    @cached_property
    def scores(self) -> tuple[list[CaseScore], list[CaseScore]]:
        """The scores of given labels, and of trusted ones."""
        return scores_of(self.rows), scores_of(self.rows, "trusted")

    @property
    def kind(self) -> str:
        """How its labels are wrong."""
        return self.name.split(".")[1]

    @cached_property
    def counted(self) -> Mapping[str, bool]:
        """Case that counts -> whether its label is wrong."""
        return {row["case"]: row["noisy"] for row in self.rows if row["counted"]}


@dataclass(frozen=True)
class Outcome:
    """Cases of one archive: how many there are, and in how many a class is edited or reviewed."""

    edits: Edits
    clean: int
    clean_edited: int
    wrong: int
    wrong_edited: int
    wrong_reviewed: int


def archives(folder: Path = EVIDENCE) -> list[Archive]:
    """Return the evidence that is stored, by name."""
    return [
        Archive(path.stem, pq.read_table(path).to_pylist())
        for path in sorted(folder.glob("*.parquet"))
    ]


def replayed(archive: Archive, params: PolicyParams) -> Outcome:
    """Decide again, and hold the decisions against what is known."""
    edits = edits_of(*archive.scores, params)
    edited = _cases(edits, lambda edit: edit not in KEPT)
    reviewed = _cases(edits, lambda edit: edit == "review") - edited
    wrong = {case for case, is_wrong in archive.counted.items() if is_wrong}
    clean = set(archive.counted) - wrong
    counts = (clean, clean & edited, wrong, wrong & edited, wrong & reviewed)
    return Outcome(edits, *map(len, counts))


def _cases(edits: Edits, wanted: Any) -> set[str]:
    return {case for (case, _), edit in edits.items() if wanted(edit)}


def main(argv: Sequence[str] | None = None) -> int:
    """Replay everything and write the page."""
    options = _parser().parse_args(argv)
    stored = archives()
    usual = {one.name: replayed(one, PolicyParams()) for one in stored}
    lines = [_HEAD.format(count=len(stored)), *_table(usual), "", _RULES_HEAD]
    lines += [_compared(rule, stored, usual, off) for rule, off in NUMBERS_OFF.items()]
    lines += [_compared(rule, stored, usual, part=part) for rule, part in PARTS_OFF.items()]
    if options.numbers:
        lines += ["", _NUMBERS_HEAD, *_numbers_table(stored, usual)]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--numbers", action="store_true", help="halve and double every number")
    return parser


def _numbers_table(stored: list[Archive], usual: Mapping[str, Outcome]) -> Iterable[str]:
    for name, value in _numbers():
        for word, factor in (("halved", 0.5), ("doubled", 2.0)):
            other = _within(name, value, factor)
            if other is not None:
                label = f"`{name}` {word} ({other:g})"
                yield _compared(label, stored, usual, {name: other})


def _numbers() -> Iterable[tuple[str, float]]:
    usual = PolicyParams()
    return ((name, getattr(usual, name)) for name in type(usual).model_fields)


def _within(name: str, value: float, factor: float) -> float | None:
    """Return the number changed, a share half the way to 1; None where its range ends before."""
    changed = value * factor
    if factor > 1 and 0 < value < 1 and not name.endswith("_vox"):
        changed = (1 + value) / 2
    changed = round(changed) if isinstance(value, int) else changed
    try:
        _with({name: changed})
    except ValueError:
        return None
    return changed if changed != value else None


def _with(numbers: Mapping[str, float]) -> PolicyParams:
    return PolicyParams(**numbers)  # type: ignore[arg-type]


def _compared(
    what: str,
    stored: Iterable[Archive],
    usual: Mapping[str, Outcome],
    numbers: Mapping[str, float] | None = None,
    part: Part | None = None,
) -> str:
    """Return a row: decisions that change, and cases that are edited more, and less."""
    params = _with(numbers or {})
    decisions = clean = more = less = 0
    kinds = set()
    with ExitStack() as stack:
        if part is not None:
            stack.enter_context(patch.object(*part))
        for archive in stored:
            found, before = replayed(archive, params), usual[archive.name]
            changed = sum(found.edits[key] != edit for key, edit in before.edits.items())
            decisions += changed
            clean += found.clean_edited - before.clean_edited
            change = found.wrong_edited - before.wrong_edited
            more, less = more + max(0, change), less - min(0, change)
            if changed:
                kinds.add(archive.kind)
    where = ", ".join(sorted(kinds)) or "none"
    return f"| {what} | {decisions} | {clean:+d} | {more} | {less} | {where} |"


def _table(usual: Mapping[str, Outcome]) -> list[str]:
    return [
        f"| {name} | {one.clean} | {one.clean_edited} | {one.wrong} | {one.wrong_edited} | "
        f"{one.wrong_reviewed} |"
        for name, one in usual.items()
    ]


_HEAD = """\
# The default policy on stored evidence

Written by `make bench-policy` from {count} files of `benchmarks/evidence`, each of which holds what
the policy of one benchmark run read. Cases with a trusted label do not count. A case is edited
where a class of it is changed; what needs voxels (the corrector, the guard against harm) is not
replayed.

| evidence | clean cases | of them edited | wrong cases | of them edited | only reviewed |
|---|---|---|---|---|---|"""
_RULES_HEAD = """\
## What each rule is worth

Cases that are edited more or less than by default where a rule is off, and decisions (an edit of
one class of one case) that differ. A rule that no stored evidence needs is there by argument alone.

| without the rule | decisions | clean edited | wrong: more | wrong: less | kinds that change |
|---|---|---|---|---|---|"""
_NUMBERS_HEAD = """\
## What each number is worth

| number | decisions | clean edited | wrong: more | wrong: less | kinds that change |
|---|---|---|---|---|---|"""


if __name__ == "__main__":
    sys.exit(main())
