"""Trials in Optuna's tables are read as Optuna reads them, and are read as they were written, in any time zone."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from overnight.study.storage import optuna_tables
from overnight.study.storage.database import OptunaDatabase, dispose
from overnight.study.storage.exclusive import ExclusiveStorage

DRAWN: dict[str, Any] = {
    "optimizer.lr": FloatDistribution(1e-5, 1.0, log=True),
    "model.width": IntDistribution(8, 256, log=True),
    "model.activation": CategoricalDistribution(("relu", "gelu", None, 0.5, True)),
    "model.dropout": FloatDistribution(0.0, 0.5, step=0.1),
}


@pytest.fixture(params=["sqlite", "postgresql"])
def database_storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OptunaDatabase]:
    url = f"sqlite:///{tmp_path / 'session.db'}"
    if request.param == "postgresql":
        url = request.getfixturevalue("database")()
    storage = OptunaDatabase(url)
    yield storage
    dispose(storage)


def filled(storage: OptunaDatabase) -> int:
    """Create a study with trials of every kind, through Optuna itself, beside another study; return its id."""
    study, other = (optuna.create_study(storage=storage, direction="maximize") for _ in range(2))

    def add(**more: Any) -> None:
        for s in (study, other):
            s.add_trial(optuna.trial.create_trial(**{"state": TrialState.COMPLETE, "value": 0.5, **more}))

    add(
        params={"optimizer.lr": 0.1, "model.width": 64, "model.activation": None, "model.dropout": 0.3},
        distributions=DRAWN,
        user_attrs={"overnight.history": {"epoch": [0, 1], "metrics": {"val/accuracy": [0.1, "nan"]}}, "größe": "ä"},
        system_attrs={"fixed_params": {"optimizer.lr": 0.1}},
        intermediate_values={1: math.nan, 0: math.inf, 3: -math.inf, 2: 0.1 + 0.2},
    )
    add(
        value=math.inf, params={"model.activation": True}, distributions={"model.activation": DRAWN["model.activation"]}
    )
    add(value=-math.inf)
    add(state=TrialState.FAIL, value=None)
    add(state=TrialState.PRUNED, value=None, intermediate_values={0: 0.25})
    running = study.ask()
    running.suggest_float("optimizer.lr", 1e-5, 1.0, log=True)
    running.report(0.75, step=0)
    add(state=TrialState.WAITING, value=None, system_attrs={"fixed_params": {"model.width": 8}})
    return study._study_id


@pytest.mark.parametrize(
    "selection",
    [
        (None, set(), -1),
        ([TrialState.COMPLETE, TrialState.WAITING], set(), -1),
        ([], set(), -1),
        (None, {1, 3}, 8),
        (None, set(), 5),
        (None, set(), 99),
        (None, set(range(5, 1000)), 8),
    ],
)
@pytest.mark.parametrize("max_ids", [500, 1])
@pytest.mark.parametrize("time_zone", ["UTC"], indirect=True)
@pytest.mark.usefixtures("time_zone")
def test_trials_are_read_as_optuna_reads_them(
    database_storage: OptunaDatabase,
    selection: tuple[Any, set[int], int],
    max_ids: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """selection: states, ids, or an id that ids must exceed. max_ids: of one statement."""
    monkeypatch.setattr(optuna_tables, "_MAX_IDS", max_ids)
    study_id = filled(database_storage)
    actual, expected = (
        database_storage._get_trials(study_id, *selection),
        RDBStorage._get_trials(database_storage, study_id, *selection),
    )
    assert repr(actual) == repr([sort_as(t, o) for t, o in zip(expected, actual, strict=True)])
    assert [t._trial_id for t in actual] == [t._trial_id for t in expected]
    if selection == (None, set(), -1):
        assert [t.number for t in actual] == list(range(7))
        assert list(actual[0].params) == list(DRAWN)


def test_trials_without_reports_are_otherwise_complete(database_storage: OptunaDatabase) -> None:
    study_id = filled(database_storage)
    whole = database_storage.get_all_trials(study_id)
    assert any(t.intermediate_values for t in whole)
    for t in whole:
        t.intermediate_values = {}
    assert repr(database_storage.trials_without_reports(study_id)) == repr(whole)


def sort_as(t: FrozenTrial, actual: FrozenTrial) -> FrozenTrial:
    """Sort the dicts of Optuna's trial like those of `actual`. `repr` compares trials, because nan differs from nan."""
    for name in ("user_attrs", "system_attrs", "intermediate_values"):
        mine, expected = getattr(actual, name), getattr(t, name)
        setattr(t, name, {key: expected[key] for key in mine} if mine.keys() == expected.keys() else expected)
    return t


def test_a_missing_study_is_a_key_error_as_in_optuna(database_storage: OptunaDatabase) -> None:
    for storage in (database_storage, super(OptunaDatabase, database_storage)):
        with pytest.raises(KeyError):
            storage._get_trials(77, None, set(), -1)


@pytest.fixture(params=["Europe/Berlin", "America/New_York", "UTC"])
def time_zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("time_zone")
def test_start_and_end_are_the_same_in_every_time_zone_and_for_every_reader(tmp_path: Path) -> None:
    url, before = f"sqlite:///{tmp_path / 'session.db'}", time.time()
    holder = ExclusiveStorage(OptunaDatabase(url))
    study = optuna.create_study(storage=holder)
    study.tell(study.ask(), 1.0)
    after = time.time()
    for reads in (holder, OptunaDatabase(url), RDBStorage(url)):
        (t,) = reads.get_all_trials(study._study_id)
        assert t.datetime_start is not None
        assert t.datetime_complete is not None
        assert before <= t.datetime_start.timestamp() <= t.datetime_complete.timestamp() <= after, type(reads)
        dispose(reads)


@pytest.mark.parametrize("time_zone", ["Europe/Berlin"], indirect=True)
@pytest.mark.usefixtures("time_zone")
def test_the_hour_that_occurs_twice_when_the_clock_is_set_back_is_unambiguous(tmp_path: Path) -> None:
    began, ended = (datetime(2026, 10, 25, hour, 30, tzinfo=UTC).timestamp() for hour in (0, 1))
    storage = OptunaDatabase(f"sqlite:///{tmp_path / 'session.db'}")
    holder = ExclusiveStorage(storage)
    study = optuna.create_study(storage=holder)
    holder.create_new_trial(
        study._study_id,
        optuna.trial.create_trial(state=TrialState.WAITING),
    )
    holder._replace(
        holder._rows(study._study_id)[0],
        state=TrialState.COMPLETE,
        values=[1.0],
        datetime_start=datetime.fromtimestamp(began),
        datetime_complete=datetime.fromtimestamp(ended),
    )
    (t,) = storage.get_all_trials(study._study_id)
    assert t.datetime_start is not None
    assert t.datetime_complete is not None
    assert (str(t.datetime_start), str(t.datetime_complete)) == ("2026-10-25 02:30:00", "2026-10-25 02:30:00")
    assert (t.datetime_start.timestamp(), t.datetime_complete.timestamp()) == (began, ended)
    with storage.engine.connect() as database:
        assert optuna_tables.last_start(database, study._study_id) == began
    dispose(holder)


def test_a_trial_is_read_as_it_was_written(database_storage: OptunaDatabase) -> None:
    holder = ExclusiveStorage(database_storage)
    study = optuna.create_study(storage=holder, direction="maximize")
    trial = study.ask(DRAWN)
    trial.report(math.nan, 0)
    trial.set_user_attr("overnight.history", {"epoch": [0]})
    study.tell(trial, 0.25)
    (kept,), (back,) = holder.get_all_trials(study._study_id), database_storage.get_all_trials(study._study_id)
    back._trial_id = kept._trial_id
    assert repr(back) == repr(kept)
