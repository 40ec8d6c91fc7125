"""How sure a mean over seeds is, and whether one configuration is better than another.

Everything rests on Student's t (Student 1908, "The probable error of a mean"; Casella and Berger 2002, sections 9.2.1
and 8.3.4). With the five seeds of a confirmation the usual ways around it fail: Wilcoxon's signed-rank test can't go
below p = 0.0625, and bootstrap percentile intervals cover about 80% instead of 95%.

A winner is chosen *by* the means that are then reported, and so its mean is too high on the average: of `among`
configurations that are equally good, the luckiest wins. The interval makes up for that. It misses on the one side
when the winner's t exceeds the quantile; whoever wins, some configuration's then does, which for a level of a on each
side has a chance of at most among * a (Bonferroni; simultaneous inference over the selected: Benjamini, Hechtlinger and
Stark 2019, "Confidence intervals for selected parameters"). With a = 5% / max(2, among) the interval covers the truth
in at least about 95% of studies: in just 95% where all are equal, in 1 - 2a where one is clearly the best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit  # Student's t; scipy.stats takes seconds to import

ALPHA = 0.05
# Below such a share of the values themselves a spread is the arithmetic's.
_ROUNDING = 1e-12

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` seeds. sd: between seeds; half_width: of its 95% interval. None where one seed tells neither."""

    mean: float
    sd: float | None
    half_width: float | None
    n: int


@dataclass(frozen=True)
class Comparison:
    """Two configurations on `n` common seeds. difference: first less second; low, high: its 95% interval.

    p: of a difference as large where there is none, two-sided. None where there are fewer than two common seeds.
    """

    difference: float
    low: float | None
    high: float | None
    p: float | None
    n: int

    @property
    def distinguishable(self) -> bool:
        return self.p is not None and self.p < ALPHA


def estimate(values: Sequence[float], among: int = 1) -> Estimate:
    """The mean of a configuration's values, one a seed. among: of how many it is the best by these very values."""
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return Estimate(mean, None, None, n)
    return Estimate(mean, float(np.std(values, ddof=1)), float(half_width(values, among)), n)


def compare(first: Sequence[float], second: Sequence[float], among: int = 1) -> Comparison:
    """Compare two configurations seed by seed. among: of how many `first` was chosen, by these very values, `second`
    being none of them; then p is what is left after as many looks."""
    difference = np.asarray(first, float) - np.asarray(second, float)
    mean = float(difference.mean())
    if len(difference) < 2:
        return Comparison(mean, None, None, None, len(difference))
    half = float(half_width(difference, among))
    return Comparison(mean, mean - half, mean + half, float(paired_p(first, second, among)), len(difference))


def half_width(values: ArrayLike, among: int = 1) -> Array:
    """Of the 95% interval of means over the last axis: (..., n) -> (...); n at least 2.

    t(1 - a, n - 1) * sd / sqrt(n), with a = 5% / max(2, among): see above.
    """
    values = np.asarray(values, float)
    n = values.shape[-1]
    quantile = stdtrit(n - 1, 1 - ALPHA / max(2, among))
    return np.asarray(quantile * values.std(axis=-1, ddof=1) / np.sqrt(n))


def paired_p(first: ArrayLike, second: ArrayLike, among: int = 1) -> Array:
    """The two-sided p of the paired t test over the last axis: (..., n) twice -> (...); n at least 2.

    Of two configurations that are ranked by these very values the first is no luckier than chance lets the larger of
    two be, which is what both sides of the test stand for. Chosen from more than two, it had `among` chances to beat
    one and the same opponent, and p grows by among / 2 (Bonferroni).
    """
    first, second = np.asarray(first, float), np.asarray(second, float)
    difference = first - second
    mean, n = difference.mean(axis=-1), difference.shape[-1]
    error = difference.std(axis=-1, ddof=1) / np.sqrt(n)
    noise = _ROUNDING * np.maximum(np.abs(first), np.abs(second)).max(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * stdtr(n - 1, -np.abs(mean / error))
    # Where every seed says the same, there is no doubt; where that is "nothing", there is no difference.
    p = np.where(error <= noise, np.where(np.abs(mean) <= noise, 1.0, 0.0), p)
    return np.minimum(1.0, p * max(2, among) / 2)
