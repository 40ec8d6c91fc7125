"""When a search no longer gets better: trials in a row without an improvement beyond noise.

The noise is that of one trial's value, read from the wobble of the learning curves: over the second half of a curve
s² = mean of squared differences of neighbours / 2 (the mean square successive difference, von Neumann 1941,
"Distribution of the ratio of the mean square successive difference to the variance", which a slow trend hardly moves).
Two values differ by luck with a standard deviation of √2 s; the median trial's s counts. What another seed would move
comes on top and is not in it: the rule errs on the side of going on.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable

from overnight.config.sections import Settings
from overnight.search.record import TrialRecord

# Epochs of a curve's second half, below which it tells nothing of its wobble.
_ENOUGH = 3


def noise(records: Iterable[TrialRecord], metric: str) -> float:
    """Standard deviation of the difference between two equally good trials' values; 0 where no curve tells."""
    wobbles = [w for r in records if r.state == "complete" and (w := _wobble(r, metric)) is not None]
    return math.sqrt(2) * statistics.median(wobbles) if wobbles else 0.0


def trials_since_improvement(records: Iterable[TrialRecord], settings: Settings) -> int:
    """How many trials in a row, in the order of their ends, were no better than the best before them plus the noise.

    Complete and pruned ones count; many small steps count as an improvement once they add up to more than the noise.
    """
    told = list(records)
    sign = 1 if settings.study.direction == "maximize" else -1
    threshold, best, count = noise(told, settings.study.metric), -math.inf, 0
    for r in sorted(told, key=lambda r: (r.ended_at or 0.0, r.number)):
        if r.state == "complete" and r.objective is not None and sign * r.objective > best + threshold:
            best, count = sign * r.objective, 0
        elif r.state in ("complete", "pruned"):
            count += 1
    return count


def word(records: Iterable[TrialRecord], settings: Settings) -> str | None:
    """Why study.patience is at its end; None where it is not, or there is none."""
    told, patience = list(records), settings.study.patience
    if patience is None or (count := trials_since_improvement(told, settings)) < patience:
        return None
    beyond = f"plus the noise of {noise(told, settings.study.metric):.2g}"
    return f"study.patience={patience}: the last {count} trials were no better than the best before them {beyond}"


def _wobble(record: TrialRecord, metric: str) -> float | None:
    values = [v for e in record.history if math.isfinite(v := e.metrics.get(metric, math.nan))]
    late = values[len(values) // 2 :]
    if len(late) < _ENOUGH:
        return None
    return math.sqrt(statistics.fmean((b - a) ** 2 for a, b in itertools.pairwise(late)) / 2)
