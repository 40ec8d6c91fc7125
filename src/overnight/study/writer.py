"""What becomes of the trials that this process runs: metrics, pauses and ends, written to the study's storage.

Optuna keeps one float per step. The metrics of all epochs, with their times, are kept beside it: packed into one user
attribute per trial. A trial that stops unfinished returns to WAITING. It is assigned again with its number, its
parameters and its history.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager

import optuna
from optuna.trial import TrialState

from overnight.protocol import Progress
from overnight.search import folds
from overnight.search.attributes import ATTEMPTS, DETAIL, HISTORY, NOTES, PEAK_BYTES, REASON
from overnight.search.history import fold_scores, objective_of, pack_history
from overnight.search.plan import Plan
from overnight.search.record import TrialRecord, record_of
from overnight.study.storage.exclusive import ExclusiveStorage
from overnight.study.trial_reader import RunningTrial, TrialReader

_DETAIL_CHARS = 20_000  # the end of a traceback says what happened


class TrialWriter:
    """Writes the trials that this process runs. All methods are called from one thread."""

    def __init__(self, plan: Plan, study: optuna.Study, storage: ExclusiveStorage, reader: TrialReader) -> None:
        self._plan, self._study, self._storage, self._reader = plan, study, storage, reader

    @property
    def _running(self) -> dict[int, RunningTrial]:
        return self._reader.running

    def batch(self) -> AbstractContextManager[None]:
        """Return a block at whose end all writes of the block are committed in one transaction."""
        return self._storage.together()

    def is_written(self, number: int) -> bool:
        """Whether the storage has everything that this process knows of a trial."""
        return self._storage.is_written(self._study._study_id, number)

    # While a trial runs

    def record(self, done: Progress) -> bool:
        """Keep the metrics of an epoch until the next flush; return False if the epoch was known already."""
        running = self._running[done.number]
        if done.index in running.history:
            return False
        running.history[done.index] = done
        running.unwritten = True
        value = done.metrics.get(self._plan.settings.study.metric)
        if value is None or not math.isfinite(value) or done.fold:  # the pruner judges the first fold
            return True
        if done.index + 1 not in running.reported:
            with self._storage.later():
                running.trial.report(value, done.index + 1)  # pruners count whole epochs as steps
        return True

    def should_prune(self, number: int) -> bool:
        """Whether the pruner ends a trial at the epoch that was recorded last. It judges the first fold alone."""
        running = self._running[number]
        return not running.history[max(running.history)].fold and running.trial.should_prune()

    def is_hopeless(self, number: int) -> bool:
        """Whether the complete folds of a trial show that it is worse than the best one. Without a pruner, never."""
        settings = self._plan.settings
        complete = [t for t in self._reader.trials() if t.state == TrialState.COMPLETE]
        if settings.scheduler.name == "none" or not complete:
            return False
        maximize = settings.study.direction == "maximize"
        best = (max if maximize else min)(complete, key=lambda t: t.value or 0.0)
        own = fold_scores(self._running[number].history.values(), settings)
        return folds.is_hopeless(own, fold_scores(record_of(best, self._plan).history, settings), maximize)

    def flush(self) -> list[int]:
        """Write what was recorded since the last flush; return the numbers of the trials concerned.

        A kill loses what is not flushed. The trial's checkpoint still has it.
        """
        unwritten = [number for number, running in self._running.items() if running.unwritten]
        with self._storage.together():
            for number in unwritten:
                running = self._running[number]
                running.trial.set_user_attr(HISTORY, pack_history(running.history.values()))
                running.unwritten = False
        return unwritten

    def mark_progress(self, number: int) -> None:
        """Reset the count of crashes: the trial has saved a checkpoint."""
        trial = self._running[number].trial
        if trial.user_attrs.get(ATTEMPTS):
            trial.set_user_attr(ATTEMPTS, 0)

    def add_notes(self, number: int, notes: Iterable[str]) -> None:
        """Add lines to the pages of a trial, each once."""
        trial = self._running[number].trial
        before = list(trial.user_attrs.get(NOTES, ()))
        if new := [note for note in notes if note not in before]:
            trial.set_user_attr(NOTES, before + new)

    def record_peak_memory(self, number: int, peak_bytes: int) -> None:
        """Keep the largest memory that the trial's processes were seen to hold."""
        trial = self._running[number].trial
        if peak_bytes > trial.user_attrs.get(PEAK_BYTES, 0):
            trial.set_user_attr(PEAK_BYTES, peak_bytes)

    # When a trial ends

    def complete(self, number: int, notes: Iterable[str] = ()) -> TrialRecord:
        value = objective_of(self._running[number].history.values(), self._plan.settings)
        assert value is not None, "a complete trial has reported its metric"
        return self._tell(number, TrialState.COMPLETE, value, notes)

    def prune(self, number: int, notes: Iterable[str] = ()) -> TrialRecord:
        return self._tell(number, TrialState.PRUNED, None, notes)

    def fail(self, number: int, reason: str, detail: str, notes: Iterable[str] = ()) -> TrialRecord:
        trial = self._running[number].trial
        with self._storage.together():
            trial.set_user_attr(REASON, reason)
            trial.set_user_attr(DETAIL, detail[-_DETAIL_CHARS:])
            return self._tell(number, TrialState.FAIL, None, notes)

    def pause(self, number: int, attempts: int = 0, notes: Iterable[str] = ()) -> TrialRecord:
        """Return a trial to the queue, to be resumed."""
        with self._storage.together():
            self.flush()
            self.add_notes(number, notes)
            trial = self._running.pop(number).trial
            if attempts or trial.user_attrs.get(ATTEMPTS):
                trial.set_user_attr(ATTEMPTS, attempts)
            self._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
            return self._reader.read(number)

    def pause_all(self) -> list[int]:
        """Return every running trial to the queue; return their numbers."""
        numbers = sorted(self._running)
        for number in numbers:
            self.pause(number, self._running[number].trial.user_attrs.get(ATTEMPTS, 0))
        return numbers

    def requeue_orphans(self, foreign: Collection[int] = ()) -> list[int]:
        """Return the trials that a dead process left running to the queue; return their numbers.

        Args:
            foreign: The numbers of trials that belong to other processes.
        """
        others = {*self._running, *foreign}
        orphans = [t for t in self._reader.trials() if t.state == TrialState.RUNNING and t.number not in others]
        with self._storage.together():
            for t in orphans:
                self._storage.set_trial_state_values(t._trial_id, TrialState.WAITING)
        return [t.number for t in orphans]

    def _tell(self, number: int, state: TrialState, value: float | None, notes: Iterable[str]) -> TrialRecord:
        with self._storage.together():
            self.flush()
            self.add_notes(number, notes)
            del self._running[number]
            self._study.tell(number, value, state=state)
            return self._reader.read(number)
