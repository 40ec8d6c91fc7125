"""The trials of a study as a scheduler sees them, and the scheduler of a plan."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from overnight.config.problems import Problems
from overnight.config.settings import Settings
from overnight.protocol import Progress
from overnight.search.attributes import HISTORY, UNTIL
from overnight.search.history import unpack_history
from overnight.search.plan import Plan
from overnight.search.record import TrialRecord
from overnight.search.schedulers import own
from overnight.search.schedulers.expected import epochs_of_trials, epochs_to_finish
from overnight.search.schedulers.halving import ETA, Halving, rungs
from overnight.search.schedulers.interface import Scheduler, State, Trial, epochs_left

# What it costs to pause a trial and to resume it in a new process, in seconds. A trial is not paused so early that this
# would be more than a tenth of what it has trained. (Medians of three studies with 49 to 65 resumed trials, over an
# epoch that goes on, on 2 cores: 0.153, 0.152 and 0.096 s, with 10, 7 and 6 processes that wanted to run.)
PAUSE_S, PAUSE_SHARE = 0.1, 0.1

_STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "complete",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}


def make_scheduler(plan: Plan, min_epochs: int) -> Scheduler:
    """Make the scheduler of a plan whose trials are paused. min_epochs: those of the first rung.

    Where the settings name the first rung, it is used whatever its order tells.
    """
    settings = plan.settings
    assert plan.pauses
    if settings.scheduler.target is not None:
        problems = Problems()
        scheduler = own.build(settings.scheduler, problems)
        problems.raise_if_any()
        assert isinstance(scheduler, Scheduler)
        return own.CheckedScheduler(scheduler, str(settings.scheduler.target["_target_"]), plan.units, plan.unit)
    is_free = settings.scheduler.min_epochs is None
    return Halving(plan.units, min_epochs, plan.budget.trial_limit, leaves_out=is_free, finalists=plan.finalists)


def first_rung(plan: Plan, epoch_s: float) -> int:
    """The epochs before the first pause, where an epoch takes `epoch_s` seconds.

    There is at least one rung below the last epoch, unless there is only one epoch.
    """
    if plan.settings.scheduler.min_epochs is not None:
        return plan.settings.scheduler.min_epochs
    rung, max_epochs = 1, plan.units
    while rung * epoch_s * PAUSE_SHARE < PAUSE_S and len(rungs(max_epochs, rung * ETA)) > 1:
        rung *= ETA
    return rung


class TrialsReader:
    """Reads the trials of a study for its scheduler. What does not change is converted once."""

    def __init__(self, plan: Plan) -> None:
        self._settings = plan.settings
        self._whole = plan.units if plan.pauses else math.inf
        # Number -> the stored history, its scores, and the seconds of its epochs.
        self._known: dict[int, tuple[Any, tuple[float, ...], float]] = {}

    def read(
        self, trials: Iterable[FrozenTrial], running: Mapping[int, Iterable[Progress]], with_pace: bool = False
    ) -> list[Trial]:
        """Return the trials that have started.

        Args:
            trials: All trials of the study.
            running: Number -> history of the trials whose history is newer than the stored one.
            with_pace: Whether to measure how fast each trial is.
        """
        found, seconds = [], []
        for t in trials:
            until = t.user_attrs.get(UNTIL)
            if until is None and t.state == TrialState.WAITING:  # it has not started
                continue
            scores, trained_s = self._converted(running[t.number]) if t.number in running else self._stored(t)
            found.append(Trial(t.number, self._state(t, len(scores), until), scores, until or len(scores)))
            seconds.append(trained_s)
        return _with_pace(found, seconds) if with_pace else found

    def _state(self, t: FrozenTrial, epochs: int, until: int | None) -> State:
        if t.state in _STATES:
            return _STATES[t.state]
        # A trial with more epochs was promoted, and one with all has ended: a kill came before that was written.
        if until == epochs < self._whole:
            return "paused"  # or pruned at the end of a launch, which a larger budget takes up again
        return "running" if t.state == TrialState.WAITING else "stopped"

    def _stored(self, t: FrozenTrial) -> tuple[tuple[float, ...], float]:
        packed = t.user_attrs.get(HISTORY)
        known = self._known.get(t.number)
        if known is None or known[0] is not packed:
            known = packed, *self._converted(unpack_history(t.number, packed))
            self._known[t.number] = known
        return known[1:]

    def _converted(self, history: Iterable[Progress]) -> tuple[tuple[float, ...], float]:
        """The scores of a trial, and the seconds of its epochs."""
        epochs = list(history)
        return scores_of(epochs, self._settings), sum(e.seconds for e in epochs)


def _with_pace(trials: Sequence[Trial], seconds: Sequence[float]) -> list[Trial]:
    """The trials with their paces. seconds: Those of the epochs of each."""
    mean_s = sum(seconds) / max(sum(t.epochs for t in trials), 1)
    own_s = [s / t.epochs if t.epochs else mean_s for t, s in zip(trials, seconds, strict=True)]
    return [replace(t, pace=s / mean_s if mean_s else 1.0) for t, s in zip(trials, own_s, strict=True)]


def trials_of(records: Iterable[TrialRecord], settings: Settings) -> list[Trial]:
    """The trials of these records, without those that have not started."""
    states: dict[str, State] = {"complete": "complete", "failed": "failed", "pruned": "stopped"}
    return [
        Trial(
            r.number,
            "paused" if r.waits_at_rung else states.get(r.state, "running"),
            scores_of(r.history, settings),
            r.until or len(r.history),
        )
        for r in records
        if r.until is not None or r.state not in ("waiting", "paused")
    ]


def scores_of(history: Iterable[Progress], settings: Settings) -> tuple[float, ...]:
    """The objective after each epoch, turned so that larger is better; nan before its first value."""
    study = settings.study
    sign, scores, latest = (1 if study.direction == "maximize" else -1), [], math.nan
    for e in history:
        value = sign * e.metrics.get(study.metric, math.nan)
        if math.isfinite(value):
            latest = value if math.isnan(latest) or study.objective == "last" else max(latest, value)
        scores.append(latest)
    return tuple(scores)


def is_spent(records: Iterable[TrialRecord], plan: Plan) -> bool:
    """Whether the budget of a search is spent. Under a scheduler that pauses trials: whether it would go on."""
    found = list(records)
    if not plan.pauses:
        return sum(r.done for r in found) >= plan.budget.trials
    if plan.settings.scheduler.target is not None:  # its class may not be here
        return bool(found) and all(r.done for r in found)
    trials = trials_of(found, plan.settings)
    if not trials or any(t.state == "running" for t in trials):
        return False
    return make_scheduler(plan, _lowest_rung(found, plan)).next(trials, epochs_left(trials, plan.budget.epochs)) is None


def trained_epochs(records: Iterable[TrialRecord]) -> int:
    """The epochs that all trials have trained together."""
    return sum(len(r.history) for r in records)


def epochs_in_all(records: Iterable[TrialRecord], plan: Plan, finishes: bool = False) -> int:
    """The epochs that a search trains in all, under a scheduler that pauses trials.

    They are the budget, or about as many as study.trials needs. finishes: The search only completes its best trials.
    """
    found = list(records)
    if finishes:
        return trained_epochs(found) + _epochs_to_finish(found, plan)
    if plan.budget.trial_limit is None:
        return plan.budget.epochs
    rung = _lowest_rung(found, plan)
    needed = epochs_of_trials(plan.budget.trial_limit, plan.units, rung, plan.finalists)
    return min(needed, plan.budget.epochs)


def _epochs_to_finish(records: Sequence[TrialRecord], plan: Plan) -> int:
    trials = trials_of(records, plan.settings)
    if plan.settings.scheduler.target is not None:  # what a class of the user does is known for running trials only
        return sum(max(t.until - t.epochs, 0) for t in trials if t.state == "running")
    scheduler = make_scheduler(plan, _lowest_rung(records, plan))
    assert isinstance(scheduler, Halving)
    return epochs_to_finish(scheduler, trials, plan.budget.epochs)


def _lowest_rung(records: Iterable[TrialRecord], plan: Plan) -> int:
    """The first rung that is set, or the lowest one to which a trial was sent."""
    sent_to = (r.until for r in records if r.until is not None and r.state != "failed")
    return plan.settings.scheduler.min_epochs or min(sent_to, default=1)


def progress_text(records: Iterable[TrialRecord], plan: Plan) -> str:
    """How much of the budget of a search is spent: "12 of 30 trials", "345 of 600 epochs" or "... validations".

    Where both are limited, it is spent in what is used up first.
    """
    found = list(records)
    if plan.budget.epoch_limit is not None and epochs_in_all(found, plan) >= plan.budget.epoch_limit:
        return f"{trained_epochs(found)} of {plan.budget.epochs} {plan.unit}s"
    return f"{_trials_so_far(found)} of {plan.budget.trials} trials"


def share_spent(records: Iterable[TrialRecord], plan: Plan, finishes: bool = False) -> float:
    """The share of a search that is done, from 0 to 1. finishes: As for `epochs_in_all`."""
    found = list(records)
    if plan.pauses:
        return min(trained_epochs(found) / max(epochs_in_all(found, plan, finishes), 1), 1.0)
    return min(_trials_so_far(found) / plan.budget.trials, 1.0)


def _trials_so_far(records: Sequence[TrialRecord]) -> int:
    """The number of trials that have ended or been paused. One that has been resumed still counts."""
    first = min((r.until for r in records if r.until is not None and r.state != "failed"), default=math.inf)
    return sum(r.done or r.waits_at_rung or len(r.history) >= first for r in records)


def promising_first(records: Iterable[TrialRecord], settings: Settings) -> list[int]:
    """The numbers of paused trials by their rank among those at the same rung, from 0 for the best to 1."""
    trials = trials_of(records, settings)
    ranks: dict[int, float] = {}
    for rung in rungs_of(trials):
        there = sorted((t for t in trials if t.until == rung), key=lambda t: (-t.score_at(rung), t.number))
        ranks |= {t.number: place / len(there) for place, t in enumerate(there)}
    return sorted(ranks, key=lambda number: (ranks[number], number))


def rungs_of(trials: Sequence[Trial]) -> list[int]:
    """The numbers of epochs to which trials were sent, in rising order: the rungs of any scheduler."""
    return sorted({t.until for t in trials if t.state != "failed"})
