"""Creates and opens the MLflow store, and finds runs in it."""

from __future__ import annotations

import contextlib
import functools
import logging
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overnight.config import credentials
from overnight.config.paths import StudyLocation, sqlite_url
from overnight.study.storage.access import database_to_read, require_readable
from overnight.study.storage.home import settle
from overnight.system.devices import cores
from overnight.system.errors import one_line
from overnight.system.files import create_atomically
from overnight.tracking import environment, tags

if TYPE_CHECKING:
    from mlflow import MlflowClient

_LOGIN_REMEDIES = {
    401: f"; set {credentials.USERNAME} and {credentials.PASSWORD}, or {credentials.TOKEN}, to a login of the server",
    403: "; the login may not do this: an administrator of the server can allow it",
}

_preparation: threading.Thread | None = None


def exists(location: StudyLocation) -> bool:
    """Return whether there is a store. A server is assumed to have one."""
    return location.given_tracking_uri is not None or location.paths.mlflow_db.exists()


def prepare_in_background(location: StudyLocation) -> None:
    """Import MLflow and build an empty store in a thread, if the machine has more than one core.

    This takes two seconds of CPU. They are free while the forkserver imports what trials need. Later, trials would wait
    for them.
    """
    global _preparation
    if _preparation is None and cores() > 1:
        environment.take_over(location)
        _preparation = threading.Thread(target=_prepare, args=(location,), name="mlflow-preparation")
        _preparation.start()


def _prepare(location: StudyLocation) -> None:
    with contextlib.suppress(Exception):  # open_client raises it again
        from mlflow import MlflowClient  # noqa: F401

        if not exists(location):
            _empty_store(str(location.artifact_root))


def open_client(location: StudyLocation) -> MlflowClient:
    """Return a client of the tracking store. Creates the store if it is a file that does not exist.

    Raises:
        LookupError: The login at the server can't be read any more.
        ConfigError: The home was moved while a process works in it.
    """
    if _preparation is not None:
        _preparation.join()
    environment.take_over(location)
    if location.server is not None:
        credentials.export_login()
    if not exists(location):
        location.paths.root.mkdir(parents=True, exist_ok=True)
        create_atomically(location.paths.mlflow_db, _empty_store(str(location.artifact_root)))
    if location.given_tracking_uri is None:
        require_readable(location)
    database = database_to_read(location, location.paths.mlflow_db)
    settle(location, database)
    uri = tracking_uri(location)
    from mlflow import MlflowClient

    # It logs a traceback at every attempt. A full disk or a server that restarts causes many.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    # Otherwise models go to the registry that MLFLOW_REGISTRY_URI names.
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    if location.server is None:
        from overnight.tracking.home_artifacts import HomeTrackingClient

        client._tracking_client = HomeTrackingClient(uri, location)
    return client


def tracking_uri(location: StudyLocation) -> str:
    """Return the address of the store to open, which is a copy where the home is read-only."""
    if location.given_tracking_uri is not None:
        return location.tracking_uri
    return sqlite_url(database_to_read(location, location.paths.mlflow_db))


@functools.cache
def _empty_store(artifact_root: str) -> bytes:
    """Return the content of a new store's file."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with tempfile.TemporaryDirectory(prefix="overnight-") as folder:
        path = Path(folder) / "mlflow.db"
        store = SqlAlchemyStore(sqlite_url(path), artifact_root)
        store.engine.dispose()
        SqlAlchemyStore._engine_map.pop(store.db_uri, None)
        return path.read_bytes()


def study_runs(client: MlflowClient, experiment_id: str, uid: str, *, deleted: bool = False) -> Iterable[Any]:
    """Yield the runs of a study, the oldest first.

    Args:
        deleted: Yield deleted runs too.
    """
    from mlflow.entities import ViewType

    token = None
    while True:
        page = client.search_runs(
            [experiment_id],
            tags.matching({tags.UID: uid}),
            ViewType.ALL if deleted else ViewType.ACTIVE_ONLY,
            max_results=1000,
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        yield from page
        token = page.token
        if not token:
            return


def find_experiment(client: MlflowClient, name: str, *uids: str) -> Any | None:
    """Return the experiment that holds the runs of a study, also where a user renamed it; else the one of that name."""
    from mlflow.entities import ViewType

    named = client.get_experiment_by_name(name)
    for uid in uids:
        mine, everywhere = tags.matching({tags.UID: uid}), ViewType.ALL
        if named is not None and client.search_runs([named.experiment_id], mine, everywhere, max_results=1):
            return named
    for uid in uids:
        experiments = [e.experiment_id for e in client.search_experiments(ViewType.ALL)]
        for run in client.search_runs(experiments, tags.matching({tags.UID: uid}), ViewType.ALL, max_results=1):
            return client.get_experiment(run.info.experiment_id)
    return named


def find_parent(client: MlflowClient, experiment_id: str, uid: str) -> str | None:
    """Return the id of a study's own run."""
    for run in study_runs(client, experiment_id, uid):
        if run.data.tags.get(tags.ROLE) == "study":
            return str(run.info.run_id)
    return None


def find_trial_runs(location: StudyLocation, trials: Iterable[tuple[str, int | None]]) -> list[str]:
    """Return the ids of the runs of trials, each given as its study's uid and its number. Omits those without a run."""
    if not exists(location):
        return []
    client = open_client(location)
    experiments = [e.experiment_id for e in client.search_experiments()]
    found: list[str] = []
    for uid, number in trials:
        condition = tags.matching({tags.UID: uid, tags.TRIAL: str(number)})
        found += [str(run.info.run_id) for run in client.search_runs(experiments, condition, max_results=1)]
    return found


def describe_refusal(client: Any) -> str | None:
    """Return to which folder outside of the home a client wrote nothing, and what to do; None if there is none."""
    tracking = getattr(client, "_tracking_client", client)
    refused = sorted(getattr(tracking, "refused", ()))
    if not refused:
        return None
    return (
        f"no artifacts are written to {refused[0]}, which is outside of home; if you want them there, give the folder "
        f"as tracking.artifacts"
    )


def describe_error(error: BaseException) -> str:
    """Describe an error of MLflow's client in one line, with a remedy if the server rejects the login."""
    while error.__cause__ is not None:
        error = error.__cause__
    status = getattr(error, "get_http_status_code", int)()
    return f"{one_line(error)}{_LOGIN_REMEDIES.get(status, '')}"


def milliseconds(seconds: float | None) -> int:
    """Convert a time in seconds since 1970 to MLflow's milliseconds. None is now."""
    return round((seconds if seconds is not None else time.time()) * 1000)
