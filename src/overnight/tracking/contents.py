"""What MLflow's store holds of a study, as a digest. The file is read without MLflow, whose import takes seconds."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Collection

from overnight.config.paths import StudyLocation
from overnight.tracking import tags

_BUSY_TIMEOUT_S = 10.0
# Everything that the synchronisation and the registration write, as far as it is in the database.
_QUERIES = (
    "SELECT run_uuid, status, end_time FROM runs WHERE run_uuid IN mine",
    "SELECT run_uuid, key, value FROM params WHERE run_uuid IN mine",
    "SELECT run_uuid, key, value, step FROM latest_metrics WHERE run_uuid IN mine",
    "SELECT run_uuid, key, value FROM tags WHERE run_uuid IN mine",
)
_CHAMPION = "SELECT alias, version FROM registered_model_aliases WHERE name = ?"


def digest(location: StudyLocation, name: str, uids: Collection[str]) -> str | None:
    """Return a digest of a study's runs and of its registered model. It changes with every change to them.

    Args:
        name: Of the study, and of its model.
        uids: Of the search and of its confirmation.

    Returns:
        None where the store is not the home's own file, or has other tables than expected.
    """
    if location.given_tracking_uri is not None or not location.paths.mlflow_db.exists():
        return None
    found = hashlib.sha256()
    places = ", ".join("?" * len(uids))
    mine = (
        "WITH mine AS (SELECT run_uuid FROM runs JOIN tags USING (run_uuid) WHERE lifecycle_stage = 'active' "
        f"AND key = '{tags.UID}' AND value IN ({places})) "
    )
    uri = f"{location.paths.mlflow_db.as_uri()}?mode=ro"
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_TIMEOUT_S)) as store:
            for query in _QUERIES:
                for row in sorted(map(repr, store.execute(mine + query, tuple(uids)))):
                    found.update(row.encode())
            found.update(repr(store.execute(_CHAMPION, (name,)).fetchall()).encode())
    except sqlite3.Error:
        return None
    return found.hexdigest()
