"""Robust statistics over the cases of an archive, in which up to half of the values may be wrong.

The one place that knows what usual is, for policies and for checks. Two centres, on purpose: the
median where most cases are right, the mode (`mode`) where half of them may lie to one side.
All functions are deterministic: the same values in any order give the same answer, to the bit,
because every one of them sorts first.
"""

from dataclasses import dataclass
from math import inf, log, pi, sqrt

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Mixture",
    "Values",
    "fit_mixture",
    "known_median",
    "known_sd",
    "median_and_sd",
    "mode",
    "robust_sd",
    "thinned",
]

Values = NDArray[np.float64]
_MAD_TO_SD = 1.4826
"""Definition: of a normal distribution the sd, in units of the median distance from the centre."""
_MEAN_SHIFTS = 20
"""Numerics: by then the mode stands still."""
_MOST_VALUES = 1000
"""Cost: of more values so many are looked at, at even ranks."""
_STARTS = (0.3, 0.5, 0.7, 0.8, 0.9)
"""Numerics: the shares at which a mixture is split to start from."""
_NARROWEST = 20
"""Numerics: a component is at least the sample's sd over this wide, so that none collapses."""
_LARGEST = 700
"""Numerics: the exponential of more overflows."""
_FREE = (2, 5)
"""Definition: free parameters of one and of two normal components."""
_FEWEST = 4
"""Numerics: fewer values than this form no two components with a spread each."""
_ITERATIONS = 200
"""Numerics: a fit that has not ended by then is taken as it is."""
_CONVERGED = 1e-6
"""Numerics: a fit ends when its log likelihood gains less than this a value."""


def _finite_sorted(values: Values) -> Values:
    array = np.sort(np.asarray(values, dtype=np.float64).ravel())
    return array[np.isfinite(array)]


def mode(values: Values, kernel: float) -> float:
    """Return the mode: where a Gaussian kernel of this sd sees most of the values.

    It should be the error to which the value of a clean case is known. With half of 40 cases off to
    either side, the mode of a kernel stays with the clean ones; that of ever smaller halves (Bickel
    & Fruehwirth 2006) ends on a wrong heap that happens to be tight. Non-finite values are left
    out; NaN when nothing is left. Of equal peaks the lowest is taken.
    """
    x = thinned(values, _MOST_VALUES)
    if not x.size:
        return float("nan")
    centre = float(x[np.argmax(_kernel((x[:, None] - x) / kernel).sum(axis=1))])
    for _ in range(_MEAN_SHIFTS):
        near = _kernel((x - centre) / kernel)
        centre = float((near * x).sum() / near.sum())
    return centre


def thinned(values: Values, most: int) -> Values:
    """Return the finite values in order, or `most` of them at even ranks where there are more."""
    x = _finite_sorted(values)
    ranks = np.linspace(0, x.size - 1, min(x.size, most))
    return np.asarray(x[np.rint(ranks).astype(int)])


def _kernel(distance: Values) -> Values:
    return np.asarray(np.exp(-(distance**2) / 2))


def median_and_sd(values: Values) -> tuple[float, float]:
    """Return the median of the finite values and their robust sd about it; NaN without any."""
    x = _finite_sorted(values)
    centre = float(np.median(x)) if x.size else float("nan")
    return centre, robust_sd(x, centre)


def robust_sd(values: Values, centre: float, *, within: float = inf) -> float:
    """Return 1.4826 x the median of |value - centre| over those closer than `within`.

    NaN when no value is that close.
    """
    distance = np.abs(_finite_sorted(values) - centre)
    near = distance[distance < within]
    return float(_MAD_TO_SD * np.median(near)) if near.size else float("nan")


def known_median(values: Values, axis: int) -> Values:
    """Return the median of what is known along an axis; NaN where nothing is.

    By sorting, because numpy's own takes eight times as long along the short axis of classes.
    """
    ordered = np.sort(values, axis=axis)  # NaN comes last
    known = np.isfinite(values).sum(axis=axis, keepdims=True)
    low, high = (np.maximum(known - 1, 0) // 2, known // 2)
    high = np.minimum(high, np.maximum(known - 1, 0))
    middle = [np.take_along_axis(ordered, at, axis) for at in (low, high)]
    return np.asarray(((middle[0] + middle[1]) / 2).squeeze(axis), np.float64)


def known_sd(values: Values, centre: Values, axis: int) -> Values:
    """Return the robust sd of what is known about a centre along an axis; NaN where nothing is."""
    return np.asarray(_MAD_TO_SD * known_median(np.abs(values - centre), axis))


@dataclass(frozen=True)
class Mixture:
    """Two normal components on a line, the lower one first."""

    weights: tuple[float, float]
    means: tuple[float, float]
    sds: tuple[float, float]
    bic_gain: float
    """BIC of one component minus BIC of two; positive where two are preferred."""

    @property
    def separation(self) -> float:
        """Ashman's D: the distance of the means in units of the root mean square sd."""
        return (self.means[1] - self.means[0]) / sqrt((self.sds[0] ** 2 + self.sds[1] ** 2) / 2)

    def posterior(self, values: Values) -> Values:
        """Return the probability of the upper component, made monotone in the value.

        The wider of two components also claims the values on the far side of the narrower one.
        So values below the lower mean get 0, and those beyond the point where the posterior
        would begin to fall get its value there. Non-finite values get 0.
        """
        x = np.asarray(values, dtype=np.float64)
        (w0, w1), (m0, m1), (s0, s1) = self.weights, self.means, self.sds
        x = np.where(np.isfinite(x), x, m0)
        if s1 < s0:
            x = np.minimum(x, (m1 / s1**2 - m0 / s0**2) / (1 / s1**2 - 1 / s0**2))
        lower, upper = (
            log(w / s) - ((x - m) / s) ** 2 / 2 for w, m, s in ((w0, m0, s0), (w1, m1, s1))
        )
        odds_lower = np.exp(np.clip(lower - upper, -_LARGEST, _LARGEST))
        return np.where(x <= m0, 0.0, 1.0 / (1.0 + odds_lower))


def fit_mixture(values: Values, *, iterations: int = _ITERATIONS) -> Mixture | None:
    """Fit one and two normal components by expectation maximisation; None where that is moot.

    Deterministic: it starts from splits at five quantiles and keeps the likeliest end. The sd of a
    component is at least 1/20 of the sample's, so that no component collapses on one case. None
    with fewer than four finite values or no spread at all.
    """
    x = _finite_sorted(values)
    if x.size < _FEWEST or x[-1] - x[0] <= 1e-9 * max(1.0, abs(float(x[-1]))):
        return None
    best: tuple[float, tuple[Values, Values, Values]] | None = None
    for share in _STARTS:
        cut = min(max(2, round(share * x.size)), x.size - 2)
        likelihood, found = _em(x, cut, iterations)
        if best is None or likelihood > best[0] + 1e-9:
            best = likelihood, found
    assert best is not None
    likelihood, (weight, mean, sd) = best
    one = -x.size / 2 * (log(2 * pi * float(x.var())) + 1)
    gain = (_FREE[0] * log(x.size) - 2 * one) - (_FREE[1] * log(x.size) - 2 * likelihood)
    low, high = (0, 1) if mean[0] <= mean[1] else (1, 0)
    return Mixture(
        weights=(float(weight[low]), float(weight[high])),
        means=(float(mean[low]), float(mean[high])),
        sds=(float(sd[low]), float(sd[high])),
        bic_gain=gain,
    )


def _em(x: Values, cut: int, iterations: int) -> tuple[float, tuple[Values, Values, Values]]:
    floor = float(x.std()) / _NARROWEST
    upper = (np.arange(x.size) >= cut).astype(np.float64)
    likelihood = -np.inf
    parameters = (np.zeros(2), np.zeros(2), np.ones(2))
    for _ in range(iterations):
        share = np.stack([1 - upper, upper])
        mass = np.maximum(share.sum(axis=1), 1e-9)
        mean = share @ x / mass
        variance = (share * (x - mean[:, None]) ** 2).sum(axis=1) / mass
        parameters = (mass / x.size, mean, np.maximum(np.sqrt(variance), floor))
        weight, mean, sd = parameters
        log_density = (
            np.log(weight / (sd * sqrt(2 * pi)))[:, None]
            - ((x - mean[:, None]) / sd[:, None]) ** 2 / 2
        )
        total = np.logaddexp(log_density[0], log_density[1])
        upper = np.exp(log_density[1] - total)
        before, likelihood = likelihood, float(total.sum())
        if likelihood - before < _CONVERGED * x.size:
            break
    return likelihood, parameters
