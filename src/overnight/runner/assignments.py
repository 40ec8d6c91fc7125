"""Which trial a supervisor starts next."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping

from overnight.runner.shared_exit import ExitPolicy
from overnight.search.limits import Limits, TimeLeft
from overnight.search.record import TrialRecord
from overnight.study.queue import TrialAssignment
from overnight.study.session import StudySession
from overnight.study.storage.outage import Unreachable


class Assignments:
    """Asks the study for trials to run, as far as the limits allow.

    Args:
        only: the number of the single trial to run.

    Attributes:
        are_exhausted: the last request returned no trial.
    """

    def __init__(
        self,
        session: StudySession,
        limits: Limits,
        only: int | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session, self._limits, self._only, self._clock = session, limits, only, clock
        self._exit_policy = ExitPolicy(session, clock)
        self._ask_again_at = 0.0
        self._is_refused = False  # the limits allow no trial to start
        self._is_unreachable = False  # the storage was, at the last request
        self._has_news = False  # peers have changed the study since the last request
        self.are_exhausted = False

    @property
    def may_ask(self) -> bool:
        return self._clock() >= self._ask_again_at

    def ask(self, records: Mapping[int, TrialRecord], running: Collection[int]) -> TrialAssignment | None:
        """Return the next trial; None if there is none now, or the storage cannot be reached."""
        self._has_news = False
        try:
            assignment, self._is_unreachable = self._next(records, running), False
        except Unreachable:
            assignment, self._is_unreachable = None, True
        self.are_exhausted = assignment is None
        if assignment is None:
            self._ask_again_at = self._clock() + self._session.coordinator.ask_again_s
        return assignment

    def update_limits(self, records: Mapping[int, TrialRecord]) -> bool:
        """Tell the scheduler how much time is left; return whether a trial may start."""
        schedule, time_left = self._session.schedule, self._limits.time_left(records)
        if schedule is not None:
            schedule.time_left = time_left or TimeLeft(0.0, 0.0)
            schedule.finishes = self._limits.finishes(records)
        return time_left is not None

    def note_start(self) -> None:
        self._exit_policy.note_start()

    def note_end(self) -> None:
        """A trial of this process has ended: ask again at once."""
        self._ask_again_at = 0.0

    def note_news(self) -> None:
        """Peers have changed the study: the refusal of the limits was for older records."""
        self._is_refused, self._has_news = False, True

    def may_follow(self, records: Mapping[int, TrialRecord]) -> bool:
        """Return whether a trial may still follow, while none runs here."""
        if self._is_unreachable:
            return True
        if self._has_news and self._only is None:  # a trial that a peer has paused may go on here
            return True
        return self._only is None and not self._exit_policy.may_leave(records.values(), self._is_refused)

    def _next(self, records: Mapping[int, TrialRecord], running: Collection[int]) -> TrialAssignment | None:
        queue = self._session.queue
        if self._only is not None:
            is_open = not records[self._only].done and self._only not in running
            return queue.ask_for(self._only) if is_open else None
        if self._session.schedule is not None:
            self._is_refused = not self.update_limits(records)
            if self._is_refused:
                return None
            return queue.ask_scheduled(self._session.schedule)
        allowed = self._limits.next_trial(records, running)
        self._is_refused = allowed is None
        if allowed is None:
            return None
        if allowed == "any":
            return queue.ask()
        return queue.ask_new() if allowed == "new" else queue.ask_for(allowed)
