"""The watchdog: which running trial takes too long, says nothing, or takes more memory than it may."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import psutil

from overnight.config.sections import TrialSettings

# Between two looks of a supervisor that is awake passes a fraction of a second, a few at the most.
GAP_S = 3.0
LOOK_AT_MEMORY_EVERY_S = 1.0
# A trial's own memory, for its record, is read after 4, 8, 16, ... seconds, and every 30 in the end: it takes some ten
# milliseconds, in which the trial may not ask for more.
WEIGH_FIRST_S, WEIGH_EVERY_S = 4.0, 30.0
GIB = 2**30
# Of the machine's memory, what trials may take between them where no limit is set: the rest is the supervisor's.
TRIALS_SHARE = 0.9


@dataclass(frozen=True)
class Ruling:
    """Why a trial has to end, as its record will say it."""

    reason: Literal["timed_out", "stalled", "out_of_memory"]
    detail: str


@dataclass
class _Watched:
    """Times by the watchdog's clock, in seconds; peak: of the trial's own memory, in bytes, as far as it was read."""

    pid: int
    deadline: float
    heard: float
    looked: float
    since: float
    weigh_after: float = WEIGH_FIRST_S
    peak: int = 0


class Watchdog:
    """Watches running trials by a clock that stands still while its owner does.

    Where a laptop sleeps, or all of it is stopped, nobody was silent: a gap between two ticks moves every deadline
    by as much. A trial that is stopped alone, while its supervisor goes on ticking, is silent.

    Args:
        limits: trial.timeout_s, trial.stall_s and trial.memory_gib; null is no limit, but for memory, where it is an
            equal share of the machine's for every slot.
        slots: trials side by side. memory: the machine's, in bytes. clock: seconds, never set back.
    """

    def __init__(
        self, limits: TrialSettings, slots: int, memory: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits, self._clock = limits, clock
        given = limits.memory_gib
        self._memory = given * GIB if given is not None else memory * TRIALS_SHARE / slots
        self._watched: dict[int, _Watched] = {}
        self._ticked, self._lost = clock(), 0.0

    def tick(self) -> None:
        """To be called a few times a second, before any ruling is asked for."""
        now = self._clock()
        if now - self._ticked > GAP_S:
            self._lost += now - self._ticked
        self._ticked = now

    def watch(self, number: int, pid: int, trained_s: float) -> None:
        """A trial starts, or goes on; trained_s: what its epochs before took, which its time limit counts."""
        now, timeout_s = self._now(), self._limits.timeout_s
        deadline = float("inf") if timeout_s is None else now + timeout_s - trained_s
        self._watched[number] = _Watched(pid, deadline, now, now, now)

    def heard(self, number: int) -> None:
        """The trial has said something, or printed."""
        if number in self._watched:
            self._watched[number].heard = self._now()

    def forget(self, number: int) -> int:
        """The trial is through; the most bytes of its own that were seen, 0 where it was too short to be looked at."""
        watched = self._watched.pop(number, None)
        return watched.peak if watched is not None else 0

    def ruling(self, number: int) -> Ruling | None:
        """Why the trial must end now; None where it may go on."""
        watched, now, limits = self._watched[number], self._now(), self._limits
        if now > watched.deadline:
            return Ruling("timed_out", f"trial.timeout_s: it took longer than {limits.timeout_s:g} s")
        if limits.stall_s is not None and now - watched.heard > limits.stall_s:
            return Ruling("stalled", f"trial.stall_s: no batch, word or printed line came for {limits.stall_s:g} s")
        if now - watched.looked >= LOOK_AT_MEMORY_EVERY_S:
            watched.looked = now
            taken = self._weigh(watched, now)
            if taken > self._memory:
                return Ruling(
                    "out_of_memory",
                    f"trial.memory_gib: it took {taken / GIB:.2f} GiB of its own, and may take "
                    f"{self._memory / GIB:.2f}; give it more, or run fewer side by side with slots=...",
                )
        return None

    def _weigh(self, watched: _Watched, now: float) -> float:
        """Bytes that the trial holds: its own, or the resident ones, read faster, where these keep the limit."""
        due = now - watched.since >= watched.weigh_after
        taken = memory_of(watched.pid, 0.0 if due else self._memory)
        if due or taken > self._memory:
            watched.peak = max(watched.peak, int(taken))
            watched.weigh_after = now - watched.since + min(now - watched.since, WEIGH_EVERY_S)
        return taken

    def _now(self) -> float:
        return self._clock() - self._lost


def memory_of(pid: int, enough: float = 0.0) -> float:
    """Bytes that a process and its children hold of their own: what would be free without them.

    What a forked trial shares with the forkserver is not counted (USS). Reading that takes ten milliseconds, so the
    resident size, which counts it, is returned where that is no more than `enough` already. 0 for one that is gone.
    """
    try:
        trial = psutil.Process(pid)
        family = [trial, *trial.children(recursive=True)]
    except psutil.Error:
        return 0.0
    resident = sum(_read(p, "memory_info", "rss") for p in family)
    return resident if resident <= enough else sum(_read(p, "memory_full_info", "uss") for p in family)


def _read(process: psutil.Process, method: str, name: str) -> float:
    try:
        return float(getattr(getattr(process, method)(), name))
    except psutil.Error:  # it has ended meanwhile
        return 0.0
