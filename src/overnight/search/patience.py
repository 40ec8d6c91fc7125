"""study.patience: stops a search after a number of trials in a row without an improvement beyond noise.

The noise of one trial's value is estimated from the wobble of the learning curves. Over the second half of a curve,
s² is half the mean of squared differences of neighbours: the mean square successive difference of von Neumann (1941),
"Distribution of the ratio of the mean square successive difference to the variance", which a slow trend hardly moves.
Two values differ by chance with a standard deviation of √2 s, where s is the median over the trials. The variation
between seeds is not included, so that the rule errs on the side of a longer search.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable

from overnight.config.settings import Settings
from overnight.search.history import mean_curve
from overnight.search.plan import Plan
from overnight.search.record import TrialRecord

# The wobble of a curve is estimated from at least this many epochs in its second half.
_MIN_EPOCHS = 3


def noise(records: Iterable[TrialRecord], metric: str) -> float:
    """Standard deviation of the difference between the values of two equally good trials; 0 without a curve."""
    wobbles = [w for r in records if r.state == "complete" and (w := _wobble(r, metric)) is not None]
    return math.sqrt(2) * statistics.median(wobbles) if wobbles else 0.0


def trials_since_improvement(records: Iterable[TrialRecord], settings: Settings) -> int:
    """The number of complete and pruned trials since the last one better than the best before it plus the noise.

    Trials count in the order in which they ended. Small steps count as an improvement once they add up to the noise.
    """
    trials = list(records)
    sign = 1 if settings.study.direction == "maximize" else -1
    threshold, best, count = noise(trials, settings.study.metric), -math.inf, 0
    for r in sorted(trials, key=lambda r: (r.ended_at or 0.0, r.number)):
        if r.state == "complete" and r.objective is not None and sign * r.objective > best + threshold:
            best, count = sign * r.objective, 0
        elif r.state in ("complete", "pruned"):
            count += 1
    return count


def epochs_since_improvement(records: Iterable[TrialRecord], settings: Settings) -> int:
    """Count the epochs since the last one after which a trial was better than all before it plus the noise.

    Epochs count in the order in which they ended, those of trials that are paused or failed too.
    """
    trials, metric = list(records), settings.study.metric
    sign = 1 if settings.study.direction == "maximize" else -1
    threshold, best, count = noise(trials, metric), -math.inf, 0
    for e in sorted((e for r in trials for e in r.history), key=lambda e: (e.at, e.number)):
        value = sign * e.metrics.get(metric, math.nan)
        count += 1
        if value > best + threshold:
            best, count = value, 0
    return count


def finish_reason(records: Iterable[TrialRecord], plan: Plan) -> str | None:
    """Why study.patience, in whole trainings, has a search under halving finish its best trials; or None."""
    settings, patience = plan.settings, plan.settings.study.patience
    if patience is None:
        return None
    trials, limit = list(records), patience * plan.units
    if (count := epochs_since_improvement(trials, settings)) < limit:
        return None
    beyond = f"plus the noise of {noise(trials, settings.study.metric):.2g}"
    return (
        f"study.patience={patience}: in the last {count} {plan.unit}s no trial was better than the best before {beyond}"
    )


def stop_reason(records: Iterable[TrialRecord], settings: Settings) -> str | None:
    """Why study.patience ends the search; None where it does not, or is not set."""
    trials, patience = list(records), settings.study.patience
    if patience is None or (count := trials_since_improvement(trials, settings)) < patience:
        return None
    beyond = f"plus the noise of {noise(trials, settings.study.metric):.2g}"
    return f"study.patience={patience}: the last {count} trials were no better than the best before them {beyond}"


def _wobble(record: TrialRecord, metric: str) -> float | None:
    values = [v for v in mean_curve(record.history, metric) if math.isfinite(v)]
    late = values[len(values) // 2 :]
    if len(late) < _MIN_EPOCHS:
        return None
    return math.sqrt(statistics.fmean((b - a) ** 2 for a, b in itertools.pairwise(late)) / 2)
