"""The watchdog finds running trials that exceed their limits of time, silence or memory."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import psutil

from overnight.config.settings import TrialSettings

# A longer gap between two ticks means that the supervisor itself was suspended.
SUSPENDED_AFTER_S = 3.0
CHECK_MEMORY_EVERY_S = 1.0
# For a trial's record, its own memory is measured after 4, 8, 16, ... seconds, and then every 30. Each measurement
# blocks the trial's memory allocations for about ten milliseconds.
FIRST_MEASURED_AFTER_S, MEASURED_EVERY_S = 4.0, 30.0
GIB = 2**30
# The share of the machine's memory that all trials together may use if no limit is set.
TRIALS_SHARE = 0.9


@dataclass(frozen=True)
class Violation:
    """The limit that a trial exceeds, as its record states it."""

    reason: Literal["timed_out", "stalled", "out_of_memory"]
    detail: str


@dataclass
class _Watched:
    """Times are seconds of the watchdog's clock; peak_bytes is the largest own memory measured."""

    pid: int
    deadline: float
    active_at: float
    memory_checked_at: float
    started_at: float
    measured_after_s: float = FIRST_MEASURED_AFTER_S
    peak_bytes: int = 0


class Watchdog:
    """Watches running trials by a clock that stops while the supervisor is suspended.

    Time spent suspended does not count: a gap between two ticks moves every deadline by its length. A trial that is
    suspended alone, while its supervisor goes on, is silent.

    Args:
        limits: trial.timeout_s, trial.stall_s and trial.memory_gib. Null means no limit; for memory it means an equal
            share of the machine's memory for each slot.
        slots: the number of trials side by side.
        memory: of the machine, in bytes.
        clock: monotonic, in seconds.
    """

    def __init__(
        self, limits: TrialSettings, slots: int, memory: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits, self._clock = limits, clock
        given = limits.memory_gib
        self._memory = given * GIB if given is not None else memory * TRIALS_SHARE / slots
        self._watched: dict[int, _Watched] = {}
        self._ticked_at, self._suspended_s = clock(), 0.0

    def tick(self) -> None:
        """Notice time spent suspended. Call this a few times a second, before `violation`."""
        now = self._clock()
        if now - self._ticked_at > SUSPENDED_AFTER_S:
            self._suspended_s += now - self._ticked_at
        self._ticked_at = now

    def watch(self, number: int, pid: int, trained_s: float) -> None:
        """Watch a trial that starts or resumes; `trained_s` of earlier runs counts towards its time limit."""
        now, timeout_s = self._now(), self._limits.timeout_s
        deadline = math.inf if timeout_s is None else now + timeout_s - trained_s
        self._watched[number] = _Watched(pid, deadline, now, now, now)

    def note_activity(self, number: int) -> None:
        """Note that a message or a printed line of the trial has arrived."""
        if number in self._watched:
            self._watched[number].active_at = self._now()

    def unwatch(self, number: int) -> int:
        """Stop watching a trial and return its peak memory in bytes; 0 if it was too short to be measured."""
        watched = self._watched.pop(number, None)
        return watched.peak_bytes if watched is not None else 0

    def violation(self, number: int) -> Violation | None:
        """Return the limit that the trial exceeds, if any."""
        watched, now, limits = self._watched[number], self._now(), self._limits
        if now > watched.deadline:
            return Violation("timed_out", f"trial.timeout_s: it took longer than {limits.timeout_s:g} s")
        if limits.stall_s is not None and now - watched.active_at > limits.stall_s:
            detail = f"trial.stall_s: no batch, message or printed line came for {limits.stall_s:g} s"
            return Violation("stalled", detail)
        if now - watched.memory_checked_at >= CHECK_MEMORY_EVERY_S:
            watched.memory_checked_at = now
            used = self._measure(watched, now)
            if used > self._memory:
                return Violation(
                    "out_of_memory",
                    f"trial.memory_gib: it took {used / GIB:.2f} GiB of its own, and may take "
                    f"{self._memory / GIB:.2f}; give it more, or run fewer side by side with slots=...",
                )
        return None

    def _measure(self, watched: _Watched, now: float) -> float:
        """Return the trial's own memory in bytes, or its resident memory, read faster, if that is within the limit."""
        age_s = now - watched.started_at
        is_due = age_s >= watched.measured_after_s
        used = memory_of(watched.pid, 0.0 if is_due else self._memory)
        if is_due or used > self._memory:
            watched.peak_bytes = max(watched.peak_bytes, int(used))
            watched.measured_after_s = age_s + min(age_s, MEASURED_EVERY_S)
        return used

    def _now(self) -> float:
        return self._clock() - self._suspended_s


def memory_of(pid: int, enough: float = 0.0) -> float:
    """Return the bytes of memory that a process and its children hold of their own (USS).

    USS leaves out what a forked trial shares with the forkserver, and takes ten milliseconds to read. The resident
    size includes it; if it is at most `enough`, it is returned instead. Returns 0 if the process has ended.
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
    except psutil.Error:  # it has ended since it was listed
        return 0.0
