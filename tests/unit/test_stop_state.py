"""Why and how a launch ends, by a clock that the tests advance."""

from __future__ import annotations

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
