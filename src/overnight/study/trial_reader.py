"""Trials of an open study as records. Those that this process runs include what is not written yet."""

from __future__ import annotations

from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial

from overnight.protocol import Progress
from overnight.search.plan import Plan
from overnight.search.record import TrialRecord, record_of


@dataclass
class RunningTrial:
    """A trial that this process runs.

    Attributes:
        history: Epoch -> its metrics.
        reported: The steps that Optuna has. After a kill they may be ahead of the history.
        unwritten: Whether the history has epochs that the storage lacks.
    """

    trial: optuna.Trial
    history: dict[int, Progress]
    reported: set[int]
    unwritten: bool = False


class TrialReader:
    """Reads the trials of an open study.

    Attributes:
        running: Number -> trial, of those that this process runs.
    """

    def __init__(self, plan: Plan, study: optuna.Study) -> None:
        self._plan, self._study = plan, study
        self.running: dict[int, RunningTrial] = {}

    def trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def read(self, number: int) -> TrialRecord:
        running = self.running.get(number)
        if running is None:
            return record_of(self.trials()[number], self._plan)
        history = tuple(running.history[epoch] for epoch in sorted(running.history))
        return record_of(self._study._storage.get_trial(running.trial._trial_id), self._plan, history)

    def records(self) -> list[TrialRecord]:
        return [self.read(t.number) for t in self.trials()]
