"""Schedulers of a user."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from overnight.search.schedulers.interface import Answer, Resume, Start, Trial


class OneByOne:
    """Starts trials to the first epoch until there are enough, then trains the best one to the end."""

    def __init__(self, epochs: int, trials: int = 3) -> None:
        self.epochs, self.trials = epochs, trials

    def next(self, trials: Sequence[Trial], left: float) -> Start | Resume | None:
        if len(trials) < self.trials:
            return Start(1)
        paused = [t for t in trials if t.state == "paused"]
        if len(paused) < self.trials:
            return None
        return Resume(max(paused, key=lambda t: (t.latest, -t.number)).number, self.epochs)

    def report(self, number: int, epoch: int, score: float) -> Answer:
        return Answer.GO_ON


class PausesAndStops(OneByOne):
    """Pauses trial 0 and stops trial 1 after their second epoch, before the `until` of `next`."""

    def next(self, trials: Sequence[Trial], left: float) -> Start | Resume | None:
        return Start(self.epochs) if len(trials) < self.trials else None

    def report(self, number: int, epoch: int, score: float) -> Answer:
        if epoch == 2 and number < 2:
            return (Answer.PAUSE, Answer.STOP)[number]
        return Answer.GO_ON


class StopsWhatItResumes(OneByOne):
    """Resumes the best trial, and stops it after the epoch at which it was paused."""

    def report(self, number: int, epoch: int, score: float) -> Answer:
        return Answer.STOP if epoch == 1 else Answer.GO_ON


class StopsAfterTwo(PausesAndStops):
    """Stops each trial after its second epoch, and writes down what it was asked."""

    asked: ClassVar[list[tuple[int, int]]] = []

    def report(self, number: int, epoch: int, score: float) -> Answer:
        self.asked.append((number, epoch))
        return Answer.STOP if epoch == 2 else Answer.GO_ON


class Nonsense(OneByOne):
    """Answers with something else after the first trial."""

    def __init__(self, answer: str) -> None:
        super().__init__(epochs=1)
        self.answer = answer

    def next(self, trials: Sequence[Trial], left: float) -> Start | Resume | None:
        if not trials:
            return Start(1)
        answers = {"a number": 7, "running": Resume(99, 2), "backwards": Resume(0, 1), "too far": Start(1000)}
        if self.answer == "an error":
            raise ZeroDivisionError("division by zero")
        return answers[self.answer]  # type: ignore[return-value]
