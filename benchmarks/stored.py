"""Read trials and runs with SQL from the databases of Optuna and MLflow, in the same way for every side."""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path


@dataclass(frozen=True)
class Trial:
    """A trial of an Optuna database. Times: seconds since 1970. reports: the number of intermediate values."""

    number: int
    state: str
    value: float | None
    params: dict[str, float]
    reports: int
    started_at: float
    ended_at: float


@dataclass
class Run:
    """A run of an MLflow database. `steps` is the number of values of each metric."""

    run_id: str
    status: str
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)


def trials(database: Path, study: str) -> list[Trial]:
    """Return the trials of a study that have ended, in the order of their numbers."""
    with contextlib.closing(sqlite3.connect(database)) as db:
        rows = db.execute(
            "select t.trial_id, t.number, t.state, v.value, t.datetime_start, t.datetime_complete from trials t "
            "join studies s using (study_id) left join trial_values v using (trial_id) "
            "where s.study_name = ? and t.datetime_complete is not null order by t.number",
            (study,),
        ).fetchall()
        params: dict[int, dict[str, float]] = {}
        for trial_id, name, value in db.execute("select trial_id, param_name, param_value from trial_params"):
            params.setdefault(trial_id, {})[name] = value
        reports = dict(db.execute("select trial_id, count(*) from trial_intermediate_values group by trial_id"))
    return [
        Trial(number, state, value, params.get(i, {}), reports.get(i, 0), _seconds(start), _seconds(end))
        for i, number, state, value, start, end in rows
    ]


def runs(database: Path) -> list[Run]:
    """Return the runs of all experiments, without deleted ones."""
    with contextlib.closing(sqlite3.connect(database)) as db:
        found = {
            run_id: Run(run_id, status)
            for run_id, status in db.execute("select run_uuid, status from runs where lifecycle_stage = 'active'")
        }
        for table, attribute in (("tags", "tags"), ("params", "params")):
            for run_id, key, value in db.execute(f"select run_uuid, key, value from {table}"):
                if run_id in found:
                    getattr(found[run_id], attribute)[key] = value
        counted = db.execute("select run_uuid, key, count(distinct step) from metrics group by run_uuid, key")
        for run_id, key, steps in counted:
            if run_id in found:
                found[run_id].steps[key] = steps
    return list(found.values())


def trial_runs(database: Path) -> list[Run]:
    """Return the runs of trials, without the run of the study."""
    return [r for r in runs(database) if "overnight.trial" in r.tags]


def _seconds(text: str) -> float:
    """Convert a time in UTC, as Optuna stores it, to seconds since 1970."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()
