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
    """Whether a supervisor is stopping, why, and when it stops waiting.

    A signal may request a stop while another request is handled. All requests are therefore kept, and what they amount
    to is read from them in their order.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._requests: list[tuple[StopReason, float]] = []

    def request(self, reason: StopReason) -> None:
        """Stop for this reason, unless a stop is in progress.

        A user's stop during a limit's stop takes its place. A user's stop during any other stop ends the grace period.
        """
        self._requests.append((reason, self._clock()))

    def _read(self) -> tuple[StopReason | None, float, float]:
        """Return why the supervisor stops, when it kills its trials, and when a user's stop has to be over."""
        found: tuple[StopReason | None, float, float] = None, math.inf, math.inf
        for reason, at in self._requests:
            is_first = found[0] is None or (found[0] is StopReason.LIMIT and reason is StopReason.STOPPED)
            if is_first:
                found = reason, at + GRACE_S, at + EXIT_WITHIN_S
            elif reason is StopReason.STOPPED:
                found = found[0], at, at
        return found

    @property
    def reason(self) -> StopReason | None:
        """None while the supervisor works."""
        return self._read()[0]

    @property
    def is_stopping(self) -> bool:
        return self.reason is not None

    @property
    def is_by_user(self) -> bool:
        return self.reason is StopReason.STOPPED

    @property
    def grace_is_over(self) -> bool:
        return self._clock() >= self._read()[1]

    def seconds_to_kill(self) -> float:
        """Return how long running trials may still save; infinity if no stop is requested."""
        return max(self._read()[1] - self._clock(), 0.0)

    def seconds_to_exit(self) -> float:
        """Return how long a process that a user stopped may still take; negative once it is late."""
        return self._read()[2] - self._clock()
