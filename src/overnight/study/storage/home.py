"""Which home an MLflow store belongs to, and where that home was when the store was last opened.

MLflow keeps absolute locations of artifacts. A home that was moved or copied is recognised when it is opened, and its
locations are rewritten. The place is kept in the store itself, so that locations and place change in one transaction: a
kill leaves both as they were, or both as they should be.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
import urllib.parse
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from overnight.config.paths import HomePaths, StudyLocation
from overnight.config.problems import ConfigError
from overnight.study.storage.lock import holders_in

# Every column of MLflow's tables that holds the location of an artifact.
_LOCATIONS = (
    ("experiments", "artifact_location", ""),
    ("runs", "artifact_uri", ""),
    ("logged_models", "artifact_location", ""),
    ("model_versions", "source", ""),
    ("model_versions", "storage_location", ""),
    ("trace_tags", "value", "WHERE key = 'mlflow.artifactLocation'"),
)
_BUSY_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class _Identity:
    """What a store says about its home. id: None in a store of a version that did not keep it."""

    id: str | None
    place: Path


def settle(location: StudyLocation, database: Path | None = None) -> None:
    """Make the home's own MLflow store point at where the home is now. Reports a move or a copy on stderr.

    Does nothing for a home without a store of its own, and for one that cannot be written.

    Args:
        database: A copy of the store to use instead, where the home is read-only.

    Raises:
        ConfigError: The home was moved while a process works in it.
    """
    paths = location.paths
    database = database or paths.mlflow_db
    if location.given_tracking_uri is not None or not database.exists():
        return
    with contextlib.suppress(sqlite3.Error), _connect(database) as store:
        found = _identity(store, paths)
        if found is not None and found.id is not None and found.place == paths.root:
            return
        is_own = database == paths.mlflow_db
        message = _settle(store, paths, is_own=is_own)
        if message and is_own:
            print(message, file=sys.stderr)


def _settle(store: sqlite3.Connection, paths: HomePaths, *, is_own: bool) -> str | None:
    """Rewrite the locations in a store. is_own: it is the home's store, not a copy of that of a read-only home."""
    store.execute("BEGIN IMMEDIATE")  # one process at a time
    found = _identity(store, paths)
    if found is None or (found.id is not None and found.place == paths.root):
        store.execute("ROLLBACK")
        return None
    is_same = found.place == paths.root or _is_same_folder(found.place, paths.root)
    is_copy = not is_same and _is_home_of(found, store)
    if is_copy:
        # The files name processes that work in the original. Those of a read-only home stay.
        for file in paths.locks.glob("*.holder.json") if is_own else ():
            file.unlink(missing_ok=True)
    elif not is_same and (holders := holders_in(paths)):
        store.execute("ROLLBACK")
        raise ConfigError([f"home: {found.place} was moved to {paths.root} while process {pid} runs {study}; end that "
                           f"process first: kill {pid}" for study, pid in holders])  # fmt: skip
    count = _rewrite(store, found.place, paths.root) if found.place != paths.root else 0
    store.execute("CREATE TABLE IF NOT EXISTS overnight_home (id TEXT NOT NULL, place TEXT NOT NULL)")
    store.execute("DELETE FROM overnight_home")
    home_id = found.id if found.id is not None and not is_copy else uuid.uuid4().hex
    store.execute("INSERT INTO overnight_home VALUES (?, ?)", (home_id, str(paths.root)))
    store.execute("COMMIT")
    if is_same or not count:
        return None
    return (
        f"home: {paths.root} was {'copied' if is_copy else 'moved'} from {found.place}; "
        f"{count} locations in its MLflow store are updated"
    )


def local_path(location: str) -> Path | None:
    """Return the path that a location of artifacts names on this machine; None for one elsewhere."""
    parsed = urllib.parse.urlparse(location)
    if parsed.scheme == "file":
        return Path(urllib.parse.unquote(parsed.path))
    return Path(location) if location.startswith("/") else None  # a plain path may contain # or ?


def relocated(location: str, old: Path, new: Path) -> str:
    """Return a location below `old` as the same location below `new`, and any other unchanged."""
    path = local_path(location)
    if path is None or not path.is_relative_to(old):
        return location
    moved = new / path.relative_to(old)
    return moved.as_uri() if location.startswith("file:") else str(moved)


def _rewrite(store: sqlite3.Connection, old: Path, new: Path) -> int:
    """Rewrite the locations below `old`; return their number."""
    store.create_function("relocated", 1, lambda text: relocated(text, old, new), deterministic=True)
    count = 0
    tables = _tables(store)
    for table, column, condition in _LOCATIONS:
        if table in tables:
            where = f"{condition or 'WHERE 1'} AND {column} IS NOT NULL AND relocated({column}) != {column}"
            count += store.execute(f"UPDATE {table} SET {column} = relocated({column}) {where}").rowcount
    return count


def _identity(store: sqlite3.Connection, paths: HomePaths) -> _Identity | None:
    """Return what the store says about its home; None for a store without tables."""
    tables = _tables(store)
    if "experiments" not in tables:
        return None
    row = store.execute("SELECT id, place FROM overnight_home").fetchone() if "overnight_home" in tables else None
    if row is not None:
        return _Identity(row[0], Path(row[1]))
    return _Identity(None, _inferred_place(store, paths) or paths.root)


def _inferred_place(store: sqlite3.Connection, paths: HomePaths) -> Path | None:
    """Return where the home was, by the locations of its artifacts, in a store that does not say it.

    Artifacts may also be in tracking.artifacts. So a home counts as moved only if it has artifacts that its
    store places elsewhere.
    """
    for (text,) in store.execute("SELECT artifact_location FROM experiments ORDER BY experiment_id DESC"):
        path = local_path(text or "")
        if path is None or path.parent.name != paths.artifacts.name or path.is_relative_to(paths.root):
            continue
        if (paths.artifacts / path.name).exists():
            return path.parent.parent
    return None


def _is_home_of(found: _Identity, store: sqlite3.Connection) -> bool:
    """Whether the place that a store names still has that home, so that the store is in a copy of it."""
    original = HomePaths(found.place).mlflow_db
    try:
        with _connect(original, "ro") as other:
            if found.id is None:  # both have the same experiments then
                query = "SELECT experiment_id, creation_time FROM experiments ORDER BY experiment_id LIMIT 2"
                return other.execute(query).fetchall() == store.execute(query).fetchall()
            return bool(other.execute("SELECT 1 FROM overnight_home WHERE id = ?", (found.id,)).fetchone())
    except sqlite3.Error:
        return False


def _is_same_folder(one: Path, other: Path) -> bool:
    """Whether both are one folder under two names, as with a bind mount."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _tables(store: sqlite3.Connection) -> set[str]:
    return {name for (name,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


@contextlib.contextmanager
def _connect(path: Path, mode: str = "rw") -> Iterator[sqlite3.Connection]:
    """Open a database that exists. The caller writes BEGIN and COMMIT; what is not committed is undone."""
    uri = f"{path.as_uri()}?mode={mode}"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_TIMEOUT_S, isolation_level=None)) as store:
        yield store
