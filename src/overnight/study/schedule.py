"""What the scheduler of a study decides, read from its storage and written to it.

Each decision is made while no other process can make one, and is written with it. A study that was killed therefore
goes on as if it had not been.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import optuna
from optuna.trial import TrialState

from overnight.search.attributes import UNTIL
from overnight.search.limits import TimeLeft
from overnight.search.plan import Plan
from overnight.search.schedulers.halving import Halving
from overnight.search.schedulers.interface import Answer, Resume, Scheduler, Start, Trial, epochs_left
from overnight.search.schedulers.study import TrialsReader, first_rung, make_scheduler, rungs_of
from overnight.study.attributes import StudyAttributes
from overnight.study.storage.exclusive import Choice, ExclusiveStorage
from overnight.study.storage.optuna_tables import make_trial_id
from overnight.study.storage.outage import Unreachable
from overnight.study.trial_reader import TrialReader


class Schedule:
    """Asks the scheduler of an open study which trial trains next, and how far.

    Attributes:
        time_left: For how many epochs there is time.
        finishes: No new trial starts, and only the best paused ones are trained to the end.
    """

    def __init__(
        self,
        plan: Plan,
        study: optuna.Study,
        storage: ExclusiveStorage,
        reader: TrialReader,
        attributes: StudyAttributes,
    ) -> None:
        assert plan.pauses
        self._plan, self._study, self._storage = plan, study, storage
        self._reader, self._attributes = reader, attributes
        self._trials_reader = TrialsReader(plan)
        self._scheduler: Scheduler | None = None
        self._first_rung: int | None = None
        self._whole = plan.units
        self.time_left = TimeLeft()
        self.finishes = False

    def choose(self, unavailable: Collection[int]) -> Choice | None:
        """Return the trial for a free slot; None if there is none now.

        Args:
            unavailable: Numbers of trials that other processes have not released, and may not for long: where MLflow
                is away, or the process is dead.
        """
        trials = self._read()
        stored = self._reader.trials()
        free = [t.number for t in stored if t.state == TrialState.WAITING and t.number not in unavailable]
        for trial in trials:
            if trial.state == "running" and trial.number in free:  # it was interrupted
                return Choice(trial.number, {UNTIL: trial.until})
        answer = self._ask(trials)
        if isinstance(answer, Resume) and answer.number in unavailable:
            # The next best one, unless this is the ending, in which the best is worth waiting for.
            others = [_as_running(t) if t.number in unavailable else t for t in trials]
            answer = None if self._is_ending(trials) else self._ask(others)
        if answer is None:
            return None
        if isinstance(answer, Resume):
            return Choice(answer.number, {UNTIL: answer.until})
        started = {trial.number for trial in trials}
        return Choice(next((n for n in free if n not in started), "new"), {UNTIL: answer.until})

    def go_on(self, number: int) -> bool:
        """Return whether a running trial that has reached its rung goes on at once, and let it if so."""
        try:
            self._storage.change(self._study._study_id, number, lambda: self._promotion(number))
        except Unreachable:
            return False
        return self.until(number) > len(self._reader.running[number].history)

    def report(self, number: int, epoch: int) -> Answer:
        """Return what a running trial does after an epoch, counted from 1, before the one at which it pauses anyway."""
        if self._plan.settings.scheduler.target is None:  # ours decides at the rungs alone
            return Answer.GO_ON
        scores = next(t.scores for t in self._read() if t.number == number)
        if epoch < len(scores):  # trained again after an interruption: it went on here
            return Answer.GO_ON
        assert self._scheduler is not None
        answer = self._scheduler.report(number, len(scores), scores[-1])
        if answer is Answer.PAUSE:
            with contextlib.suppress(Unreachable):
                self._storage.change(self._study._study_id, number, lambda: {UNTIL: len(scores)})
        return answer

    def until(self, number: int) -> int:
        """The epochs to which a trial may train."""
        trial_id = make_trial_id(self._study._study_id, number)
        return int(self._storage.get_trial(trial_id).user_attrs[UNTIL])

    def settle(self) -> list[int]:
        """End the trials that wait at a rung, as pruned, once the search is over; return their numbers.

        Other clients of Optuna and MLflow see a study without trials that wait. `reopen` undoes it. Where the database
        is away they go on waiting, until the next launch has ended.
        """
        study_id, settled = self._study._study_id, []
        for trial in self._read():
            if trial.state != "paused" or self._reader.trials()[trial.number].state != TrialState.WAITING:
                continue
            try:
                claimed = self._storage.claim(study_id, trial.number, lambda: True)
            except Unreachable:
                break
            if claimed == trial.number:
                trial_id = make_trial_id(study_id, trial.number)
                reports = self._storage.get_trial(trial_id).intermediate_values
                value = reports[max(reports)] if reports else None  # as Study.tell does
                self._storage.set_trial_state_values(trial_id, TrialState.PRUNED, None if value is None else [value])
                settled.append(trial.number)
        return settled

    def _promotion(self, number: int) -> Mapping[str, Any]:
        trials = self._read()
        own = next(t for t in trials if t.number == number)
        if own.epochs > own.until:  # a kill came between its promotion and the write: it was promoted
            own = self._sent_on(trials, own, own.epochs)
        if own.epochs < own.until:  # or pausing before the first rung is too expensive, as has been measured since
            return {UNTIL: own.until}
        paused = [replace(own, state="paused") if t.number == number else t for t in trials]
        if own.latest == -math.inf:  # it has no value yet, by which it could be compared
            further = self._sent_on(trials, own, own.epochs + 1).until
            left = min(self._left(paused), self.time_left.one_slot)
            return {UNTIL: further if further - own.epochs <= left else own.until}
        answer = self._ask(paused)
        return {UNTIL: answer.until if isinstance(answer, Resume) and answer.number == number else own.until}

    def _sent_on(self, trials: list[Trial], trial: Trial, epochs: int) -> Trial:
        """A trial that is sent to the first rung of at least `epochs` epochs."""
        rungs = self._scheduler.rungs if isinstance(self._scheduler, Halving) else rungs_of(trials)
        return replace(trial, until=next((rung for rung in rungs if rung >= epochs), epochs))

    def _ask(self, trials: list[Trial]) -> Start | Resume | None:
        assert self._scheduler is not None
        left, slot_left = self._left(trials), self.time_left.one_slot
        if isinstance(self._scheduler, Halving):
            answers = self._scheduler.finish if self.finishes else self._scheduler.next
            return answers(trials, left, slot_left)
        left = min(left, slot_left)
        return self._scheduler.next(trials, min(left, self._whole) if self.finishes else left)  # as if the budget ended

    def _is_ending(self, trials: list[Trial]) -> bool:
        left, slot_left = self._left(trials), self.time_left.one_slot
        if isinstance(self._scheduler, Halving):
            return self.finishes or self._scheduler.is_ending(trials, left, slot_left)
        return self.finishes or min(left, slot_left) <= self._whole

    def _left(self, trials: list[Trial]) -> float:
        """The epochs that are neither trained nor reserved, of the budget and of those for which there is time."""
        # The time is that of the slots here, so trials that run elsewhere take none of it.
        reserved = sum(max(t.until - t.epochs, 0) for t in trials if t.number in self._reader.running)
        return min(epochs_left(trials, self._plan.budget.epochs), self.time_left.all_slots - reserved)

    def _read(self) -> list[Trial]:
        running = {number: running.history.values() for number, running in self._reader.running.items()}
        has_deadline = math.isfinite(self.time_left.one_slot)
        trials = self._trials_reader.read(self._reader.trials(), running, with_pace=has_deadline)
        settings = self._plan.settings.scheduler
        rung = settings.min_epochs if settings.target is None else 1
        if rung is None:
            rung = self._measured_first_rung(trials)
            trials = [_sent_to(rung, t) for t in trials]
        if self._scheduler is None or rung != self._first_rung:
            self._scheduler, self._first_rung = make_scheduler(self._plan, rung), rung
        return trials

    def _measured_first_rung(self, trials: list[Trial]) -> int:
        """The epochs before the first pause. They are measured once, so that a restart decides as before."""
        known = self._first_rung if self._first_rung != 1 else None
        if known is None and (known := self._attributes.first_rung) is None:
            paused = [t.until for t in trials if t.state == "paused"]  # by a launch with scheduler.min_epochs
            seconds = [e.seconds for r in self._reader.running.values() for e in r.history.values()]
            if not (paused or seconds):
                return 1
            known = min(paused) if paused else first_rung(self._plan, min(seconds))
            self._attributes.set_first_rung(known)
        return known


def _sent_to(rung: int, trial: Trial) -> Trial:
    """A trial that started before the first rung was known trains to it."""
    if trial.until >= rung or trial.state not in ("paused", "running"):
        return trial
    return replace(trial, until=rung, state="running" if trial.epochs < rung else trial.state)


def _as_running(trial: Trial) -> Trial:
    """A paused trial as one that counts where it is, and can't be resumed now."""
    return replace(trial, state="running") if trial.state == "paused" else trial
