"""Which trials must end, by a clock that a test turns by hand."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from overnight.config.sections import TrialSettings
from overnight.runner.watchdog import GIB, Watchdog, memory_of


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def dog(clock: Clock, slots: int = 2, memory: int = 64 * GIB, **limits: float | None) -> Watchdog:
    given = {"timeout_s": None, "stall_s": None, "memory_gib": None, **limits}
    return Watchdog(TrialSettings(**given), slots, memory, clock)  # type: ignore[arg-type]


def live(watchdog: Watchdog, clock: Clock, seconds: float, heard: bool = False) -> None:
    """Let time pass as it does for a supervisor that is awake: in small ticks."""
    until = clock.now + seconds
    while clock.now < until:
        clock.now = min(clock.now + 0.5, until)
        watchdog.tick()
        if heard:
            watchdog.heard(0)


def test_a_trial_may_take_as_long_as_its_limit_says_what_it_trained_before_included() -> None:
    clock = Clock()
    watchdog = dog(clock, timeout_s=100.0)
    watchdog.watch(0, os.getpid(), trained_s=30.0)
    live(watchdog, clock, 69.9, heard=True)
    assert watchdog.ruling(0) is None
    live(watchdog, clock, 0.2, heard=True)
    ruling = watchdog.ruling(0)
    assert ruling is not None
    assert (ruling.reason, ruling.detail) == ("timed_out", "trial.timeout_s: it took longer than 100 s")


def test_a_trial_of_which_nothing_is_heard_is_stalled() -> None:
    clock = Clock()
    watchdog = dog(clock, stall_s=10.0)
    watchdog.watch(0, os.getpid(), 0.0)
    live(watchdog, clock, 60, heard=True)
    live(watchdog, clock, 9.9)
    assert watchdog.ruling(0) is None
    live(watchdog, clock, 0.2)
    ruling = watchdog.ruling(0)
    assert ruling is not None
    assert ruling.reason == "stalled"
    assert "trial.stall_s" in ruling.detail


def test_while_the_supervisor_sleeps_nobody_is_silent_and_no_time_is_taken() -> None:
    clock = Clock()
    watchdog = dog(clock, stall_s=10.0, timeout_s=20.0)
    watchdog.watch(0, os.getpid(), 0.0)
    live(watchdog, clock, 5)
    for _ in range(3):  # a laptop that is closed again and again
        clock.now += 3600
        live(watchdog, clock, 1)
    assert watchdog.ruling(0) is None
    live(watchdog, clock, 4)
    ruling = watchdog.ruling(0)
    assert ruling is not None
    assert ruling.reason == "stalled", "it was silent for ten seconds that were lived through"


def test_without_limits_nothing_is_too_long() -> None:
    clock = Clock()
    watchdog = dog(clock)
    watchdog.watch(0, os.getpid(), 0.0)
    live(watchdog, clock, 3600)
    assert watchdog.ruling(0) is None
    watchdog.forget(0)
    watchdog.heard(0)  # its last words may come late


@pytest.mark.parametrize(("limits", "memory"), [({"memory_gib": 0.2}, 64 * GIB), ({}, GIB // 2)])
def test_a_trial_that_takes_more_memory_than_its_share_is_ended_by_name(limits: dict[str, float], memory: int) -> None:
    clock = Clock()
    watchdog = dog(clock, slots=2, memory=memory, **limits)
    code = "import sys; held = bytearray({} << 20); print('held', flush=True); sys.stdin.read()"
    family = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    for mib, ends in ((10, False), (300, True)):
        # A trial's children count as well.
        command = [sys.executable, "-c", family, code.format(mib)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            watchdog.watch(0, process.pid, 0.0)
            live(watchdog, clock, 5, heard=True)
            ruling = watchdog.ruling(0)
            assert (ruling is not None) == ends
            if ruling is not None:
                assert ruling.reason == "out_of_memory"
                assert "GiB of its own, and may take 0.2" in ruling.detail
            assert mib << 20 < watchdog.forget(0) < (mib + 60) << 20, "the most that it held is known afterwards"
            process.stdin.close()  # type: ignore[union-attr]


def test_a_short_trial_is_spared_the_reading_of_its_memory() -> None:
    clock = Clock()
    watchdog = dog(clock)
    for seconds, known in ((3, False), (5, True)):
        watchdog.watch(0, os.getpid(), 0.0)
        live(watchdog, clock, seconds)
        assert watchdog.ruling(0) is None
        assert (watchdog.forget(0) > 0) == known


def test_a_process_that_is_gone_takes_no_memory() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert memory_of(process.pid) == 0.0
