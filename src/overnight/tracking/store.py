"""MLflow's store: where it lies, how it is made, and how it is asked."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from overnight import credentials
from overnight.settings import Place
from overnight.storage import create_whole
from overnight.survey import study_runs

if TYPE_CHECKING:
    from mlflow import MlflowClient


def quiet_environment() -> dict[str, str]:
    """What keeps MLflow from phoning home, from warning of its own plans, and from printing a link a run."""
    return {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }


def exists(place: Place) -> bool:
    """Whether there is a store to ask, or a server that would have one."""
    return place.given_tracking_uri is not None or place.where.tracking_store.exists()


def client(place: Place) -> MlflowClient:
    """A client on the tracking store; the embedded one is created first where there is none.

    Raises LookupError where the login at a server can't be read any more.
    """
    for name, value in quiet_environment().items():
        os.environ.setdefault(name, value)
    if place.server is not None:
        credentials.lend_login()
    if not exists(place):
        _create_store(place)
    from mlflow import MlflowClient

    # Its store logs a page of traceback at every try, which a full disk or a server that restarts makes many.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    return MlflowClient(tracking_uri=place.tracking_uri)


def _create_store(place: Place) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    def create(fresh: Path) -> None:
        store = SqlAlchemyStore(f"sqlite:///{fresh}", str(place.artifact_root))
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
    """What is at the bottom of an error, in one line and without secrets; and what to do about a login."""
    while error.__cause__ is not None:
        error = error.__cause__
    said = credentials.redacted(str(error).splitlines()[0] if str(error) else "")
    code = getattr(error, "get_http_status_code", int)()
    return f"{type(error).__name__}: {said}{_LOCKED_OUT.get(code, '')}"


_LOCKED_OUT = {
    401: f"; set {credentials.USERNAME} and {credentials.PASSWORD}, or {credentials.TOKEN}, to a login of the server's",
    403: "; the login may not do this: whoever runs the server can allow it",
}
