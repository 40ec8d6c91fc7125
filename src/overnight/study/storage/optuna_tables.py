"""Reads and writes trials in Optuna's tables, in few statements.

Optuna's own reading makes an object of each row and parses each distribution twice, which takes three quarters of its
time for a thousand trials. Times are stored in UTC, as Optuna stores them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, func, or_, select

from overnight.config.values import dumps, loads

_MAX_IDS = 500  # in one statement
_NUMBER_BITS = 32


@dataclass
class Row:
    """A trial in memory and in the database.

    Attributes:
        now: the trial as it is.
        written: the trial as the database has it, or None.
        row_id: the id of the trial in the database. The id of `now` is another one; see `make_trial_id`.
    """

    now: FrozenTrial
    written: FrozenTrial | None = None
    row_id: int = -1


def make_trial_id(study_id: int, number: int) -> int:
    """Return the id of a trial in this process, which is known before the database has the trial."""
    return study_id << _NUMBER_BITS | number


def split_trial_id(trial_id: int) -> tuple[int, int]:
    """Return the study's id and the trial's number."""
    return trial_id >> _NUMBER_BITS, trial_id & (1 << _NUMBER_BITS) - 1


# Read -----------------------------------------------------------------------------------------------------------------


def read_trials(
    database: Connection,
    study_id: int,
    states: Collection[TrialState] | None = None,
    included_ids: Collection[int] = (),
    after_id: int = -1,
    reports: bool = True,
) -> list[FrozenTrial]:
    """Read trials of a study, in the order of their ids in the database.

    Args:
        states: read only trials in these states.
        included_ids, after_id: read only trials with one of these ids or a greater one.
        reports: read intermediate values too.

    Raises:
        KeyError: there is no such study.
    """
    studies, trials = models.StudyModel.__table__, models.TrialModel.__table__
    if database.execute(select(studies.c.study_id).where(studies.c.study_id == study_id)).first() is None:
        raise KeyError(models.NOT_FOUND_MSG)
    conditions = [trials.c.study_id == study_id]
    if states is not None:
        conditions.append(trials.c.state.in_(states))
    if after_id > -1 and len(included_ids) <= _MAX_IDS:
        is_later = trials.c.trial_id > after_id
        conditions.append(or_(is_later, trials.c.trial_id.in_(included_ids)) if included_ids else is_later)
    found = {
        row.trial_id: _trial(
            row.trial_id, row.number, row.state, _local(row.datetime_start), _local(row.datetime_complete)
        )
        for row in database.execute(select(trials).where(*conditions).order_by(trials.c.trial_id))
        if row.trial_id > after_id or row.trial_id in included_ids
    }
    if found:
        reads_all = states is None and after_id == -1
        _Details(database, found, study_id if reads_all else None).read(reports)
    return list(found.values())


@dataclass
class _Details:
    """Reads what tables beside `trials` have of some trials.

    Attributes:
        trials: id in the database -> trial.
        study_id: the study, if these are all of its trials.
    """

    database: Connection
    trials: Mapping[int, FrozenTrial]
    study_id: int | None

    def read(self, reports: bool) -> None:
        self._read_params()
        self._read_values()
        for t, key, text in self._rows(models.TrialUserAttributeModel, "key", "value_json"):
            t.user_attrs[key] = loads(text)
        for t, key, text in self._rows(models.TrialSystemAttributeModel, "key", "value_json"):
            t.system_attrs[key] = loads(text)
        if reports:
            self._read_reports()

    def _read_params(self) -> None:
        distributions: dict[str, BaseDistribution] = {}  # JSON -> distribution; most trials have the same
        rows = self._rows(models.TrialParamModel, "param_id", "param_name", "param_value", "distribution_json")
        for t, _, name, value, text in sorted(rows, key=lambda row: row[1]):  # in the order of the suggestions
            if text not in distributions:
                distributions[text] = json_to_distribution(text)
            t.params[name], t.distributions[name] = distributions[text].to_external_repr(value), distributions[text]

    def _read_values(self) -> None:
        to_value = models.TrialValueModel.stored_repr_to_value
        values: dict[int, dict[int, float]] = {}  # trial id -> index of the objective -> value
        for t, objective, value, kind in self._rows(models.TrialValueModel, "objective", "value", "value_type"):
            values.setdefault(t._trial_id, {})[objective] = to_value(value, kind)
        for trial_id, by_objective in values.items():
            self.trials[trial_id].values = [by_objective[n] for n in sorted(by_objective)]

    def _read_reports(self) -> None:
        to_value = models.TrialIntermediateValueModel.stored_repr_to_intermediate_value
        columns = ("step", "intermediate_value", "intermediate_value_type")
        for t, step, value, kind in self._rows(models.TrialIntermediateValueModel, *columns):
            t.intermediate_values[step] = to_value(value, kind)

    def _rows(self, model: Any, *columns: str) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of another table: the trial of each, then the values of these columns."""
        table, all_trials, ids = model.__table__, models.TrialModel.__table__, list(self.trials)
        query = select(table.c.trial_id, *(table.c[name] for name in columns))
        if self.study_id is not None:
            queries = [query.join_from(table, all_trials).where(all_trials.c.study_id == self.study_id)]
        else:
            chunks = (ids[i : i + _MAX_IDS] for i in range(0, len(ids), _MAX_IDS))
            queries = [query.where(table.c.trial_id.in_(chunk)) for chunk in chunks]
        for each in queries:
            for row in self.database.execute(each).all():
                if row[0] in self.trials:  # other trials may be new
                    yield self.trials[row[0]], *row[1:]


def last_start(database: Connection, study_id: int) -> float:
    """Return when the last trial of a study started, in seconds since 1970; 0 if none has."""
    trials = models.TrialModel.__table__
    stored = database.execute(select(func.max(trials.c.datetime_start)).where(trials.c.study_id == study_id)).scalar()
    return start.timestamp() if (start := _local(stored)) is not None else 0.0


# Write ----------------------------------------------------------------------------------------------------------------


def write_trial(database: Connection, row: Row) -> int:
    """Write what the database lacks of a trial, and return the trial's id in the database."""
    now, written = row.now, row.written
    columns = _columns(now)
    trials = models.TrialModel.__table__
    if written is None:
        study_id, number = split_trial_id(now._trial_id)
        inserted = database.execute(trials.insert().values(study_id=study_id, number=number, **columns))
        row_id, written = int(inserted.inserted_primary_key[0]), _EMPTY  # type: ignore[index]
    else:
        row_id = row.row_id
        if _columns(written) != columns:
            database.execute(trials.update().where(trials.c.trial_id == row_id).values(**columns))

    def put(model: Any, key: str, to_columns: _ToColumns, items: _Items, written_items: _Items) -> None:
        table = model.__table__
        new = {k: v for k, v in items.items() if items is not written_items and written_items.get(k, ...) != v}
        if changed := [k for k in new if k in written_items]:
            database.execute(table.delete().where(table.c.trial_id == row_id, table.c[key].in_(changed)))
        if new:
            rows = [{"trial_id": row_id, key: k, **to_columns(v)} for k, v in new.items()]
            database.execute(table.insert(), rows)

    put(models.TrialParamModel, "param_name", _param_columns, _new_params(now, written), {})
    put(models.TrialValueModel, "objective", _value_columns, _values(now), _values(written))
    put(models.TrialUserAttributeModel, "key", _attr_columns, now.user_attrs, written.user_attrs)
    put(models.TrialSystemAttributeModel, "key", _attr_columns, now.system_attrs, written.system_attrs)
    reports, written_reports = now.intermediate_values, written.intermediate_values
    put(models.TrialIntermediateValueModel, "step", _report_columns, reports, written_reports)
    return row_id


def reopen_trials(database: Connection, row_ids: Sequence[int]) -> None:
    """Have pruned trials wait again. Those that another process has reopened meanwhile stay as they are."""
    trials, values = models.TrialModel.__table__, models.TrialValueModel.__table__
    for i in range(0, len(row_ids), _MAX_IDS):
        is_pruned = trials.c.trial_id.in_(row_ids[i : i + _MAX_IDS]) & (trials.c.state == TrialState.PRUNED)
        waiting = {"state": TrialState.WAITING, "datetime_complete": None}
        reopened = trials.update().where(is_pruned).values(**waiting).returning(trials.c.trial_id)
        ids = list(database.execute(reopened).scalars())
        database.execute(values.delete().where(values.c.trial_id.in_(ids)))


_Items = Mapping[Any, Any]  # of one table and trial: value of the table's key column -> item
_ToColumns = Callable[[Any], Mapping[str, Any]]


def _columns(t: FrozenTrial) -> dict[str, Any]:
    """Return the columns of the table `trials` that may change."""
    return {
        "state": t.state,
        "datetime_start": _utc(t.datetime_start),
        "datetime_complete": _utc(t.datetime_complete),
    }


def _new_params(t: FrozenTrial, written: FrozenTrial) -> _Items:
    """Return the parameters that are not written. Written ones do not change."""
    return {n: (t.params[n], dist) for n, dist in t.distributions.items() if n not in written.params}


def _values(t: FrozenTrial) -> _Items:
    return dict(enumerate(t.values or ()))


def _param_columns(item: tuple[Any, BaseDistribution]) -> dict[str, Any]:
    value, dist = item
    return {"param_value": dist.to_internal_repr(value), "distribution_json": distribution_to_json(dist)}


def _value_columns(value: float) -> dict[str, Any]:
    stored, kind = models.TrialValueModel.value_to_stored_repr(value)
    return {"value": stored, "value_type": kind}


def _report_columns(value: float) -> dict[str, Any]:
    stored, kind = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(value)
    return {"intermediate_value": stored, "intermediate_value_type": kind}


def _attr_columns(value: Any) -> dict[str, Any]:
    return {"value_json": dumps(value)}


# Values ---------------------------------------------------------------------------------------------------------------


def _utc(local: datetime | None) -> datetime | None:
    """Convert a local time to UTC; both are without a time zone."""
    return local.astimezone(UTC).replace(tzinfo=None) if local is not None else None


def _local(utc: datetime | None) -> datetime | None:
    """Convert UTC to a local time, by its timestamp: in autumn one local hour occurs twice."""
    return datetime.fromtimestamp(utc.replace(tzinfo=UTC).timestamp()) if utc is not None else None


def blank(started_at: datetime | None) -> FrozenTrial:
    """Make a running trial without details. started_at: a local time."""
    return _trial(-1, -1, TrialState.RUNNING, started_at, None)


def _trial(
    trial_id: int, number: int, state: TrialState, started_at: datetime | None, ended_at: datetime | None
) -> FrozenTrial:
    return FrozenTrial(
        number=number,
        state=state,
        value=None,
        datetime_start=started_at,
        datetime_complete=ended_at,
        params={},
        distributions={},
        user_attrs={},
        system_attrs={},
        intermediate_values={},
        trial_id=trial_id,
    )


_EMPTY = blank(None)


def differ(a: FrozenTrial, b: FrozenTrial) -> bool:
    """Whether two versions of a trial differ in more than their times."""
    names = ("state", "values", "params", "user_attrs", "system_attrs", "intermediate_values")
    return any(getattr(a, name) != getattr(b, name) for name in names)
