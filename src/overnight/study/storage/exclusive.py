"""The ledger for the one process that writes it: read from memory, written in few transactions.

Optuna's cache keeps the trials that have ended and asks the database anew for every running one, each time that anybody
looks at the study: at every epoch, and several times in a suggestion. Whoever holds a study's lock is its only writer,
so what was read once stays true.
"""

from __future__ import annotations

import contextlib
import copy
import json
import signal
import threading
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from overnight.study.exclusions import with_exclusions
from overnight.study.storage.database import OptunaDatabase
from overnight.study.storage.optuna_tables import Row, blank, write_trial

Claim = Literal["any", "new"] | int
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ExclusiveStorage(BaseStorage):
    """Optuna's storage, for a process that is the only one to write the trials of the studies it opens here.

    A trial's id says its study and number, so that it has one before the database does. Trials are replaced rather than
    changed: what was handed out stays as it was. Attributes of studies are not kept here, others may set those.

    The ledger's writes come one after another from one thread.
    """

    def __init__(self, backend: OptunaDatabase) -> None:
        self.backend = backend
        self._studies: dict[int, list[Row]] = {}
        self._drawn_from: dict[tuple[int, str], BaseDistribution] = {}  # study and parameter -> as it was drawn first
        self._unwritten: dict[int, Row] = {}  # ids, in the order in which they changed
        self._waiting = 0  # blocks that want their writes to wait
        self._exclusions: dict[int, Mapping[int, str]] = {}  # study -> number of an excluded trial -> why

    # When it is written

    @contextlib.contextmanager
    def later(self) -> Iterator[None]:
        """What is said in this block is written with whatever comes next."""
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What is said in this block is written at its end, in one transaction."""
        try:
            with self.later():
                yield
        finally:
            if not self._waiting:
                self.write()

    def write(self) -> None:
        """Write what is unwritten, in one transaction. Waits for space on a full disk."""
        if self._unwritten:
            self.backend.retry_while_full(self._write_once)

    def _write_once(self) -> None:
        with undisturbed():
            with self.backend.engine.begin() as database:
                row_ids = {i: write_trial(database, i, row) for i, row in self._unwritten.items()}
            for trial_id, row_id in row_ids.items():
                row = self._unwritten.pop(trial_id)
                row.written, row.row_id = row.now, row_id

    @property
    def unwritten(self) -> int:
        """How many trials the database does not know all of."""
        return len(self._unwritten)

    def is_written(self, study_id: int, number: int) -> bool:
        """Whether the database knows all that is known here of a trial."""
        return id_of(study_id, number) not in self._unwritten

    # Trials

    def claim(self, study_id: int, which: Claim, is_spent: Callable[[], bool]) -> int | None:
        """Return the number of a trial for this process to run, or None.

        Args:
            which: "any" for a waiting trial or a new one, "new", or the number of a waiting trial.
            is_spent: whether no new trial may be created.
        """
        if isinstance(which, int):
            return which
        if which == "any":
            for row in self._rows(study_id):
                if row.now.state == TrialState.WAITING:
                    return int(row.now.number)
        if is_spent():
            return None
        with self.later():
            return self.create_new_trial(study_id) & 0xFFFFFFFF

    def exclude(self, study_id: int, exclusions: Mapping[int, str]) -> None:
        """Present excluded trials of a study as failed. exclusions: number of a trial -> why."""
        self._exclusions[study_id] = dict(exclusions)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        rows = self._rows(study_id)
        trial = as_stored(template_trial) if template_trial is not None else blank(datetime.now())
        trial.number = len(rows)
        trial._trial_id = id_of(study_id, trial.number)
        for name, dist in trial.distributions.items():
            self._check_drawn(study_id, name, dist)
        rows.append(Row(trial))
        self._changed(trial._trial_id)
        return trial._trial_id

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        self._check_drawn(trial_id >> 32, param_name, distribution)
        trial, value = self._now(trial_id), distribution.to_external_repr(param_value_internal)
        self._set(
            trial_id,
            params={**trial.params, param_name: value},
            distributions={**trial.distributions, param_name: distribution},
        )

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        now = self._now(trial_id).state
        self.check_trial_is_updatable(trial_id, now)
        if state == TrialState.RUNNING and now != TrialState.WAITING:
            return False
        changes: dict[str, Any] = {} if values is None else {"values": list(values)}
        if state == TrialState.RUNNING:
            changes["datetime_start"] = datetime.now()
        if state.is_finished():
            changes["datetime_complete"] = datetime.now()
        self._set(trial_id, **changes, state=state)
        return True

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        had = self._now(trial_id).intermediate_values
        self._set(trial_id, intermediate_values={**had, step: intermediate_value})

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._set(trial_id, user_attrs={**self._now(trial_id).user_attrs, key: _json(value)})

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._set(trial_id, system_attrs={**self._now(trial_id).system_attrs, key: _json(value)})

    def get_trial(self, trial_id: int) -> FrozenTrial:
        trial = copy.copy(self._now(trial_id))
        for name in _DICTS:  # Optuna's Trial keeps up what it got here by itself
            setattr(trial, name, dict(getattr(trial, name)))
        return trial

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        trials = [row.now for row in self._rows(study_id)]
        if exclusions := self._exclusions.get(study_id):
            trials = with_exclusions(trials, exclusions)
        if states is not None:
            trials = [t for t in trials if t.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def _set(self, trial_id: int, **changes: Any) -> None:
        row = self._row(trial_id)
        self.check_trial_is_updatable(trial_id, row.now.state)
        changed = copy.copy(row.now)
        for name, value in changes.items():
            setattr(changed, name, value)
        row.now = changed
        self._changed(trial_id)

    def _changed(self, trial_id: int) -> None:
        self._unwritten.setdefault(trial_id, self._row(trial_id))
        if not self._waiting:
            self.write()

    def _now(self, trial_id: int) -> FrozenTrial:
        return self._row(trial_id).now

    def _row(self, trial_id: int) -> Row:
        return self._rows(trial_id >> 32)[trial_id & 0xFFFFFFFF]

    def _rows(self, study_id: int) -> list[Row]:
        if study_id not in self._studies:
            rows = []
            for trial in sorted(self.backend.get_all_trials(study_id, deepcopy=False), key=lambda t: t.number):
                rows.append(self._as_row(study_id, trial))
            self._studies[study_id] = rows
        return self._studies[study_id]

    def _as_row(self, study_id: int, trial: FrozenTrial) -> Row:
        """A trial as the database gave it."""
        row_id, trial._trial_id = trial._trial_id, id_of(study_id, trial.number)
        for name, dist in trial.distributions.items():
            self._drawn_from.setdefault((study_id, name), dist)
        return Row(trial, trial, row_id)

    def _check_drawn(self, study_id: int, name: str, dist: BaseDistribution) -> None:
        check_distribution_compatibility(self._drawn_from.setdefault((study_id, name), dist), dist)

    # Studies, which the database keeps

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        return self.backend.create_new_study(directions, study_name)

    def delete_study(self, study_id: int) -> None:
        self._studies.pop(study_id, None)
        self._exclusions.pop(study_id, None)
        self._drawn_from = {key: dist for key, dist in self._drawn_from.items() if key[0] != study_id}
        self.backend.delete_study(study_id)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self.backend.set_study_user_attr(study_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self.backend.set_study_system_attr(study_id, key, value)

    def get_study_id_from_name(self, study_name: str) -> int:
        return self.backend.get_study_id_from_name(study_name)

    def get_study_name_from_id(self, study_id: int) -> str:
        return self.backend.get_study_name_from_id(study_id)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self.backend.get_study_directions(study_id)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return self.backend.get_study_user_attrs(study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self.backend.get_study_system_attrs(study_id)

    def get_all_studies(self) -> list[optuna.study._frozen.FrozenStudy]:
        return self.backend.get_all_studies()


# Small parts ----------------------------------------------------------------------------------------------------------


def id_of(study_id: int, number: int) -> int:
    return study_id << 32 | number


def _json(value: Any) -> Any:
    """A value as the database would give it back."""
    return value if isinstance(value, str) else json.loads(json.dumps(value))


_DICTS = ("params", "distributions", "user_attrs", "system_attrs", "intermediate_values")


def as_stored(template: FrozenTrial) -> FrozenTrial:
    trial = copy.deepcopy(template)
    trial.user_attrs, trial.system_attrs = _json(trial.user_attrs), _json(trial.system_attrs)
    return trial


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Signals wait: what raises between the commit and the word that it was made would have it made twice.

    Their handlers do, not the signals: the system hands a signal that one thread does not take to another, and Python
    has the main thread handle it all the same.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before: dict[signal.Signals, Any] = {}
    try:
        for kind in _SIGNALS:
            handler = signal.getsignal(kind)
            if handler not in (signal.SIG_IGN, None):
                before[kind] = handler
                signal.signal(kind, lambda number, _: came.append(number))
        yield
    finally:
        for kind, handler in reversed(before.items()):  # Ctrl-C's last, which may leave from here
            signal.signal(kind, handler)
        for number in came:
            signal.raise_signal(number)
