"""When a process may leave a study that peers work on too, and when the study ends. Without peers: at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress

from overnight.search.limits import Launch
from overnight.search.record import TrialRecord
from overnight.study.session import StudySession
from overnight.study.storage.outage import Unreachable

_POLL_EVERY_S = 1.0


class ExitPolicy:
    """Decides whether a supervisor that runs no trial may leave a study."""

    def __init__(self, session: StudySession, clock: Callable[[], float] = time.monotonic) -> None:
        self._coordinator, self._clock = session.coordinator, clock
        self._idle_since: float | None = None
        self._first_seen: dict[str, float] = {}  # peers, since this process is idle
        self._has_silent_peers, self._poll_at = False, 0.0

    def note_start(self) -> None:
        """A trial started: this process is not idle."""
        self._idle_since = None

    def may_leave(self, records: Iterable[TrialRecord], start_refused: bool) -> bool:
        """Return whether nothing can follow. Call this repeatedly while no trial runs or can start.

        Args:
            records: all that are known.
            start_refused: a limit forbids the waiting trials to start.
        """
        unfinished = {r.state for r in records if not (r.done or r.waits_at_rung)}
        return not (self._coordinator.may_peers_continue(unfinished, start_refused) or self._may_peers_be_dead())

    def _may_peers_be_dead(self) -> bool:
        """Return whether a peer may have died before MLflow showed all that it did.

        The last process to leave ends the study's run and writes what others left incomplete. If this process left
        earlier, that would remain undone.
        """
        now = self._clock()
        if self._idle_since is None:
            self._idle_since, self._first_seen = now, {}
        if now - self._idle_since > self._coordinator.peer_timeout_s:
            return False
        if now >= self._poll_at:
            self._poll_at = now + _POLL_EVERY_S
            try:
                self._has_silent_peers = self._coordinator.may_have_silent_peers(self._first_seen)
            except Unreachable:
                self._has_silent_peers = True
        return self._has_silent_peers


def await_tests(confirmation: StudySession, trials: Collection[int], launch: Launch) -> None:
    """Wait for peers to test the networks whose weights are on their machines, so that the answer covers them.

    Args:
        trials: the numbers of the confirmation's trials to test.
    """
    coordinator = confirmation.coordinator
    while set(trials) - confirmation.attributes.tests.keys() and launch.now() < launch.publish_due_at():
        if confirmation.attributes.stop_requested:
            return
        coordinator.leave()  # peers do not wait for a process that has tested its own
        with suppress(Unreachable):
            if not coordinator.count_peers():
                return
        time.sleep(_POLL_EVERY_S)


def give_up(session: StudySession) -> None:
    """Leave a study that fails here. It is closed unless peers work on it, on machines where it may not fail."""
    coordinator = session.coordinator
    with suppress(Unreachable), coordinator.lock("answer"):
        coordinator.leave()
        if not coordinator.count_peers():
            coordinator.close_study()


def is_over(search: StudySession, running: int, launch: Launch) -> bool:
    """Return whether a study is complete once its answer is published.

    It is not if it was launched again meanwhile, or if a trial still runs that started as the search ended. A
    deadline ends a launch for all processes.

    Args:
        running: the number of running trials of the study and its confirmation.
    """
    return not search.coordinator.is_relaunched and (running == 0 or launch.ended_by == "deadline")
