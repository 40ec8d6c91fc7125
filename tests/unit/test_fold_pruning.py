"""The test that ends a trial whose folds are worse than those of the best one."""

from __future__ import annotations

import random

import pytest
from scipy.stats import wilcoxon

from overnight.search.folds import is_hopeless, p_of_worse


@pytest.mark.parametrize("count", [2, 3, 5, 10, 20])
def test_the_p_value_is_that_of_the_exact_signed_rank_test(count: int) -> None:
    drawn = random.Random(count)
    for _ in range(20):
        differences = [drawn.gauss(-0.3, 1) for _ in range(count)]
        expected = wilcoxon(differences, alternative="less", method="exact").pvalue
        assert p_of_worse(differences) == pytest.approx(expected)


def test_equal_folds_speak_neither_for_nor_against_a_trial() -> None:
    assert p_of_worse([0.0, 0.0, 0.0]) == 1
    assert p_of_worse([0.0, -1.0, -1.0, -2.0]) == pytest.approx(1 / 8)


def test_a_trial_that_is_worse_in_four_folds_ends_and_in_three_goes_on() -> None:
    best = dict.fromkeys(range(5), 0.9)
    assert is_hopeless(dict.fromkeys(range(4), 0.8), best, maximize=True)
    assert not is_hopeless(dict.fromkeys(range(3), 0.8), best, maximize=True)
    assert not is_hopeless(dict.fromkeys(range(4), 0.8), best, maximize=False)
    assert is_hopeless(dict.fromkeys(range(4), 1.0), best, maximize=False)


def test_a_trial_that_is_better_on_average_goes_on() -> None:
    best = {0: 0.9, 1: 0.9, 2: 0.9, 3: 0.9, 4: 0.1}
    assert not is_hopeless({0: 0.89, 1: 0.89, 2: 0.89, 3: 0.89}, best, maximize=True)
