"""Which cases are judged together, by networks that trained on none of them."""

from collections import Counter
from collections.abc import Mapping, Sequence

from raysegclean.errors import ConfigError
from raysegclean.evidence.cases import CaseInfo
from raysegclean.identity import digest

__all__ = ["dealt_folds", "with_twins_joined"]


def with_twins_joined(groups: Mapping[str, str], infos: Sequence[CaseInfo]) -> dict[str, str]:
    """Return case -> group, with the groups of cases that are one scan under two ids made one.

    Else networks would judge a scan that they were trained on. An image that most cases share is
    no scan of one patient, and joins none.
    """
    scans: dict[tuple[object, ...], list[str]] = {}
    for info in infos:
        scan = (info.shape_zyx, info.spacing_mm, info.intensity)
        scans.setdefault(scan, []).append(groups[info.case])
    joined = dict(zip(groups.values(), groups.values(), strict=True))
    for mine in (sorted({*found}) for found in scans.values() if 2 * len(found) <= len(infos)):
        for group in mine[1:]:
            old, new = joined[group], joined[mine[0]]
            joined = {name: new if of == old else of for name, of in joined.items()}
    return {case: joined[group] for case, group in groups.items()}


def dealt_folds(groups: list[str], folds: int, seed: int) -> dict[str, int]:
    """Deal groups to folds, smallest fold first, in an order that depends on names and seed."""
    sizes = Counter(groups)
    if len(sizes) < folds:
        raise ConfigError(
            f"train.crossfit: {folds} folds need at least {folds} patients, got {len(sizes)}. "
            "Set train.crossfit: 0 for in-sample voters."
        )
    held = [0] * folds
    fold_of: dict[str, int] = {}
    for group in sorted(sizes, key=lambda name: digest(seed, name)):
        fold = held.index(min(held))
        fold_of[group] = fold
        held[fold] += sizes[group]
    return fold_of
