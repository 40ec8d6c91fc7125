"""The storage for the one process that writes a study: read from memory, written in few transactions.

Optuna's cache keeps finished trials, and reads every running one each time that a study is read: at every epoch, and
several times in a suggestion. The holder of a study's lock is its only writer, so what it has read stays true.
"""

from __future__ import annotations

import contextlib
import copy
import signal
import threading
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from overnight.config.values import dumps, loads
from overnight.study.exclusions import with_exclusions
from overnight.study.storage.database import OptunaDatabase
from overnight.study.storage.optuna_tables import Row, blank, make_trial_id, reopen_trials, split_trial_id, write_trial


@dataclass(frozen=True)
class Choice:
    """A trial to claim: a new one, or the waiting one of a number. attrs: user attributes that it gets."""

    which: Literal["new"] | int
    attrs: Mapping[str, Any] = field(default_factory=dict)


# Any trial that waits or a new one; a new one; the waiting one of a number; or what a function chooses while no other
# process can claim a trial, None for no trial. It gets the numbers of the trials that this process can't claim now.
Claim = Literal["any", "new"] | int | Callable[[Collection[int]], Choice | None]
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ExclusiveStorage(BaseStorage):
    """Optuna's storage for a process that alone writes the trials of the studies it opens here.

    The id of a trial is made of its study's id and its number, so that it is known before the database has the trial.
    A change replaces a trial: the `FrozenTrial` that was returned before stays as it was. Attributes of studies are not
    kept in memory, because other processes may set them. One thread makes all writes.
    """

    def __init__(self, backend: OptunaDatabase) -> None:
        self.backend = backend
        self._studies: dict[int, list[Row]] = {}
        self._distributions: dict[tuple[int, str], BaseDistribution] = {}  # study id, parameter -> its first one
        self._unwritten: dict[int, Row] = {}  # trial id -> row, in the order of the changes
        self._postponing = 0  # blocks of `later` that are entered
        self._exclusions: dict[int, Mapping[int, str]] = {}  # study id -> number of an excluded trial -> why

    # Writes

    @contextlib.contextmanager
    def later(self) -> Iterator[None]:
        """Keep the changes of a block in memory until the next write."""
        self._postponing += 1
        try:
            yield
        finally:
            self._postponing -= 1

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Write the changes of a block at its end, in one transaction."""
        try:
            with self.later():
                yield
        finally:
            if not self._postponing:
                self.write()

    def write(self) -> None:
        """Write what is unwritten, in one transaction. Waits for space on a full disk."""
        if self._unwritten:
            self.backend.retry_while_full(self._write_once)

    def _write_once(self) -> None:
        with postponed_signals():
            with self.backend.engine.begin() as database:
                row_ids = {i: write_trial(database, row) for i, row in self._unwritten.items()}
            for trial_id, row_id in row_ids.items():
                row = self._unwritten.pop(trial_id)
                row.written, row.row_id = row.now, row_id

    @property
    def unwritten(self) -> int:
        """The number of trials, and of attributes of studies, that are not written yet."""
        return len(self._unwritten)

    def is_written(self, study_id: int, number: int) -> bool:
        """Whether the database has a trial as it is now."""
        return make_trial_id(study_id, number) not in self._unwritten

    # Trials

    def claim(self, study_id: int, which: Claim, is_spent: Callable[[], bool]) -> int | None:
        """Return the number of a trial for this process to run, or None.

        Args:
            which: see Claim.
            is_spent: whether no new trial may be created.
        """
        attrs: Mapping[str, Any] = {}
        if callable(which):
            choice = which(())
            if choice is None:
                return None
            which, attrs = choice.which, choice.attrs
        number = self._find_or_create(study_id, which, is_spent)
        if number is not None:
            with self.later():
                self._set_attrs(make_trial_id(study_id, number), attrs)
        return number

    def change(self, study_id: int, number: int, choose: Callable[[], Mapping[str, Any]]) -> None:
        """Give a trial of this process the user attributes that `choose` returns.

        `choose` is called while no other process can claim or change a trial. The attributes are written by the next
        write at the latest.
        """
        attrs = choose()
        with self.later():
            self._set_attrs(make_trial_id(study_id, number), attrs)

    def _set_attrs(self, trial_id: int, attrs: Mapping[str, Any]) -> None:
        for key, value in attrs.items():
            self.set_trial_user_attr(trial_id, key, value)

    def _find_or_create(
        self, study_id: int, which: Literal["any", "new"] | int, is_spent: Callable[[], bool]
    ) -> int | None:
        if isinstance(which, int):
            return which
        if which == "any":
            for row in self._rows(study_id):
                if row.now.state == TrialState.WAITING:
                    return int(row.now.number)
        if is_spent():
            return None
        with self.later():
            return split_trial_id(self.create_new_trial(study_id))[1]

    def reopen(self, study_id: int, numbers: Iterable[int]) -> None:
        """Have pruned trials wait again, which Optuna's storages refuse. They must belong to no process."""
        row_ids = [self._rows(study_id)[number].row_id for number in numbers]
        self.write()
        with self.backend.engine.begin() as database:
            reopen_trials(database, row_ids)
        del self._studies[study_id]

    def exclude(self, study_id: int, exclusions: Mapping[int, str]) -> None:
        """Present excluded trials of a study as failed. exclusions: number of a trial -> why."""
        self._exclusions[study_id] = dict(exclusions)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        trial = self._new_trial(study_id, template_trial)
        rows = self._rows(study_id)
        trial.number = len(rows)
        trial._trial_id = make_trial_id(study_id, trial.number)
        row = Row(trial)
        rows.append(row)
        self._changed(row)
        return trial._trial_id

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        row, value = self._row_to_change(trial_id), distribution.to_external_repr(param_value_internal)
        trial = row.now
        self._check_distribution(split_trial_id(trial_id)[0], param_name, distribution)
        params = {**trial.params, param_name: value}
        self._replace(row, params=params, distributions={**trial.distributions, param_name: distribution})

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        row = self._row_to_change(trial_id)
        if state == TrialState.RUNNING and row.now.state != TrialState.WAITING:
            return False
        changes: dict[str, Any] = {} if values is None else {"values": list(values)}
        if state == TrialState.RUNNING:
            changes["datetime_start"] = datetime.now()
        if state.is_finished():
            changes["datetime_complete"] = datetime.now()
        self._replace(row, **changes, state=state)
        return True

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        row = self._row_to_change(trial_id)
        self._replace(row, intermediate_values={**row.now.intermediate_values, step: intermediate_value})

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        row = self._row_to_change(trial_id)
        self._replace(row, user_attrs={**row.now.user_attrs, key: _as_stored(value)})

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        row = self._row_to_change(trial_id)
        self._replace(row, system_attrs={**row.now.system_attrs, key: _as_stored(value)})

    def get_trial(self, trial_id: int) -> FrozenTrial:
        trial = copy.copy(self._row(trial_id).now)
        for name in _DICTS:  # Optuna's Trial updates those of the trial that it gets here
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

    def _new_trial(self, study_id: int, template: FrozenTrial | None) -> FrozenTrial:
        if template is None:
            return blank(datetime.now())
        trial = copy.deepcopy(template)
        trial.user_attrs, trial.system_attrs = _as_stored(trial.user_attrs), _as_stored(trial.system_attrs)
        for name, distribution in trial.distributions.items():
            self._check_distribution(study_id, name, distribution)
        return trial

    def _row_to_change(self, trial_id: int) -> Row:
        """Return the row of a trial. Raises KeyError, or UpdateFinishedTrialError if the trial has ended."""
        row = self._row(trial_id)
        self.check_trial_is_updatable(trial_id, row.now.state)
        return row

    def _replace(self, row: Row, **changes: Any) -> None:
        changed = copy.copy(row.now)
        for name, value in changes.items():
            setattr(changed, name, value)
        row.now = changed
        self._changed(row)

    def _changed(self, row: Row) -> None:
        self._unwritten.setdefault(row.now._trial_id, row)
        if not self._postponing:
            self.write()

    def _row(self, trial_id: int) -> Row:
        study_id, number = split_trial_id(trial_id)
        try:
            return self._rows(study_id)[number]
        except IndexError:
            raise KeyError(f"no trial has the id {trial_id}") from None

    def _rows(self, study_id: int) -> list[Row]:
        if study_id not in self._studies:
            trials = sorted(self.backend.get_all_trials(study_id, deepcopy=False), key=lambda t: t.number)
            self._studies[study_id] = [self._as_row(study_id, trial) for trial in trials]
        return self._studies[study_id]

    def _as_row(self, study_id: int, trial: FrozenTrial) -> Row:
        """Make a row of a trial as the database returns it."""
        row_id, trial._trial_id = trial._trial_id, make_trial_id(study_id, trial.number)
        for name, distribution in trial.distributions.items():
            self._distributions.setdefault((study_id, name), distribution)
        return Row(trial, trial, row_id)

    def _check_distribution(self, study_id: int, name: str, distribution: BaseDistribution) -> None:
        """Raise ValueError if a parameter was suggested from an incompatible distribution before."""
        first = self._distributions.setdefault((study_id, name), distribution)
        check_distribution_compatibility(first, distribution)

    # Studies, which are not kept in memory

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        return self.backend.create_new_study(directions, study_name)

    def delete_study(self, study_id: int) -> None:
        self.backend.delete_study(study_id)
        self._studies.pop(study_id, None)
        self._exclusions.pop(study_id, None)
        self._distributions = {key: dist for key, dist in self._distributions.items() if key[0] != study_id}
        self._unwritten = {i: row for i, row in self._unwritten.items() if split_trial_id(i)[0] != study_id}

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


_DICTS = ("params", "distributions", "user_attrs", "system_attrs", "intermediate_values")


def _as_stored(value: Any) -> Any:
    """Return a value as the database would return it."""
    return value if isinstance(value, str) else loads(dumps(value))


@contextlib.contextmanager
def postponed_signals() -> Iterator[None]:
    """Postpone the handling of signals to the end of a block.

    An exception between a commit and the record of its success would repeat the write. The signals are not
    blocked, as the system would give them to another thread, and Python would still handle them in this one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    handlers: dict[signal.Signals, Any] = {}
    try:
        for kind in _SIGNALS:
            handler = signal.getsignal(kind)
            if handler not in (signal.SIG_IGN, None):
                handlers[kind] = handler
                signal.signal(kind, lambda number, _: received.append(number))
        yield
    finally:
        for kind, handler in reversed(handlers.items()):  # SIGINT last: its handler may raise from here on
            signal.signal(kind, handler)
        for number in received:
            signal.raise_signal(number)
