"""Which trials a process owns, as far as it knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any

from overnight.study.storage.optuna_tables import split_trial_id


class Phase(Enum):
    """The states that the ownership of a trial passes through."""

    FOREIGN = auto()  # owned by another process, or by none
    OWNED = auto()
    RELEASED = auto()  # owned until the next write frees the lease
    LOST = auto()  # adopted by another process, which has not been reported


@dataclass(frozen=True)
class TrialOwnership:
    """What a process knows about its right to a trial.

    Attributes:
        fencing_token: of the lease, while the trial is owned or released.
        is_stale: another process may have written the trial since it was read.
        is_changed: another process has written the trial, which has not been reported.
    """

    phase: Phase = Phase.FOREIGN
    fencing_token: int = 0
    is_stale: bool = False
    is_changed: bool = False

    @property
    def is_own(self) -> bool:
        return self.phase is Phase.OWNED or self.phase is Phase.RELEASED


_DEFAULT = TrialOwnership()


class OwnershipTable:
    """Trial id -> TrialOwnership. One thread writes it; other threads may call the methods that only read."""

    def __init__(self) -> None:
        self._trials: dict[int, TrialOwnership] = {}  # without those that equal the default

    def get(self, trial_id: int) -> TrialOwnership:
        return self._trials.get(trial_id, _DEFAULT)

    def numbers(self, study_id: int, phase: Phase) -> set[int]:
        """Return the numbers of the trials of a study in a phase."""
        pairs = (split_trial_id(i) for i, known in self._trials.items() if known.phase is phase)
        return {number for study, number in pairs if study == study_id}

    def own(self, trial_id: int, fencing_token: int) -> None:
        self._set(trial_id, phase=Phase.OWNED, fencing_token=fencing_token)

    def release(self, trial_id: int) -> None:
        self._set(trial_id, phase=Phase.RELEASED)

    def released(self) -> list[int]:
        return [i for i, known in self._trials.items() if known.phase is Phase.RELEASED]

    def end_release(self) -> None:
        """The leases of the released trials are free."""
        for i in self.released():
            self._set(i, phase=Phase.FOREIGN, fencing_token=0)

    def lose(self, held: Mapping[tuple[int, int], int]) -> list[int]:
        """Mark the own trials that another process has adopted as lost, and return their ids.

        Args:
            held: (study id, number) -> fencing token of each lease that this process has in the database.
        """
        own = [(i, known) for i, known in self._trials.items() if known.is_own]
        lost = [i for i, known in own if held.get(split_trial_id(i)) != known.fencing_token]
        for i in lost:
            self._set(i, phase=Phase.LOST, fencing_token=0)
        return lost

    def take_lost(self, study_id: int) -> list[int]:
        """Return the numbers of the lost trials of a study, each once."""
        return self._take(study_id, lambda known: known.phase is Phase.LOST, phase=Phase.FOREIGN)

    def mark_stale(self, trial_id: int) -> None:
        self._set(trial_id, is_stale=True)

    def stale(self, study_id: int) -> set[int]:
        """Return the numbers of the stale trials of a study."""
        pairs = (split_trial_id(i) for i, known in self._trials.items() if known.is_stale)
        return {number for study, number in pairs if study == study_id}

    def mark_read(self, study_id: int) -> None:
        """The trials of a study were read."""
        self._take(study_id, lambda known: known.is_stale, is_stale=False)

    def mark_changed(self, trial_id: int) -> None:
        self._set(trial_id, is_changed=True)

    def take_changed(self, study_id: int) -> list[int]:
        """Return the numbers of the trials of a study that other processes have changed, each once."""
        return self._take(study_id, lambda known: known.is_changed, is_changed=False)

    def _take(self, study_id: int, condition: Callable[[TrialOwnership], bool], **reset: Any) -> list[int]:
        matching = [i for i, known in self._trials.items() if split_trial_id(i)[0] == study_id and condition(known)]
        for i in matching:
            self._set(i, **reset)
        return sorted(split_trial_id(i)[1] for i in matching)

    def _set(self, trial_id: int, **changes: Any) -> None:
        changed = replace(self.get(trial_id), **changes)
        if changed == _DEFAULT:
            self._trials.pop(trial_id, None)
        else:
            self._trials[trial_id] = changed
