"""What is written to the study when a trial's process has ended."""

from __future__ import annotations

import shutil

from overnight.protocol import Reason
from overnight.runner.trial_process import TrialProcess
from overnight.search.history import fold_scores
from overnight.search.record import TrialRecord
from overnight.study.queue import TrialAssignment
from overnight.study.session import StudySession
from overnight.system.kill import describe_exit

# Failures that no point of a search space explains. If they repeat, the study would waste its time.
_BROKEN = ("error", "crashed", "stalled", "checkpoint_unusable")


class Outcomes:
    """Records how the trials of a supervisor end.

    Attributes:
        stalled: the numbers of the trials that were ended because they stalled, in order.
    """

    def __init__(self, session: StudySession) -> None:
        self._session, self._study = session, session.plan.settings.study
        self.stalled: list[int] = []
        self._attempts: dict[int, int] = {}  # how often a trial has ended without progress
        self._failures_in_a_row = 0

    @property
    def too_many_failures(self) -> bool:
        """Whether so many trials in a row have failed that the launch has to end."""
        return self._failures_in_a_row >= self._study.max_consecutive_failures

    def note_start(self, assignment: TrialAssignment) -> None:
        self._attempts[assignment.number] = assignment.attempts

    def note_progress(self, number: int) -> None:
        """A checkpoint of the trial was saved."""
        self._attempts[number] = 0
        self._session.writer.mark_progress(number)

    def record_outcome(self, trial: TrialProcess, stopping: bool) -> TrialRecord:
        """Write how a trial ended and return its record.

        Args:
            stopping: the launch is ending, so that a trial that takes too long to save is killed.
        """
        record = self._record_violation(trial) or self._record_end(trial, stopping)
        if record.done:  # a trial that is tried again says nothing about the others yet
            self._failures_in_a_row = self._failures_in_a_row + 1 if record.reason in _BROKEN else 0
        return record

    def _record_violation(self, trial: TrialProcess) -> TrialRecord | None:
        violation, number = trial.violation, trial.spec.number
        if violation is None or trial.finished is not None:
            return None
        if violation.reason == "stalled":
            self.stalled.append(number)
            return self._retry(number, violation.reason, violation.detail)
        return self._session.writer.fail(number, violation.reason, violation.detail)

    def _record_end(self, trial: TrialProcess, stopping: bool) -> TrialRecord:
        writer, number, finished = self._session.writer, trial.spec.number, trial.finished
        if trial.pruned and (finished is None or finished.outcome in ("stopped", "saved")):
            return writer.prune(number, finished.notes if finished is not None else ())
        if finished is None:
            return writer.pause(number) if stopping else self._record_crash(trial)
        if finished.reason == "checkpoint_unusable":
            shutil.rmtree(trial.spec.checkpoint_folder, ignore_errors=True)  # restart from epoch 0
            return self._retry(number, finished.reason, finished.detail, finished.notes)
        if finished.outcome == "failed":
            return writer.fail(number, finished.reason or "error", finished.detail, finished.notes)
        if finished.outcome == "saved":
            return writer.pause(number, notes=finished.notes)
        if missing := self._missing_objective(number):
            return writer.fail(number, "error", missing, finished.notes)
        return writer.complete(number, finished.notes)

    def _missing_objective(self, number: int) -> str | None:
        """Return what is wrong if the trial never logged the metric. It may log it in some epochs only."""
        history = self._session.read(number).history
        if len(fold_scores(history, self._session.plan.settings)) == max(len({e.fold for e in history}), 1):
            return None
        logged = sorted({name for e in history for name in e.metrics})
        return (
            f"study.metric: must be a metric that the model logs by the end of an epoch, got "
            f"{self._study.metric!r}; it logged {', '.join(logged) or 'none'}"
        )

    def _record_crash(self, trial: TrialProcess) -> TrialRecord:
        how = describe_exit(trial.process)
        detail = f"the trial's process ended by {how}; `overnight logs` shows what it printed"
        return self._retry(trial.spec.number, "crashed", detail)

    def _retry(self, number: int, reason: Reason, detail: str, notes: tuple[str, ...] = ()) -> TrialRecord:
        """Pause a trial to resume it from its checkpoint, or fail it after `study.retries` tries without progress."""
        writer, attempts = self._session.writer, self._attempts[number] + 1
        if attempts <= self._study.retries:
            last_line = detail.strip().splitlines()[-1]
            return writer.pause(number, attempts, (*notes, f"resumed, {reason}: {last_line}"))
        return writer.fail(number, reason, f"{detail}\n{attempts} times in a row without progress", notes)
