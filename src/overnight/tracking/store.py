"""MLflow's store: where it lies, how it is made, and how it is asked."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from overnight.settings import Place
from overnight.storage import create_whole
from overnight.survey import study_runs

if TYPE_CHECKING:
    from mlflow import MlflowClient


def quiet_environment() -> dict[str, str]:
    """What keeps MLflow from phoning home and from warning of its own plans."""
    return {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_LOGGING_LEVEL": "WARNING"}


def exists(place: Place) -> bool:
    """Whether there is a store to ask, or a server that would have one."""
    return place.given_tracking_uri is not None or place.where.tracking_store.exists()


def client(place: Place) -> MlflowClient:
    """A client on the tracking store; the embedded one is created first where there is none."""
    for name, value in quiet_environment().items():
        os.environ.setdefault(name, value)
    if not exists(place):
        _create_store(place)
    from mlflow import MlflowClient

    # Its store logs a page of traceback at every try, which a full disk or a server that restarts makes many.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    return MlflowClient(tracking_uri=place.tracking_uri)


def _create_store(place: Place) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    def create(fresh: Path) -> None:
        store = SqlAlchemyStore(f"sqlite:///{fresh}", place.artifact_root)
        store.engine.dispose()
        SqlAlchemyStore._engine_map.pop(store.db_uri, None)

    place.where.root.mkdir(parents=True, exist_ok=True)
    create_whole(place.where.tracking_store, create)


def parent_of(client: MlflowClient, experiment_id: str, uid: str) -> str | None:
    """The id of a study's parent run."""
    for run in study_runs(client, experiment_id, uid):
        if run.data.tags.get("overnight.role") == "study":
            return str(run.info.run_id)
    return None


def in_short(error: BaseException) -> str:
    """What is at the bottom of an error, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
