"""Studies whose runs MLflow has, and which the Optuna storage lacks because it was deleted or replaced."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overnight.config import shell
from overnight.config.paths import StudyLocation
from overnight.config.problems import ConfigError
from overnight.search.attributes import READY, UID
from overnight.search.plan import Plan
from overnight.study.storage.access import database_to_read
from overnight.study.storage.home import local_path, settle

PLAN_FILE = "plan.json"  # of the study's run: everything that the trials depend on; a lost study is rebuilt with it

_RUNS = """
    SELECT name.value, uid.value, runs.run_uuid, runs.artifact_uri, (
        SELECT count(*) FROM runs AS trials
        JOIN tags AS trial ON trial.run_uuid = trials.run_uuid AND trial.key = 'overnight.trial'
        JOIN tags AS owner ON owner.run_uuid = trials.run_uuid AND owner.key = 'overnight.uid'
        WHERE owner.value = uid.value AND trials.lifecycle_stage = 'active')
    FROM runs
    JOIN tags AS role ON role.run_uuid = runs.run_uuid AND role.key = 'overnight.role' AND role.value = 'study'
    JOIN tags AS uid ON uid.run_uuid = runs.run_uuid AND uid.key = 'overnight.uid'
    JOIN tags AS name ON name.run_uuid = runs.run_uuid AND name.key = 'overnight.study'
    WHERE runs.lifecycle_stage = 'active' ORDER BY runs.start_time DESC
"""
_STORED = """
    SELECT studies.study_name, uid.value_json FROM studies
    JOIN study_user_attributes AS uid ON uid.study_id = studies.study_id AND uid.key = ?
    JOIN study_user_attributes AS ready ON ready.study_id = studies.study_id AND ready.key = ?
"""


@dataclass(frozen=True)
class LostStudy:
    """A study that only MLflow has. run_id: of its own run. trials: how many of its trials have runs."""

    name: str
    uid: str
    run_id: str
    trials: int


def lost_studies(location: StudyLocation) -> list[LostStudy]:
    """Return the lost studies of a home, the latest first, each name once.

    Reads only a home that has both stores itself: an MLflow server also has the studies of other storages. A study in
    the home's MLflow store that keeps its trials in another storage is not lost.
    """
    paths = location.paths
    if location.storage_url is not None or location.given_tracking_uri is not None or not paths.mlflow_db.exists():
        return []
    mlflow_db = database_to_read(location, paths.mlflow_db)
    settle(location, mlflow_db)
    try:
        found = _read(mlflow_db, _RUNS)
        has_storage, optuna_db = paths.optuna_db.exists(), database_to_read(location, paths.optuna_db)
        stored = _read(optuna_db, _STORED, UID, READY) if has_storage else []
    except sqlite3.Error:  # other readers report it
        return []
    names, uids = {name.partition("~")[0] for name, _ in stored}, {json.loads(uid) for _, uid in stored}
    lost: dict[str, LostStudy] = {}
    for name, uid, run_id, artifacts, trials in found:
        if trials and name not in names and uid not in uids and not _is_stored_elsewhere(artifacts):
            lost.setdefault(name, LostStudy(name, uid, run_id, trials))
    return list(lost.values())


def describe_lost(location: StudyLocation) -> list[str]:
    """Return one line for each lost study of a home: what MLflow has of it, and how to rebuild it."""
    return [_description(study, location) for study in lost_studies(location)]


def reject_lost(plan: Plan) -> None:
    """Raise ConfigError if the plan's study is a lost one. A new study would hide its trials."""
    location = plan.settings.location
    for study in lost_studies(location):
        if study.name == plan.name:
            raise ConfigError([f"study.name: {_description(study, location)}; or take another study.name"])


def _description(study: LostStudy, location: StudyLocation) -> str:
    remedy = shell.join(["overnight", "doctor", study.name, *location.overrides])
    return (
        f"{study.name}: the study storage lacks this study, of which MLflow has {study.trials} trial(s); "
        f"`{remedy}` rebuilds them from MLflow"
    )


def _is_stored_elsewhere(artifacts: str) -> bool:
    """Whether the plan on a study's run names another storage than the home of its MLflow store."""
    folder = local_path(artifacts)
    try:
        settings = json.loads((folder / PLAN_FILE).read_text("utf-8"))["settings"] if folder is not None else {}
        storage, tracking = settings.get("storage") or {}, settings.get("tracking") or {}
        is_own = storage.get("name", "sqlite") == "sqlite" and not storage.get("url") and not tracking.get("uri")
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # no plan that can be read
        return False
    return not is_own


def _read(path: Path, query: str, *values: str) -> list[Any]:
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=60.0)) as database:
        return list(database.execute(query, values))
