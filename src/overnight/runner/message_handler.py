"""How a supervisor answers the messages of its trials."""

from __future__ import annotations

import math
from collections.abc import Callable

from overnight.protocol import Alive, Decision, Finished, FoldEnded, Progress, Resumed, StateSaved, TrialMessage
from overnight.runner.trial_outcomes import Outcomes
from overnight.runner.trial_process import TrialProcess
from overnight.runner.watchdog import Watchdog
from overnight.search.schedulers.interface import Answer
from overnight.study.session import StudySession


class MessageHandler:
    """Records what trials report, and decides after each epoch whether a trial goes on.

    Args:
        is_working: False while trials have to save and stop.
        update_limits: Called before a trial that has reached its rung is judged.
    """

    def __init__(
        self,
        session: StudySession,
        watchdog: Watchdog,
        outcomes: Outcomes,
        is_working: Callable[[], bool],
        update_limits: Callable[[], object],
    ) -> None:
        self._session, self._watchdog, self._outcomes = session, watchdog, outcomes
        self._is_working, self._update_limits = is_working, update_limits

    def handle_all(self, trial: TrialProcess) -> None:
        """Handle the messages that have arrived."""
        for message in trial.messages():
            self._handle(trial, message)

    def _handle(self, trial: TrialProcess, message: TrialMessage) -> None:
        self._watchdog.note_activity(message.number)
        match message:
            case Alive():
                pass
            case Progress():
                # The answer is sent before anything is written: the trial waits for it.
                if trial.pruned:  # when it resumed: it finished this epoch before the decision arrived
                    trial.send(Decision.STOP)
                    return
                trial.note(message)
                trial.send(self._decide(trial, message))
            case FoldEnded():
                trial.send(self._decide_fold(trial, message.number))
            case Resumed():
                for done in message.history:
                    self._session.writer.record(done)
                    trial.note(done)
                # It was interrupted before its last epoch was judged, or after it had reached the rung.
                decision = self._at_rung(trial)
                trial.pruned = trial.pruned or decision is Decision.STOP
                if decision is not Decision.CONTINUE:
                    trial.send(Decision.SAVE_AND_STOP)  # the only decision that a trial obeys within an epoch
            case StateSaved():
                self._outcomes.note_progress(message.number)
            case Finished():
                trial.finished = trial.finished or message  # a decision of the supervisor takes precedence

    def _decide(self, trial: TrialProcess, done: Progress) -> Decision:
        metric = self._session.plan.settings.study.metric
        value = done.metrics.get(metric)
        self._session.writer.record(done)
        if value is not None and not math.isfinite(value):
            trial.finished = Finished(done.number, "failed", "diverged", f"{metric} was {value}, not a finite number")
            return Decision.STOP
        # Pruning a complete trial would save nothing and lose its value. A trial that has to stop is pruned as well:
        # this progress is not judged again, and an uninterrupted study would prune the trial here.
        total = trial.spec.config["trainer"]["max_epochs"] if done.step is None else done.total
        is_complete = not trial.spec.fold_seeds and total is not None and done.index + 1 >= total
        if not is_complete and self._session.writer.should_prune(done.number):
            trial.pruned = True
            return Decision.STOP
        if not self._is_working():
            return Decision.SAVE_AND_STOP
        decision = Decision.CONTINUE if is_complete else self._at_rung(trial)
        trial.pruned = trial.pruned or decision is Decision.STOP
        return decision

    def _at_rung(self, trial: TrialProcess) -> Decision:
        """Return what the scheduler lets a trial do. It saves and stops at a rung unless it goes on at once."""
        schedule, number = self._session.schedule, trial.spec.number
        if schedule is None or trial.until is None:
            return Decision.CONTINUE
        if trial.index + 1 >= self._session.plan.units:  # it has only its end to report
            return Decision.CONTINUE
        if trial.index + 1 < trial.until:
            answer = schedule.report(number, trial.index + 1)
            if answer is not Answer.PAUSE:
                return Decision.STOP if answer is Answer.STOP else Decision.CONTINUE
        self._update_limits()
        if not schedule.go_on(number):
            return Decision.SAVE_AND_STOP
        trial.until = schedule.until(number)
        return Decision.CONTINUE

    def _decide_fold(self, trial: TrialProcess, number: int) -> Decision:
        if self._session.writer.is_hopeless(number):
            trial.pruned = True
            return Decision.STOP
        return Decision.CONTINUE if self._is_working() else Decision.SAVE_AND_STOP
