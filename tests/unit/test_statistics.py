"""Intervals and comparisons on 2,000 simulated studies whose true means are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from overnight.report.statistics import compare, estimate, half_width, paired_p

STUDIES, SEEDS = 2000, 5
SIMULATION_ERROR = 2 * (0.05 * 0.95 / STUDIES) ** 0.5  # two standard errors of a share of 5%


def confirmed(truths: list[float], common: float, seed: int) -> np.ndarray:
    """Simulate confirmations: (studies, configurations, seeds). common: noise of a seed in all configurations."""
    rng = np.random.default_rng(seed)
    own = rng.normal(0, (1 - common**2) ** 0.5, (STUDIES, len(truths), SEEDS))
    return np.asarray(truths)[:, None] + own + rng.normal(0, common, (STUDIES, 1, SEEDS))


@pytest.mark.parametrize("common", [0.0, 0.7])
@pytest.mark.parametrize(
    "truths",
    [[0.0], [0.0, 0.0], [0.0, 0.0, 0.0], [0.0, -0.3, -0.6], [0.0, 0.0, -3.0], [0.0, -9.0, -9.0]],
    ids=["alone", "two in a tie", "three in a tie", "close", "two ahead", "a clear winner"],
)
def test_the_interval_of_the_winner_covers_the_true_mean_in_95_percent(truths: list[float], common: float) -> None:
    seen = confirmed(truths, common, seed=len(truths))
    winner = seen.mean(axis=-1).argmax(axis=-1)
    values = np.take_along_axis(seen, winner[:, None, None], axis=1)[:, 0]  # (studies, seeds)
    missed = np.abs(values.mean(axis=-1) - np.asarray(truths)[winner]) > half_width(values, len(truths))
    assert abs((1 - missed.mean()) - 0.95) <= 0.02 + SIMULATION_ERROR


def test_without_the_correction_the_interval_of_a_tie_of_three_covers_too_little() -> None:
    seen = confirmed([0.0] * 3, 0.0, seed=3)
    values = np.take_along_axis(seen, seen.mean(axis=-1).argmax(axis=-1)[:, None, None], axis=1)[:, 0]
    missed = np.abs(values.mean(axis=-1)) > half_width(values)
    assert missed.mean() > 0.05 + SIMULATION_ERROR


@pytest.mark.parametrize("finalists", [2, 3, 5])
@pytest.mark.parametrize("common", [0.0, 0.7])
def test_first_is_wrongly_better_than_an_equal_second_in_at_most_6_percent(finalists: int, common: float) -> None:
    seen = confirmed([0.0] * finalists, common, seed=finalists)
    order = seen.mean(axis=-1).argsort(axis=-1)[:, ::-1]
    first, second = (np.take_along_axis(seen, order[:, i, None, None], axis=1)[:, 0] for i in (0, 1))
    assert (paired_p(first, second) < 0.05).mean() <= 0.06


def test_a_winner_of_three_is_wrongly_better_than_an_equal_baseline_in_at_most_6_percent() -> None:
    seen = confirmed([0.0] * 4, 0.3, seed=9)
    winner = seen[:, :3].mean(axis=-1).argmax(axis=-1)
    first = np.take_along_axis(seen, winner[:, None, None], axis=1)[:, 0]
    assert (paired_p(first, seen[:, 3], candidates=3) < 0.05).mean() <= 0.06
    assert (paired_p(first + 3, seen[:, 3], candidates=3) < 0.05).mean() > 0.9, (
        "and a difference is found where there is one"
    )


def test_estimates_and_comparisons_equal_those_of_scipy() -> None:
    a, b = [0.981, 0.979, 0.985, 0.978, 0.983], [0.972, 0.975, 0.979, 0.971, 0.970]
    low, high = stats.t.interval(0.95, 4, loc=np.mean(a), scale=stats.sem(a))
    mine = estimate(a)
    assert mine.half_width is not None
    assert (mine.mean - mine.half_width, mine.mean + mine.half_width) == pytest.approx((low, high))
    assert mine.sd == pytest.approx(stats.tstd(a))
    both = compare(a, b)
    assert both.p == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert both.distinguishable
    interval = stats.ttest_rel(a, b).confidence_interval()
    assert (both.low, both.high) == pytest.approx((interval.low, interval.high))


def test_one_seed_has_no_spread_and_equal_values_no_difference() -> None:
    assert (estimate([0.9]).sd, estimate([0.9]).half_width) == (None, None)
    assert compare([0.9], [0.8]).p is None
    assert not compare([0.9], [0.8]).distinguishable
    same = compare([0.1 + 0.2, 0.5], [0.3, 0.5])
    assert (same.p, same.distinguishable) == (1.0, False)
    assert compare([0.9, 0.8], [0.8, 0.7]).p == 0.0
