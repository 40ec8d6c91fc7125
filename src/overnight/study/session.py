"""One study, open for work: what to run next, what was measured, and who else works on it.

The study's Optuna storage is the only source of truth. MLflow is synchronised from it.
"""

from __future__ import annotations

from collections.abc import Callable

import optuna
from optuna.trial import FrozenTrial

from overnight.search.plan import Plan
from overnight.search.record import TrialRecord
from overnight.study.attributes import StudyAttributes
from overnight.study.coordinator import Coordinator, LeasedCoordinator, SoloCoordinator
from overnight.study.queue import TrialQueue
from overnight.study.schedule import Schedule
from overnight.study.storage.database import dispose
from overnight.study.storage.exclusive import ExclusiveStorage
from overnight.study.storage.leased import LeasedStorage
from overnight.study.trial_reader import TrialReader
from overnight.study.writer import TrialWriter


class StudySession:
    """An open study. `open_study`, `join` and `reopen` make it; `close` ends it.

    Attributes:
        queue: Assigns trials to this process.
        writer: Writes what becomes of them.
        attributes: The typed attributes of the study.
        schedule: Decides how far trials train; None if none is paused.
        coordinator: Coordinates this process with others that work on the study, if there are any.
        unlock: Allows other processes to open the study.
    """

    def __init__(self, plan: Plan, study: optuna.Study, unlock: Callable[[], None]) -> None:
        storage = study._storage
        assert isinstance(storage, ExclusiveStorage)
        self.plan, self.study, self.storage, self.unlock = plan, study, storage, unlock
        self._reader = TrialReader(plan, study)
        self.attributes = StudyAttributes(study)
        self.coordinator: Coordinator = (
            LeasedCoordinator(storage, study._study_id, self._reader, self.attributes)
            if isinstance(storage, LeasedStorage)
            else SoloCoordinator()
        )
        self.schedule = Schedule(plan, study, storage, self._reader, self.attributes) if plan.pauses else None
        self.queue = TrialQueue(plan, study, storage, self._reader, self.coordinator)
        self.writer = TrialWriter(plan, study, storage, self._reader)

    def trials(self) -> list[FrozenTrial]:
        return self._reader.trials()

    def read(self, number: int) -> TrialRecord:
        return self._reader.read(number)

    def records(self) -> list[TrialRecord]:
        return self._reader.records()

    def close(self) -> None:
        """Write what is not written yet, and allow other processes to open the study."""
        self.queue.close()
        try:
            self.writer.flush()
            self.coordinator.finish_writes()
        finally:
            self.unlock()
            dispose(self.storage)
