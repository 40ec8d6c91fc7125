"""MLflow's store: where it lies, how it is made, and how it is asked."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from overnight.config import credentials
from overnight.config.paths import StudyLocation
from overnight.system.devices import cores
from overnight.system.errors import one_line
from overnight.system.files import create_atomically
from overnight.tracking import tags
from overnight.tracking.reconcile import study_runs

if TYPE_CHECKING:
    from mlflow import MlflowClient

_getting_ready: threading.Thread | None = None


def quiet_environment() -> dict[str, str]:
    """What keeps MLflow from phoning home, from warning of its own plans, and from printing a link a run."""
    return {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }


def exists(location: StudyLocation) -> bool:
    """Whether there is a store to ask, or a server that would have one."""
    return location.given_tracking_uri is not None or location.paths.mlflow_db.exists()


def get_ready(location: StudyLocation) -> None:
    """Have a thread import MLflow, and make what a store begins as; returns at once.

    That takes two seconds of CPU, which there are to spare while the forkserver imports what trials need, if there is
    a core for it. Later the trials would have to give them up.
    """
    global _getting_ready
    if _getting_ready is None and cores() > 1:
        _keep_quiet()
        _getting_ready = threading.Thread(target=_import_and_prepare, args=(location,), name="mlflow-ahead")
        _getting_ready.start()


def _import_and_prepare(location: StudyLocation) -> None:
    with contextlib.suppress(Exception):  # whoever opens the store meets it again, and says so
        from mlflow import MlflowClient  # noqa: F401

        if not exists(location):
            _blank(str(location.artifact_root))


def client(location: StudyLocation) -> MlflowClient:
    """A client on the tracking store; the embedded one is created first where there is none.

    Raises LookupError where the login at a server can't be read any more.
    """
    if _getting_ready is not None:
        _getting_ready.join()
    _keep_quiet()
    if location.server is not None:
        credentials.export_login()
    if not exists(location):
        _create_store(location)
    from mlflow import MlflowClient

    # Its store logs a page of traceback at every try, which a full disk or a server that restarts makes many.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    return MlflowClient(tracking_uri=location.tracking_uri)


def _keep_quiet() -> None:
    for name, value in quiet_environment().items():
        os.environ.setdefault(name, value)


def _create_store(location: StudyLocation) -> None:
    location.paths.root.mkdir(parents=True, exist_ok=True)
    create_atomically(location.paths.mlflow_db, _blank(str(location.artifact_root)))


@functools.cache
def _blank(artifact_root: str) -> bytes:
    """The file of a store that holds nothing yet."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with tempfile.TemporaryDirectory(prefix="overnight-") as folder:
        path = Path(folder) / "mlflow.db"
        store = SqlAlchemyStore(f"sqlite:///{path}", artifact_root)
        store.engine.dispose()
        SqlAlchemyStore._engine_map.pop(store.db_uri, None)
        return path.read_bytes()


def find_parent(client: MlflowClient, experiment_id: str, uid: str) -> str | None:
    """The id of a study's parent run."""
    for run in study_runs(client, experiment_id, uid):
        if run.data.tags.get(tags.ROLE) == "study":
            return str(run.info.run_id)
    return None


def describe_error(error: BaseException) -> str:
    """Describe an error of MLflow's client in one line, with the remedy if the server rejected the login."""
    while error.__cause__ is not None:
        error = error.__cause__
    status = getattr(error, "get_http_status_code", int)()
    return f"{one_line(error)}{_LOGIN_REMEDIES.get(status, '')}"


_LOGIN_REMEDIES = {
    401: f"; set {credentials.USERNAME} and {credentials.PASSWORD}, or {credentials.TOKEN}, to a login of the server's",
    403: "; the login may not do this: ask the server's administrator",
}


def milliseconds(seconds: float | None) -> int:
    """Convert a time in seconds since 1970 to MLflow's milliseconds; None is now."""
    return round((seconds if seconds is not None else time.time()) * 1000)
