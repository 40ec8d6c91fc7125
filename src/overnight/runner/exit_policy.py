"""When a process that shares a study may leave it, and when the study is over. Without peers: at once."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from contextlib import suppress

from overnight.search.limits import Launch
from overnight.search.record import TrialRecord
from overnight.study.session import StudySession
from overnight.study.storage.outage import Unreachable

_LOOK_EVERY_S = 1.0


class ExitPolicy:
    """Whether a supervisor that runs nothing may leave a study which others work on too."""

    def __init__(self, session: StudySession) -> None:
        self._coordinator = session.coordinator
        self._nothing_left: tuple[float, dict[str, float]] | None = None  # since when, and who was there then
        self._unsure, self._look_at = False, 0.0  # whether any of them is gone, and when to look again

    def began(self) -> None:
        """There was something left after all."""
        self._nothing_left = None

    def may_leave(self, records: Iterable[TrialRecord], refused: bool) -> bool:
        """Asked again and again, once there is nothing to begin. records: all that are known. refused: whether a limit
        says that none of those that wait are to be begun."""
        unfinished = {r.state for r in records if not r.done}
        return not (self._coordinator.may_peers_continue(unfinished, refused) or self._others_may_be_gone())

    def _others_may_be_gone(self) -> bool:
        """Whether somebody who shares the study may have died before MLflow had heard of all that they did. Who leaves
        earlier would leave that undone: whoever is the last ends the study's run, and tells what others left untold."""
        now = time.monotonic()
        if self._nothing_left is None:
            self._nothing_left = now, {}
        since, first = self._nothing_left
        if now - since > self._coordinator.peer_timeout_s:
            return False
        if now >= self._look_at:
            self._look_at = now + _LOOK_EVERY_S
            try:
                self._unsure = self._coordinator.may_have_silent_peers(first)
            except Unreachable:
                self._unsure = True
        return self._unsure


def await_tests(confirmation: StudySession, runs: Collection[int], launch: Launch) -> None:
    """Wait for those who test what they have trained themselves, in homes of their own: an answer is told of all.

    runs: the numbers of the confirmation's trials that are to be tested.
    """
    coordinator = confirmation.coordinator
    while set(runs) - confirmation.attributes.tests.keys() and launch.now() < launch.publish_due_at():
        if confirmation.attributes.stop_requested:
            return
        coordinator.leave()  # who is through is waited for by nobody
        with suppress(Unreachable):
            if not coordinator.count_peers():
                return
        time.sleep(_LOOK_EVERY_S)


def give_up(session: StudySession) -> None:
    """Leave a study that fails here. It is closed unless peers work on it, on machines where it may not fail."""
    coordinator = session.coordinator
    with suppress(Unreachable), coordinator.lock("answer"):
        coordinator.leave()
        if not coordinator.count_peers():
            coordinator.close_study()


def is_over(search: StudySession, running: int, launch: Launch) -> bool:
    """Whether a study is over once its answer is told: nobody has launched it anew meanwhile, nor is at a trial that
    was begun as this search ended. What a deadline ends, it ends for all of a launch.

    running: how many trials of the study, its confirmation's included, somebody is at.
    """
    return not search.coordinator.is_relaunched and (running == 0 or launch.ended_by == "deadline")
