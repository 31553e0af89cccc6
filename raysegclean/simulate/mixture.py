"""Which cases of an archive are wrong, and how: one kind of error, or a mixture of several."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from raysegclean.errors import ConfigError

__all__ = ["ErrorKind", "kinds_of", "share_out"]

_KEYS = {"noise", "share", "params"}


@dataclass(frozen=True)
class ErrorKind:
    """One kind of error and the share of the cases that have it."""

    noise: str
    share: float
    params: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    """What the kind is called where that is not its noise, as two kinds of one noise."""

    @property
    def told(self) -> str:
        """What the kind is called."""
        return self.name or self.noise


def kinds_of(values: Mapping[str, Any]) -> tuple[ErrorKind, ...]:
    """Return the kinds that plain values tell: name -> {noise, share, params}.

    `noise` is the name unless given, `params` none. Raises ConfigError for anything else.
    """
    kinds = []
    for name, value in values.items():
        if not isinstance(value, Mapping) or not {"share"} <= {*value} <= _KEYS:
            raise ConfigError(
                f"mixture, {name}: expected share, and noise and params if need be, got {value!r}. "
                "Write it as `outlines: {noise: boundary, share: 0.15, params: {n_max: 2}}`."
            )
        share, params = value["share"], value.get("params") or {}
        if isinstance(share, bool) or not isinstance(share, int | float):
            raise ConfigError(
                f"mixture, {name}: share must be a number from 0 to 1, got {share!r}."
            )
        if not isinstance(params, Mapping):
            raise ConfigError(f"mixture, {name}: params must be KEY: VALUE lines, got {params!r}.")
        kinds.append(ErrorKind(str(value.get("noise", name)), float(share), dict(params), name))
    return tuple(kinds)


def share_out(cases: Sequence[str], kinds: Sequence[ErrorKind], seed: int) -> dict[str, ErrorKind]:
    """Return which kind of error which case has; cases without one are left out.

    Cases are ranked by a hash of seed and id, and each kind takes the next of them: their order
    does not matter, and new ones change little. The first k kinds have, together, their share of
    all cases, rounded. Raises ConfigError for shares that are no shares, and a negative seed.
    """
    total = sum(kind.share for kind in kinds)
    if any(not 0 <= kind.share <= 1 for kind in kinds) or total > 1 + 1e-9:
        told = ", ".join(f"{kind.told} {kind.share:g}" for kind in kinds)
        raise ConfigError(f"The fraction of cases must lie in 0..1, and so must their sum: {told}.")
    if seed < 0:
        raise ConfigError(f"The seed must be 0 or more, got {seed}.")
    ranked = sorted(cases, key=lambda case: sha256(f"{seed}/{case}".encode()).digest())
    found: dict[str, ErrorKind] = {}
    share = 0.0
    for kind in kinds:
        share += kind.share
        mine = ranked[len(found) : round(share * len(ranked))]
        found |= dict.fromkeys(mine, kind)
    return found
