"""What a scheduler sees, and what it answers.

The supervisor asks `next` whenever a slot is free, and `report` after each epoch of a trial. A simulation can ask the
same questions with tabulated learning curves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal, Protocol, runtime_checkable

State = Literal["running", "paused", "complete", "stopped", "failed"]


@dataclass(frozen=True)
class Trial:
    """One trial of a study.

    Attributes:
        number: Its number in the study, from 0.
        state: A trial that was interrupted counts as running, because it resumes before anything else is asked.
        scores: The objective after each trained epoch, turned so that larger is better; nan before its first value.
        until: The number of epochs that it may train to in all. It may have trained fewer.
        pace: The mean time of its epochs, over that of the epochs of all trials. Measured for a deadline only.
    """

    number: int
    state: State
    scores: Sequence[float]
    until: int
    pace: float = 1.0

    @property
    def epochs(self) -> int:
        """The number of trained epochs."""
        return len(self.scores)

    @property
    def latest(self) -> float:
        """The score after the last trained epoch; -inf where there is none."""
        return self.score_at(self.epochs)

    def score_at(self, epochs: int) -> float:
        """The score after so many epochs; -inf where there is none, so that such a trial is the last of all."""
        if not 0 < epochs <= self.epochs or math.isnan(self.scores[epochs - 1]):
            return -math.inf
        return self.scores[epochs - 1]


@dataclass(frozen=True)
class Start:
    """Start a new trial, and train it until it has so many epochs."""

    until: int


@dataclass(frozen=True)
class Resume:
    """Take a paused trial up again, and train it until it has so many epochs in all."""

    number: int
    until: int


class Answer(Enum):
    """What a trial does after an epoch."""

    GO_ON = "go on"
    PAUSE = "pause"  # its state is saved; `next` may resume it
    STOP = "stop"  # it ends, and its state is deleted


@runtime_checkable
class Scheduler(Protocol):
    """Decides which trial trains next, and how far.

    An object is made at each start of a supervisor, so it must decide from the trials alone: then a study that was
    killed goes on as if it had not been.
    """

    def next(self, trials: Sequence[Trial], left: float) -> Start | Resume | None:
        """Return what a free slot does.

        Args:
            trials: All trials of the study, by number.
            left: Epochs that neither are trained nor reserved for running trials: of the budget, or of those for which
                there is time, in all slots together and in one.

        Returns:
            None for nothing at present. The search ends once no trial runs and the answer is None.
        """
        ...

    def report(self, number: int, epoch: int, score: float) -> Answer:
        """Return what a trial does that has trained `epoch` epochs, counted from 1.

        It is called for each epoch before the one to which `next` let the trial train. There the trial pauses anyway.
        A trial that resumes is asked about again: it may have been interrupted before the answer.
        """
        ...


def epochs_left(trials: Iterable[Trial], budget: float) -> float:
    """The epochs of a budget that neither are trained nor reserved for running trials."""
    return budget - epochs_spent(trials)


def epochs_spent(trials: Iterable[Trial]) -> int:
    """The epochs that are trained or reserved for running trials."""
    return sum(max(t.until, t.epochs) if t.state == "running" else t.epochs for t in trials)
