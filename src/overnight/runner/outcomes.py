"""The rules by which a trial's end becomes the ledger's word on it."""

from __future__ import annotations

import shutil

from overnight.protocol import Reason
from overnight.runner.trial_process import TrialProcess
from overnight.search.record import TrialRecord, objective_of
from overnight.study.queue import TrialAssignment
from overnight.study.session import StudySession

# What no point of a search space is to blame for: the night would be wasted if it went on like that.
_BROKEN = ("error", "crashed", "stalled", "checkpoint_unusable")


class Outcomes:
    """What becomes of each trial that a supervisor started, once its process is through.

    silent: the numbers of those that were ended for saying nothing, in order.
    """

    def __init__(self, session: StudySession) -> None:
        self._session, self._study = session, session.plan.settings.study
        self.silent: list[int] = []
        self._attempts: dict[int, int] = {}  # how often each has ended without getting further
        self._in_a_row = 0  # trials that failed by what is broken

    @property
    def too_many(self) -> bool:
        """Whether so many have failed in a row that it is no use to go on."""
        return self._in_a_row >= self._study.max_consecutive_failures

    def began(self, assignment: TrialAssignment) -> None:
        self._attempts[assignment.number] = assignment.attempts

    def got_further(self, number: int) -> None:
        """A trial's state was saved."""
        self._attempts[number] = 0
        self._session.writer.mark_progress(number)

    def of(self, trial: TrialProcess, stopping: bool) -> TrialRecord:
        """Write down how a trial ended; the record that came of it.

        stopping: whether the supervisor's work is ending, and trials are killed that take too long to save.
        """
        record = self._of(trial, stopping)
        if record.done:  # one that is tried again says nothing yet of the others
            self._in_a_row = self._in_a_row + 1 if record.reason in _BROKEN else 0
        return record

    def _of(self, trial: TrialProcess, stopping: bool) -> TrialRecord:
        session, number, finished, violation = self._session, trial.spec.number, trial.finished, trial.violation
        if violation is not None and finished is None:
            if violation.reason == "stalled":
                self.silent.append(number)
                return self._try_again(number, violation.reason, violation.detail)
            return session.writer.fail(number, violation.reason, violation.detail)
        if trial.pruned and (finished is None or finished.ending in ("ended", "saved")):
            return session.writer.prune(number, finished.notes if finished is not None else ())
        if finished is None:
            return session.writer.pause(number) if stopping else self._crashed(trial)
        if finished.reason == "checkpoint_unusable":
            # Without its state the trial starts over.
            shutil.rmtree(trial.spec.folder, ignore_errors=True)
            return self._try_again(number, finished.reason, finished.detail, finished.notes)
        if finished.ending == "failed":
            return session.writer.fail(number, finished.reason or "error", finished.detail, finished.notes)
        if finished.ending == "saved":
            return session.writer.pause(number, notes=finished.notes)
        history = session.read(number).history
        if objective_of(history, session.plan.settings) is None:  # many log it in some epochs only, but it must come
            logged = sorted({name for e in history for name in e.metrics})
            detail = (
                f"study.metric: must be a metric that the model logs by the end of an epoch, got "
                f"{self._study.metric!r}; it logged {', '.join(logged) or 'none'}"
            )
            return session.writer.fail(number, "error", detail, finished.notes)
        return session.writer.complete(number, finished.notes)

    def _crashed(self, trial: TrialProcess) -> TrialRecord:
        trial.process.join(1)
        code = trial.process.exitcode
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        said = "`overnight logs` shows what it printed"
        return self._try_again(trial.spec.number, "crashed", f"the trial's process ended by {how}; {said}")

    def _try_again(self, number: int, reason: Reason, detail: str, notes: tuple[str, ...] = ()) -> TrialRecord:
        """Have a trial go on from its state, unless it keeps ending like this without getting further."""
        attempts = self._attempts[number] + 1
        if attempts <= self._study.retries:
            first = detail.strip().splitlines()[-1]
            return self._session.writer.pause(number, attempts, (*notes, f"taken up again, {reason}: {first}"))
        return self._session.writer.fail(
            number, reason, f"{detail}\n{attempts} times in a row without getting further", notes
        )
