"""Cross-validation: whether the complete folds of a trial show that it is worse than the best one.

The rule is that of Optuna's WilcoxonPruner: the one-sided signed-rank test of Wilcoxon (1945), "Individual comparisons
by ranking methods", over the folds that both trials have, with zeros split (Pratt 1959). Its exact p value over n folds
is at least 1 / 2**n, so that it ends a trial after four folds at the earliest.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

# Optuna's default.
_P = 0.1


def is_hopeless(own: Mapping[int, float], best: Mapping[int, float], maximize: bool) -> bool:
    """Return whether the folds of a trial show that it is worse than the best one.

    Args:
        own: fold -> score, of the complete folds.
        best: fold -> score, of all folds of the best complete trial.
        maximize: whether a larger score is better.
    """
    common = sorted(own.keys() & best.keys())
    sign = 1 if maximize else -1
    if sign * statistics.fmean(own.values()) >= sign * statistics.fmean(best.values()):
        return False
    return p_of_worse([sign * (own[fold] - best[fold]) for fold in common]) < _P


def p_of_worse(differences: Sequence[float]) -> float:
    """Return the exact p value of the hypothesis that differences are not below zero: (n,), n up to 20."""
    # Ranks of the absolute differences, twice as large, so that those of ties are integers.
    sizes = sorted(abs(d) for d in differences)
    ranks = {size: sizes.index(size) + 1 + len(sizes) - sizes[::-1].index(size) for size in sizes}
    signed = [ranks[abs(d)] for d in differences if d != 0]
    observed = sum(ranks[abs(d)] for d in differences if d > 0)
    # The number of ways to choose signs that give each sum of positive ranks. Zeros count half on either side.
    ways = {0: 1}
    for rank in signed:
        before, ways = ways, {}
        for total, n in before.items():
            for positive in (total, total + rank):
                ways[positive] = ways.get(positive, 0) + n
    return sum(n for total, n in ways.items() if total <= observed) / 2 ** len(signed)
