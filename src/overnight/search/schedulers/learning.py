"""Which trials a sampler learns from, where trials are paused after different numbers of epochs.

The sampler gets the trials that reached one rung, all with their values at that rung. Values of different rungs cannot
be compared, and a trial that was paused before is not a bad one. Optuna's samplers get them as complete trials.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence

from overnight.search.schedulers.interface import Trial

# A rung is learned from once so many trials have reached it.
ENOUGH = 10
# The share of trials that is drawn at random in any case.
RANDOM_SHARE = 0.10
# The candidates that TPE compares for each trial.
CANDIDATES = 24


def rung_to_learn_from(trials: Iterable[Trial], rungs: Sequence[int], enough: int = ENOUGH) -> int | None:
    """The longest rung that at least `enough` trials have reached; None where no rung has so many."""
    counts = dict.fromkeys(rungs, 0)
    for trial in trials:
        for rung in rungs:
            counts[rung] += _is_usable(trial, rung)
    return max((rung for rung, count in counts.items() if count >= enough), default=None)


def choose(trials: Iterable[Trial], rung: int, rng: random.Random) -> dict[int, float]:
    """Number -> score at the rung of the trials to learn from.

    It is a bootstrap sample of the trials that reached the rung, each distinct trial once. Suggestions that are made at
    the same time therefore differ, without assumptions about the trials that run.
    """
    reached = [t for t in trials if _is_usable(t, rung)]
    drawn = {t.number: t for t in rng.choices(reached, k=len(reached))}
    return {number: drawn[number].score_at(rung) for number in sorted(drawn)}


def good_trials(count: int) -> int:
    """The number of trials, of `count`, that TPE takes for good ones."""
    return max(2, math.ceil(count / 3))


def _is_usable(trial: Trial, rung: int) -> bool:
    return trial.state != "failed" and trial.score_at(rung) > -math.inf
