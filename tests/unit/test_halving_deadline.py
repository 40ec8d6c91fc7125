"""Quota halving with a deadline: slots that train side by side on a simulated clock, until the time is up."""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight.search.schedulers.halving import Halving
from overnight.search.schedulers.interface import Resume, Start, Trial


class WithDeadline:
    """A study of slots that train side by side until the time is up. An epoch takes a second, times the trial's pace.

    A slot asks as the supervisor does: at its rung for the same trial first, and then for any.
    """

    def __init__(self, halving: Halving, slots: int, time_s: float, seed: int, paces: Sequence[float]) -> None:
        self.halving, self.slots, self.time_s, self.rng, self.paces = halving, slots, time_s, random.Random(seed), paces
        self.trials: list[Trial] = []
        self.ends: list[tuple[float, int]] = []  # when a running trial reaches its target, and its number
        self.now = self.last_completion = 0.0

    def run(self) -> None:
        while True:
            while len(self.ends) < self.slots and self.now < self.time_s and (answer := self._ask()) is not None:
                if isinstance(answer, Start):
                    number = len(self.trials)
                    self.trials.append(Trial(number, "paused", (), 0, self.paces[number % len(self.paces)]))
                    self._send(number, answer.until)
                else:
                    self._send(answer.number, answer.until)
            if not self.ends or self.ends[0][0] > self.time_s:
                return
            self.now, number = heapq.heappop(self.ends)
            trial = self.trials[number]
            is_complete = trial.until == self.halving.max_epochs
            scores = tuple(round(self.rng.random(), 1) for _ in range(trial.until))
            self.trials[number] = replace(trial, state="complete" if is_complete else "paused", scores=scores)
            answer = None if is_complete else self._ask()
            if isinstance(answer, Resume) and answer.number == number:
                self._send(number, answer.until)

    def _ask(self) -> Start | Resume | None:
        one_slot = self.time_s - self.now
        reserved = sum(t.until - t.epochs for t in self.trials if t.state == "running")
        return self.halving.next(self.trials, one_slot * self.slots - reserved, one_slot)

    def _send(self, number: int, until: int) -> None:
        trial = self.trials[number]
        ends_at = self.now + (until - trial.epochs) * trial.pace
        if until == self.halving.max_epochs and trial.epochs > 0:  # the pace of a new trial is not known
            self.last_completion = max(self.last_completion, ends_at)
        heapq.heappush(self.ends, (ends_at, number))
        self.trials[number] = replace(trial, state="running", until=until)


with_deadlines = st.builds(
    lambda max_epochs, slots, trainings, seed, paces: WithDeadline(
        Halving(max_epochs), slots, trainings * max_epochs + 2, seed, paces
    ),
    st.integers(1, 40),
    st.integers(1, 16),
    st.floats(1, 8),
    st.integers(0, 2**32),
    st.one_of(st.just([1.0]), st.lists(st.floats(0.3, 3), min_size=1, max_size=9)),
)


@given(with_deadlines)
def test_no_trial_is_sent_to_the_end_that_its_slot_has_no_time_for(simulation: WithDeadline) -> None:
    simulation.run()
    assert simulation.last_completion <= simulation.time_s + 1e-6


@given(with_deadlines)
def test_a_deadline_with_time_for_one_training_gives_a_complete_trial(simulation: WithDeadline) -> None:
    simulation.paces = [1.0]
    simulation.run()
    assert any(t.state == "complete" for t in simulation.trials)


@pytest.mark.parametrize("slots", [1, 2, 4, 8])
def test_the_slots_complete_their_best_trials_side_by_side_before_a_deadline(slots: int) -> None:
    for seed in range(20):
        simulation = WithDeadline(Halving(20), slots, 60.0, seed, [1.0])
        simulation.run()
        complete = [t for t in simulation.trials if t.state == "complete"]
        assert len(complete) >= slots
        assert simulation.now > 60 - 20, "the time is used"
