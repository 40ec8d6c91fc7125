"""The limits of running trials, by a clock that the tests advance."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from overnight.config.settings import TrialSettings
from overnight.runner.watchdog import GIB, Watchdog, memory_of


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def make_watchdog(clock: Clock, slots: int = 2, memory: int = 64 * GIB, **limits: float | None) -> Watchdog:
    given = {"timeout_s": None, "stall_s": None, "memory_gib": None, **limits}
    return Watchdog(TrialSettings(**given), slots, memory, clock)  # type: ignore[arg-type]


def advance(watchdog: Watchdog, clock: Clock, seconds: float, active: bool = False) -> None:
    """Advance the clock in small ticks, as for a supervisor that is not suspended."""
    until = clock.now + seconds
    while clock.now < until:
        clock.now = min(clock.now + 0.5, until)
        watchdog.tick()
        if active:
            watchdog.note_activity(0)


def test_the_time_limit_counts_what_a_trial_trained_before_it_was_resumed() -> None:
    clock = Clock()
    watchdog = make_watchdog(clock, timeout_s=100.0)
    watchdog.watch(0, os.getpid(), trained_s=30.0)
    advance(watchdog, clock, 69.9, active=True)
    assert watchdog.violation(0) is None
    advance(watchdog, clock, 0.2, active=True)
    violation = watchdog.violation(0)
    assert violation is not None
    assert (violation.reason, violation.detail) == ("timed_out", "trial.timeout_s: it took longer than 100 s")


def test_a_silent_trial_is_stalled() -> None:
    clock = Clock()
    watchdog = make_watchdog(clock, stall_s=10.0)
    watchdog.watch(0, os.getpid(), 0.0)
    advance(watchdog, clock, 60, active=True)
    advance(watchdog, clock, 9.9)
    assert watchdog.violation(0) is None
    advance(watchdog, clock, 0.2)
    violation = watchdog.violation(0)
    assert violation is not None
    assert violation.reason == "stalled"
    assert "trial.stall_s" in violation.detail


def test_time_spent_suspended_counts_neither_as_silence_nor_as_training() -> None:
    clock = Clock()
    watchdog = make_watchdog(clock, stall_s=10.0, timeout_s=20.0)
    watchdog.watch(0, os.getpid(), 0.0)
    advance(watchdog, clock, 5)
    for _ in range(3):  # a laptop that is suspended three times
        clock.now += 3600
        advance(watchdog, clock, 1)
    assert watchdog.violation(0) is None
    advance(watchdog, clock, 4)
    violation = watchdog.violation(0)
    assert violation is not None
    assert violation.reason == "stalled", "ten seconds of silence while the supervisor was running"


def test_without_limits_there_is_no_violation() -> None:
    clock = Clock()
    watchdog = make_watchdog(clock)
    watchdog.watch(0, os.getpid(), 0.0)
    advance(watchdog, clock, 3600)
    assert watchdog.violation(0) is None
    watchdog.unwatch(0)
    watchdog.note_activity(0)  # a last message may come late


@pytest.mark.parametrize(("limits", "memory"), [({"memory_gib": 0.2}, 64 * GIB), ({}, GIB // 2)])
def test_a_trial_that_exceeds_its_share_of_memory_is_out_of_memory(limits: dict[str, float], memory: int) -> None:
    clock = Clock()
    watchdog = make_watchdog(clock, slots=2, memory=memory, **limits)
    code = "import sys; held = bytearray({} << 20); print('held', flush=True); sys.stdin.read()"
    family = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    for mib, ends in ((10, False), (300, True)):
        # A trial's children count as well.
        command = [sys.executable, "-c", family, code.format(mib)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            watchdog.watch(0, process.pid, 0.0)
            advance(watchdog, clock, 5, active=True)
            violation = watchdog.violation(0)
            assert (violation is not None) == ends
            if violation is not None:
                assert violation.reason == "out_of_memory"
                assert "GiB of its own, and may take 0.2" in violation.detail
            assert mib << 20 < watchdog.unwatch(0) < (mib + 60) << 20, "the peak is known afterwards"
            process.stdin.close()  # type: ignore[union-attr]


def test_the_memory_of_a_short_trial_is_not_measured() -> None:
    clock = Clock()
    watchdog = make_watchdog(clock)
    for seconds, known in ((3, False), (5, True)):
        watchdog.watch(0, os.getpid(), 0.0)
        advance(watchdog, clock, seconds)
        assert watchdog.violation(0) is None
        assert (watchdog.unwatch(0) > 0) == known


def test_a_process_that_has_ended_has_no_memory() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert memory_of(process.pid) == 0.0
