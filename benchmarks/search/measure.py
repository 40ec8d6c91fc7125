"""How soon a search has found a good configuration, and how sure the figures are.

The incumbent is the trial whose latest value is the best at the time, whatever its state; of equal values, the one of
the trial that trained longer, then the earlier one. Its quality is the mean final value of its configuration over the
seeds of the table, which the search does not know. The strict incumbent is the best complete trial.
"""

from __future__ import annotations

import bisect
import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.search.simulator import Run
from benchmarks.search.tables import Table

RESAMPLES = 2000
Trace = list[tuple[int, float]]  # (epochs trained in all when the incumbent changed, its final value)


def incumbents(run: Run, table: Table) -> Trace:
    """Return the incumbents."""
    latest: dict[int, tuple[float, int, int]] = {}
    changes: list[tuple[int, int]] = []
    for spent, epoch in enumerate(run.epochs, 1):
        score = epoch.score if math.isfinite(epoch.score) else -math.inf
        latest[epoch.number] = (score, epoch.epoch, -epoch.number)
        best = -max(latest.values())[2]
        if not changes or changes[-1][1] != best:
            changes.append((spent, best))
    return [(spent, table.final(run.points[number])) for spent, number in changes]


def strict_incumbents(run: Run, table: Table) -> Trace:
    """Return the best complete trials."""
    found: Trace = []
    best = -math.inf
    for spent, epoch in enumerate(run.epochs, 1):
        if epoch.epoch == table.max_epochs and epoch.score > best:
            best = epoch.score
            found.append((spent, table.final(run.points[epoch.number])))
    return found


def epochs_until(trace: Trace, threshold: float) -> float:
    """Return the epochs trained when an incumbent was first at least so good; infinity where none was."""
    return next((spent for spent, final in trace if final >= threshold), math.inf)


def epochs_until_kept(trace: Trace, threshold: float) -> float:
    """Return the epochs trained when an incumbent was at least so good, and all later ones too."""
    below = [index for index, (_, final) in enumerate(trace) if final < threshold]
    kept = trace[below[-1] + 1 :] if below else trace
    return kept[0][0] if kept else math.inf


def final_at(trace: Trace, spent: int) -> float:
    """Return the quality of the incumbent after so many epochs; -inf where there is none."""
    index = bisect.bisect_right(trace, spent, key=lambda change: change[0])
    return trace[index - 1][1] if index else -math.inf


@dataclass(frozen=True)
class Estimate:
    """A statistic with its 95% bootstrap interval."""

    value: float
    low: float
    high: float


def estimate(
    samples: Sequence[Sequence[tuple[float, ...]]], statistic: Callable[[Sequence[Sequence[tuple[float, ...]]]], float]
) -> Estimate:
    """Return a statistic of several independent samples. Each is resampled with replacement; what is paired stays so.

    Args:
        samples: One list for each table; one tuple for each seed, with a value for each side.
    """
    rng = random.Random(0)
    found = sorted(statistic([rng.choices(s, k=len(s)) for s in samples]) for _ in range(RESAMPLES))
    return Estimate(statistic(samples), found[int(0.025 * RESAMPLES)], found[int(0.975 * RESAMPLES) - 1])


def median(samples: Sequence[Sequence[tuple[float, ...]]]) -> float:
    """Return the median of one sample of single values. Infinity is larger than any other."""
    ((*values,),) = samples
    return statistics.median_low(value for (value,) in values)


def mean_ratio(samples: Sequence[Sequence[tuple[float, ...]]]) -> float:
    """Return the mean over the samples of (mean of the first value / mean of the second)."""
    return statistics.mean(sum(a for a, _ in sample) / sum(b for _, b in sample) for sample in samples)
