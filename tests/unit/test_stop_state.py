"""Why and how a launch ends, by a clock that the tests advance."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest

from overnight.runner.stop_state import EXIT_WITHIN_S, GRACE_S, StopReason, StopState


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_stop_gives_trials_a_grace_period_and_the_process_a_time_to_exit() -> None:
    clock = Clock()
    stopping = StopState(clock)
    assert (stopping.is_stopping, stopping.reason, stopping.grace_is_over) == (False, None, False)
    stopping.request(StopReason.STOPPED)
    assert (stopping.is_stopping, stopping.is_by_user, stopping.grace_is_over) == (True, True, False)
    assert stopping.seconds_to_exit() == EXIT_WITHIN_S
    clock.now += GRACE_S
    assert stopping.grace_is_over


def test_a_second_stop_ends_the_grace_period() -> None:
    stopping = StopState(Clock())
    stopping.request(StopReason.STOPPED)
    stopping.request(StopReason.STOPPED)
    assert stopping.grace_is_over
    assert stopping.seconds_to_exit() == 0


def test_a_users_stop_takes_the_place_of_a_limits_stop_with_a_new_grace_period() -> None:
    clock = Clock()
    stopping = StopState(clock)
    stopping.request(StopReason.LIMIT)
    clock.now += GRACE_S
    stopping.request(StopReason.STOPPED)
    assert (stopping.reason, stopping.grace_is_over) == (StopReason.STOPPED, False)


def test_a_users_stop_after_failures_kills_and_leaves_the_reason() -> None:
    stopping = StopState(Clock())
    stopping.request(StopReason.FAILURES)
    stopping.request(StopReason.STOPPED)
    assert (stopping.reason, stopping.grace_is_over) == (StopReason.FAILURES, True)


def test_a_limit_changes_nothing_while_a_stop_is_in_progress() -> None:
    clock = Clock()
    stopping = StopState(clock)
    stopping.request(StopReason.STOPPED)
    clock.now += 1
    stopping.request(StopReason.LIMIT)
    stopping.request(StopReason.FAILURES)
    assert (stopping.reason, stopping.seconds_to_exit()) == (StopReason.STOPPED, EXIT_WITHIN_S - 1)


@pytest.mark.parametrize("reason", [StopReason.LIMIT, StopReason.FAILURES])
def test_a_users_stop_is_obeyed_wherever_it_interrupts_another_request(reason: StopReason) -> None:
    seen, instruction = set(), 0
    while (stopping := _interrupted(reason, instruction)) is not None:
        seen.add((stopping.reason, stopping.grace_is_over))
        instruction += 1
    assert instruction > 5, "every instruction of a request was interrupted"
    before = (StopReason.STOPPED, False)
    assert seen <= {before, before if reason is StopReason.LIMIT else (reason, True)}


def _interrupted(reason: StopReason, instruction: int) -> StopState | None:
    """Have a signal request a stop before an instruction of a request; None if it has not so many."""
    stopping, left = StopState(Clock()), instruction

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if frame.f_code is not StopState.request.__code__ or left < 0:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left < 0:
                stopping.request(StopReason.STOPPED)
        return trace

    tracing = sys.gettrace()
    sys.settrace(trace)
    try:
        stopping.request(reason)
    finally:
        sys.settrace(tracing)
    return stopping if left < 0 else None
