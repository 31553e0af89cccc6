"""Findings of the integrity checks, the thresholds behind them, and how unusual a value is.

A value is judged against the archive's own robust distribution (median and median absolute
deviation), never against anatomy books. Its score is its distance from the median in robust
standard deviations, with a floor below which differences are ordinary anatomy or rounding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from raysegclean.errors import ConfigError
from raysegclean.evidence.robust import Values, median_and_sd

__all__ = ["Feature", "Finding", "IntegrityParams", "ranked"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong or odd with one case."""

    grave: bool = False
    """Almost surely an error, or a case that cannot be used."""
    score: float
    """How far from usual, in robust standard deviations or what stands for them."""
    case: str
    label_value: int | None = None
    """None: it is not about one class."""
    also: int | None = None
    """Another class that it is as much about."""
    what: str
    where: str = ""
    value: str = ""
    usual: str = ""
    remedy: str

    def is_about(self, value: int) -> bool:
        """Tell whether it speaks of the class of this label value."""
        return self.label_value is None or value in (self.label_value, self.also)


@dataclass(frozen=True)
class IntegrityParams:
    """Thresholds of the integrity checks."""

    few_cases: int = 8
    """Below so many cases that have a class, there is no usual value to compare with."""
    odd_sds: float = 5.0
    """Robust standard deviations from which a value is a finding."""
    grave_sds: float = 10.0
    """And from which it is grave, where the difference is large too."""
    usual_share: float = 0.8
    """Share of the other cases from which a class counts as expected."""
    sure_share: float = 0.9
    """Share of the other cases that makes a rule of the archive: breaking it is grave."""
    stray_share: float = 0.02
    """Values in at most this share of the cases are strays."""

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        for name in ("usual_share", "sure_share", "stray_share"):
            value = getattr(self, name)
            if not 0 < value <= 1:
                raise ConfigError(
                    f"params.{name}: expected a share above 0 and up to 1, got {value}."
                )
        if self.few_cases < 2:
            raise ConfigError(f"params.few_cases: expected at least 2, got {self.few_cases}.")
        if not 0 < self.odd_sds <= self.grave_sds:
            raise ConfigError(
                "params.odd_sds: expected a number above 0 and up to grave_sds "
                f"{self.grave_sds}, got {self.odd_sds}."
            )


@dataclass(frozen=True)
class Feature:
    """One number per case, and how to speak of it."""

    what: str
    """What is wrong, with `{value}` for the class and `{side}` for one of `sides`."""
    sides: tuple[str, str]
    """Words for below and above the usual."""
    unit: str
    values: Values
    """(cases,), NaN where a case has none."""
    remedy: str
    floor: float
    """Least robust sd, on the scale that is compared."""
    log: bool = False
    """Compare logarithms: values are positive, and ratios matter."""
    side: int = 0
    """1: only high values are odd, -1: only low ones, 0: both."""
    least: float = -inf
    """Values below this are never odd."""
    weight: float = 1.0
    """How much it counts where cases are ranked by all that is odd about them."""
    grave_effect: float = inf
    """Least difference, on the scale that is compared, of a grave finding."""

    def scores(self, few_cases: int) -> Values:
        """Return how unusual each case is, >= 0; 0 for NaN and where there are too few cases."""
        compared, centre, sd = self._compared()
        if np.isfinite(compared).sum() < few_cases:
            return np.zeros(len(compared))
        signed = (compared - centre) / sd
        away = np.abs(signed) if self.side == 0 else self.side * signed
        away = np.where(self.values >= self.least, away, 0.0)
        return np.nan_to_num(np.maximum(away, 0.0), nan=0.0)

    def findings(
        self,
        cases: Sequence[str],
        about: tuple[int, str],
        wheres: Sequence[str],
        params: IntegrityParams,
    ) -> Iterator[Finding]:
        """Yield a finding for every case whose value is odd.

        `about` is the class and what people call it; `wheres` says where it is, per case.
        """
        value, called = about
        scores = self.scores(params.few_cases)
        compared, centre, _ = self._compared()
        low, middle, high = (
            np.nanpercentile(self.values, (25, 50, 75)) if (scores > 0).any() else (0.0, 0.0, 0.0)
        )
        usual = f"{_number(middle)} ({_number(low)} to {_number(high)}) {self.unit}".rstrip()
        for row in np.flatnonzero(scores >= params.odd_sds).tolist():
            effect = float(compared[row] - centre)
            yield Finding(
                grave=bool(scores[row] >= params.grave_sds and abs(effect) >= self.grave_effect),
                score=round(float(scores[row]), 1),
                case=cases[row],
                label_value=value,
                what=self.what.format(value=called, side=self.sides[effect > 0]),
                where=wheres[row],
                value=f"{_number(float(self.values[row]))} {self.unit}".rstrip(),
                usual=usual,
                remedy=self.remedy,
            )

    def _compared(self) -> tuple[Values, float, float]:
        with np.errstate(divide="ignore", invalid="ignore"):
            compared = np.log(self.values) if self.log else self.values
        compared = np.where(np.isfinite(compared), compared, np.nan)
        centre, sd = median_and_sd(compared)
        # The spread of a handful of cases is a guess, and often too small.
        guess = 1 + 2 / max(1, np.isfinite(compared).sum())
        return compared, centre, max(self.floor, sd) * guess


def ranked(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Return findings worst first: grave ones, then by score, then by case."""
    return tuple(
        sorted(findings, key=lambda f: (not f.grave, -f.score, f.case, f.label_value or 0, f.what))
    )


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
