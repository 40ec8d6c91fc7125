"""Confidence intervals of means over seeds, and tests whether one configuration is better than another.

Everything is based on Student's t (Student 1908, "The probable error of a mean"; Casella and Berger 2002, sections
8.3.4 and 9.2.1). With the five seeds of a confirmation the usual alternatives fail: the p value of Wilcoxon's
signed-rank test is at least 0.0625, and bootstrap percentile intervals cover about 80% instead of 95%.

The winner is chosen by the same means that are reported, so its mean is too high on average. The interval corrects for
that. Its upper and its lower bound each have a level of a = 5% / max(2, candidates), where `candidates` is the number
of configurations that the winner was chosen from. If the bound of the winner misses, the bound of some candidate
misses, and that has a probability of at most candidates * a (Bonferroni; Benjamini, Hechtlinger and Stark 2019,
"Confidence intervals for selected parameters"). The interval covers the true mean in at least about 95% of studies: in
exactly 95% if all candidates are equal, and in 1 - 2a if one is clearly the best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit  # Student's t; scipy.stats takes seconds to import

ALPHA = 0.05
# A standard error below this fraction of the values is rounding error.
_ROUNDING = 1e-12

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` seeds.

    Attributes:
        sd: Standard deviation between seeds; None for one seed.
        half_width: Half the width of the 95% interval; None for one seed.
    """

    mean: float
    sd: float | None
    half_width: float | None
    n: int


@dataclass(frozen=True)
class Comparison:
    """Two configurations on `n` common seeds.

    Attributes:
        difference: Mean of the first minus mean of the second.
        low: Lower bound of its 95% interval; None for one seed.
        high: Upper bound of its 95% interval; None for one seed.
        p: Two-sided p value of the hypothesis that they are equal; None for one seed.
    """

    difference: float
    low: float | None
    high: float | None
    p: float | None
    n: int

    @property
    def distinguishable(self) -> bool:
        return self.p is not None and self.p < ALPHA


def estimate(values: Sequence[float], candidates: int = 1) -> Estimate:
    """Estimate the mean of a configuration.

    Args:
        values: One value for each seed.
        candidates: Number of configurations that it was chosen from by these values.
    """
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return Estimate(mean, None, None, n)
    return Estimate(mean, float(np.std(values, ddof=1)), float(half_width(values, candidates)), n)


def compare(first: Sequence[float], second: Sequence[float], candidates: int = 1) -> Comparison:
    """Compare two configurations seed by seed.

    Args:
        first: One value for each seed.
        second: One value for each seed, on the same seeds.
        candidates: Number of configurations that `first` was chosen from by these values, without `second`.
    """
    difference = np.asarray(first, float) - np.asarray(second, float)
    mean = float(difference.mean())
    if len(difference) < 2:
        return Comparison(mean, None, None, None, len(difference))
    half = float(half_width(difference, candidates))
    return Comparison(mean, mean - half, mean + half, float(paired_p(first, second, candidates)), len(difference))


def half_width(values: ArrayLike, candidates: int = 1) -> Array:
    """Return half the width of the 95% interval of means over the last axis: (..., n) -> (...), n >= 2.

    t(1 - a, n - 1) * sd / sqrt(n) with a = 5% / max(2, candidates), see the module's docstring.
    """
    values = np.asarray(values, float)
    n = values.shape[-1]
    quantile = stdtrit(n - 1, 1 - ALPHA / max(2, candidates))
    return np.asarray(quantile * values.std(axis=-1, ddof=1) / np.sqrt(n))


def paired_p(first: ArrayLike, second: ArrayLike, candidates: int = 1) -> Array:
    """Return the two-sided p values of the paired t test over the last axis: (..., n) twice -> (...), n >= 2.

    The two-sided test accounts for choosing the better one of two. The best of more than two had `candidates` chances
    to beat the same opponent, so p is multiplied by candidates / 2 (Bonferroni).
    """
    first, second = np.asarray(first, float), np.asarray(second, float)
    difference = first - second
    mean, n = difference.mean(axis=-1), difference.shape[-1]
    error = difference.std(axis=-1, ddof=1) / np.sqrt(n)
    noise = _ROUNDING * np.maximum(np.abs(first), np.abs(second)).max(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * stdtr(n - 1, -np.abs(mean / error))
    # Without any spread between seeds p is 0, or 1 if there is no difference either.
    p = np.where(error <= noise, np.where(np.abs(mean) <= noise, 1.0, 0.0), p)
    return np.minimum(1.0, p * max(2, candidates) / 2)
