"""Trials as Optuna's tables hold them: read in few statements, and written as far as they lack them.

Optuna's own reading makes an object of each of a trial's lines, and reads each distribution anew, twice: three quarters
of the time that a thousand trials take. Times of day are kept in UTC, as Optuna keeps them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, func, or_, select

_MANY = 500  # ids that one statement may name


@dataclass
class Row:
    """A trial as it is, and as the database has it (None: not at all), under the id that it has there."""

    now: FrozenTrial
    written: FrozenTrial | None = None
    row_id: int = -1


# Read -----------------------------------------------------------------------------------------------------------------


def read_trials(
    database: Connection,
    study_id: int,
    states: Collection[TrialState] | None = None,
    included_ids: Collection[int] = (),
    after_id: int = -1,
    reports: bool = True,
) -> list[FrozenTrial]:
    """A study's trials, in the order of their ids there.

    states: only of trials in these. after_id, included_ids: only with a greater id, or with one of these. reports:
    with their intermediate values. KeyError: no such study.
    """
    studies, trials = models.StudyModel.__table__, models.TrialModel.__table__
    if database.execute(select(studies.c.study_id).where(studies.c.study_id == study_id)).first() is None:
        raise KeyError(models.NOT_FOUND_MSG)
    chosen = [trials.c.study_id == study_id]
    if states is not None:
        chosen.append(trials.c.state.in_(states))
    if after_id > -1 and len(included_ids) <= _MANY:
        later = trials.c.trial_id > after_id
        chosen.append(or_(later, trials.c.trial_id.in_(included_ids)) if included_ids else later)
    found = {
        t.trial_id: FrozenTrial(
            number=t.number,
            state=t.state,
            value=None,
            datetime_start=_local(t.datetime_start),
            datetime_complete=_local(t.datetime_complete),
            params={},
            distributions={},
            user_attrs={},
            system_attrs={},
            intermediate_values={},
            trial_id=t.trial_id,
        )
        for t in database.execute(select(trials).where(*chosen).order_by(trials.c.trial_id))
        if t.trial_id > after_id or t.trial_id in included_ids
    }
    if not found:
        return []
    whole, ids = states is None and after_id == -1, list(found)

    def lines(model: Any, *columns: str) -> Iterator[tuple[Any, ...]]:
        """Another table's lines: the trial that each is of, and these of its columns."""
        table = model.__table__
        asked = select(table.c.trial_id, *(table.c[name] for name in columns))
        ways = [asked.where(table.c.trial_id.in_(ids[i : i + _MANY])) for i in range(0, len(ids), _MANY)]
        if whole:
            ways = [asked.join_from(table, trials).where(trials.c.study_id == study_id)]
        for way in ways:
            for row in database.execute(way).all():
                if row[0] in found:  # it may have come since
                    yield found[row[0]], *row[1:]

    drawn_from: dict[str, BaseDistribution] = {}  # text -> what it says, which most trials say alike
    params = lines(models.TrialParamModel, "param_id", "param_name", "param_value", "distribution_json")
    for t, _, name, value, text in sorted(params, key=lambda line: line[1]):  # in the order in which they were drawn
        if text not in drawn_from:
            drawn_from[text] = json_to_distribution(text)
        t.params[name], t.distributions[name] = drawn_from[text].to_external_repr(value), drawn_from[text]
    values: dict[int, dict[int, float]] = {}
    for t, objective, value, kind in lines(models.TrialValueModel, "objective", "value", "value_type"):
        values.setdefault(t._trial_id, {})[objective] = models.TrialValueModel.stored_repr_to_value(value, kind)
    for trial_id, of_objective in values.items():
        found[trial_id].values = [of_objective[n] for n in sorted(of_objective)]
    for t, key, text in lines(models.TrialUserAttributeModel, "key", "value_json"):
        t.user_attrs[key] = json.loads(text)
    for t, key, text in lines(models.TrialSystemAttributeModel, "key", "value_json"):
        t.system_attrs[key] = json.loads(text)
    if not reports:
        return list(found.values())
    value_of = models.TrialIntermediateValueModel.stored_repr_to_intermediate_value
    kept = ("step", "intermediate_value", "intermediate_value_type")
    for t, step, value, kind in lines(models.TrialIntermediateValueModel, *kept):
        t.intermediate_values[step] = value_of(value, kind)
    return list(found.values())


def last_start(database: Connection, study_id: int) -> float:
    """When a study's last trial began, in seconds since 1970; 0 where none has."""
    trials = models.TrialModel.__table__
    began = database.execute(select(func.max(trials.c.datetime_start)).where(trials.c.study_id == study_id)).scalar()
    return here.timestamp() if (here := _local(began)) is not None else 0.0


# Written --------------------------------------------------------------------------------------------------------------


def write_trial(database: Connection, of: int, row: Row) -> int:
    """Write what the database lacks of the trial that has the id `of` here; its id there."""
    now, had = row.now, row.written
    head = _head(now)
    trials = models.TrialModel.__table__
    if had is None:
        made = database.execute(trials.insert().values(study_id=of >> 32, number=now.number, **head))
        row_id, had = int(made.inserted_primary_key[0]), _NOTHING  # type: ignore[index]
    else:
        row_id = row.row_id
        if _head(had) != head:
            database.execute(trials.update().where(trials.c.trial_id == row_id).values(**head))

    def put(model: Any, key: str, columns: Callable[[Any], Mapping[str, Any]], mine: _Lines, theirs: _Lines) -> None:
        table = model.__table__
        new = {name: line for name, line in mine.items() if mine is not theirs and theirs.get(name, ...) != line}
        if changed := [name for name in new if name in theirs]:
            database.execute(table.delete().where(table.c.trial_id == row_id, table.c[key].in_(changed)))
        if new:
            lines = [{"trial_id": row_id, key: name, **columns(line)} for name, line in new.items()]
            database.execute(table.insert(), lines)

    put(models.TrialParamModel, "param_name", _of_param, _params(now, had), {})
    put(models.TrialValueModel, "objective", _of_value, _values(now), _values(had))
    put(models.TrialUserAttributeModel, "key", _of_attr, now.user_attrs, had.user_attrs)
    put(models.TrialSystemAttributeModel, "key", _of_attr, now.system_attrs, had.system_attrs)
    put(models.TrialIntermediateValueModel, "step", _of_step, now.intermediate_values, had.intermediate_values)
    return row_id


def _head(t: FrozenTrial) -> dict[str, Any]:
    """The columns of a trial's own line that may change."""
    return {
        "state": t.state,
        "datetime_start": _utc(t.datetime_start),
        "datetime_complete": _utc(t.datetime_complete),
    }


_Lines = Mapping[Any, Any]  # of one table and trial, each under its value in the table's key column


def _params(t: FrozenTrial, had: FrozenTrial) -> _Lines:
    """Those of `t` that `had` lacks; a parameter does not change once it is drawn."""
    return {n: (t.params[n], dist) for n, dist in t.distributions.items() if n not in had.params}


def _values(t: FrozenTrial) -> _Lines:
    return dict(enumerate(t.values or ()))


def _of_param(line: tuple[Any, BaseDistribution]) -> dict[str, Any]:
    value, dist = line
    return {"param_value": dist.to_internal_repr(value), "distribution_json": distribution_to_json(dist)}


def _of_value(value: float) -> dict[str, Any]:
    stored, kind = models.TrialValueModel.value_to_stored_repr(value)
    return {"value": stored, "value_type": kind}


def _of_step(value: float) -> dict[str, Any]:
    stored, kind = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(value)
    return {"intermediate_value": stored, "intermediate_value_type": kind}


def _of_attr(value: Any) -> dict[str, Any]:
    return {"value_json": json.dumps(value)}


# Small parts ----------------------------------------------------------------------------------------------------------


def _utc(here: datetime | None) -> datetime | None:
    """A time of day in this machine's zone as the database keeps it: in UTC, neither with a zone."""
    return here.astimezone(UTC).replace(tzinfo=None) if here is not None else None


def _local(kept: datetime | None) -> datetime | None:
    """The way back. By the second and not by the clock's face, which one night in a year shows an hour twice."""
    return datetime.fromtimestamp(kept.replace(tzinfo=UTC).timestamp()) if kept is not None else None


def blank(started_at: datetime | None) -> FrozenTrial:
    return FrozenTrial(
        number=-1,
        state=TrialState.RUNNING,
        value=None,
        datetime_start=started_at,
        datetime_complete=None,
        params={},
        distributions={},
        user_attrs={},
        system_attrs={},
        intermediate_values={},
        trial_id=-1,
    )


_NOTHING = blank(None)
