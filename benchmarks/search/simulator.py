"""Run a search on a table: several slots, a clock that counts trained epochs, and no training.

A trial that ends or pauses leaves its slot at that instant to the next one. Creating, pausing and resuming a trial take
no time. All sides run through this one loop.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from benchmarks.search.tables import Point, Table
from overnight.search.schedulers.interface import Answer, Resume, Start, State, Trial, epochs_left


class Side(Protocol):
    """A way to search: what trains next, how far, with which configuration, and what ends early."""

    def next(self, trials: Sequence[Trial], left: float) -> Start | Resume | None:
        """Return what a free slot does; see Scheduler.next."""
        ...

    def suggest(self, trials: Sequence[Trial], points: Sequence[Point]) -> Point:
        """Return the configuration of a new trial. points: those of the trials so far."""
        ...

    def report(self, trial: Trial) -> Answer:
        """Return what a trial does after an epoch. It is also called when the trial has become complete or failed."""
        ...


@dataclass(frozen=True)
class Epoch:
    """A trained epoch of a trial, in the order of the clock."""

    at: float
    number: int
    epoch: int
    score: float


@dataclass
class Run:
    """A simulated search.

    Attributes:
        points: Configurations of the trials, by number.
        trials: The trials at the end.
        epochs: All trained epochs.
    """

    points: list[Point] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    epochs: list[Epoch] = field(default_factory=list)


class Simulation:
    """Runs one side on one table until a budget of epochs is trained, or until the side has nothing left to do.

    Args:
        budget: Epochs in all. What the slots train at that moment is cut off.
        seed: chooses the curve of each configuration.
        in_seconds: An epoch takes the seconds that it took when the table was made. Otherwise it takes 1.
    """

    def __init__(
        self, side: Side, table: Table, budget: int, slots: int = 1, seed: int = 0, in_seconds: bool = False
    ) -> None:
        self.side, self.table, self.budget, self.slots = side, table, budget, slots
        self.seed, self.in_seconds = seed, in_seconds
        self.done = Run()
        self._due: list[tuple[float, int]] = []  # when the current epoch of each running trial ends, and its number

    def run(self) -> Run:
        self._fill_slots(0.0)
        while self._due and len(self.done.epochs) < self.budget:
            at, number = heapq.heappop(self._due)
            self._train_an_epoch(at, number)
            self._fill_slots(at)
        return self.done

    def _fill_slots(self, at: float) -> None:
        trials = self.done.trials
        while len(self._due) < self.slots:
            answer = self.side.next(trials, epochs_left(trials, self.budget))
            if answer is None:
                return
            if isinstance(answer, Start):
                self.done.points.append(self.side.suggest(trials, self.done.points))
                trials.append(Trial(len(trials), "running", (), answer.until))
                number = len(trials) - 1
            else:
                number = answer.number
                trials[number] = replace(trials[number], state="running", until=answer.until)
            self._begin_epoch(at, number)

    def _begin_epoch(self, at: float, number: int) -> None:
        takes = self.table.by_point[self.done.points[number]].epoch_s if self.in_seconds else 1.0
        heapq.heappush(self._due, (at + takes, number))

    def _train_an_epoch(self, at: float, number: int) -> None:
        before = self.done.trials[number]
        curve = self.table.curve(self.done.points[number], self.seed)
        score = curve[before.epochs] if before.epochs < len(curve) else math.nan
        trial = replace(before, scores=(*before.scores, score))
        self.done.epochs.append(Epoch(at, number, trial.epochs, score))
        trial = replace(trial, state=self._state_of(trial))
        answer = self.side.report(trial)
        if trial.state == "running" and answer is not Answer.GO_ON:
            trial = replace(trial, state="stopped" if answer is Answer.STOP else "paused")
        self.done.trials[number] = trial
        if trial.state == "running":
            self._begin_epoch(at, number)

    def _state_of(self, trial: Trial) -> State:
        if not math.isfinite(trial.scores[-1]):
            return "failed"  # its training diverged
        if trial.epochs == self.table.max_epochs:
            return "complete"
        return "paused" if trial.epochs == trial.until else "running"
