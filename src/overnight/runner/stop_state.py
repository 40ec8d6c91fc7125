"""Why and how a launch ends."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from enum import StrEnum

GRACE_S = 6.0  # Running trials have this long to save after a stop is requested. Then they are killed.
# After a user's stop the process ends within this time. The next start writes what MLflow lacks by then.
EXIT_WITHIN_S = 8.0


class StopReason(StrEnum):
    """Why a launch of a study ended."""

    COMPLETE = "complete"  # the budget is spent
    STOPPED = "stopped"  # a signal or `overnight stop`
    FAILURES = "failures"  # too many failed trials in a row
    LIMIT = "limit"  # patience, a terminator or a deadline ended it before the budget was spent


class StopState:
    """Whether a supervisor is stopping, why, and when it stops waiting. Only `request` changes it.

    Attributes:
        reason: None while the supervisor works.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.reason: StopReason | None = None
        self._kill_at = self._exit_at = math.inf

    def request(self, reason: StopReason) -> None:
        """Stop for this reason, unless a stop is in progress.

        A user's stop during a limit's stop takes its place. A user's stop during any other stop ends the grace period.
        """
        in_progress = self.reason not in (None, StopReason.LIMIT)
        if reason is not StopReason.STOPPED and self.reason is not None:
            return
        if not in_progress:
            self.reason = reason
        now = self._clock()
        self._kill_at = now if in_progress else now + GRACE_S
        self._exit_at = now if in_progress else now + EXIT_WITHIN_S

    @property
    def is_stopping(self) -> bool:
        return self.reason is not None

    @property
    def is_by_user(self) -> bool:
        return self.reason is StopReason.STOPPED

    @property
    def grace_is_over(self) -> bool:
        return self._clock() >= self._kill_at

    def seconds_to_kill(self) -> float:
        """Return how long running trials may still save; infinity if no stop is requested."""
        return max(self._kill_at - self._clock(), 0.0)

    def seconds_to_exit(self) -> float:
        """Return how long a process that a user stopped may still take; negative once it is late."""
        return self._exit_at - self._clock()
