"""Whether a command has finished a study before. The file of the study storage is read without Optuna."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Sequence

from overnight.config.paths import StudyLocation
from overnight.search.attributes import FINISHED


def finished_by(location: StudyLocation, command: Sequence[str]) -> bool:
    """Return whether a study of a local storage was finished by the same command. It may have changed since."""
    path = location.paths.optuna_db
    if location.storage_url is not None or not path.exists():
        return False
    with contextlib.suppress(sqlite3.Error, ValueError):
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as storage:
            query = "SELECT value_json FROM study_user_attributes WHERE key = ?"
            found = [json.loads(text) for (text,) in storage.execute(query, (FINISHED,))]
        return any(one.get("command") == list(command) for one in found)
    return False
