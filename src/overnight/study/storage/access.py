"""Whether a home can be read and written. One that can only be read is read through copies of its databases."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from overnight.config.paths import StudyLocation
from overnight.config.problems import ConfigError

_LOCK_TIMEOUT_S = 5.0
_Version = tuple[tuple[str, int, int], ...]  # name, time of change in ns and size of each file of a database
# Of each database that was copied. A folder ends with this process.
_copies: dict[Path, tuple[_Version, tempfile.TemporaryDirectory[str]]] = {}


def require_readable(location: StudyLocation) -> None:
    """Raise ConfigError if the home exists and is no folder that can be read."""
    root = location.paths.root
    try:
        is_folder = stat.S_ISDIR(os.stat(root).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise _unusable("read", root, error.strerror) from error
    if not is_folder:
        raise _unusable("read", root, "it is a file")
    if not os.access(root, os.R_OK | os.X_OK):
        raise _unusable("read", root, os.strerror(13))


def require_writable(location: StudyLocation) -> None:
    """Raise ConfigError if the home can't be written. Creates it if it does not exist."""
    require_readable(location)
    root = location.paths.root
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):  # access rights alone do not tell: root ignores them, a full disk too
            pass
    except OSError as error:
        raise _unusable("written", root, error.strerror) from error
    for database in (location.paths.optuna_db, location.paths.mlflow_db):
        if database.exists() and not os.access(database, os.W_OK):
            raise _unusable("written", root, f"{database.name} can only be read")


@contextlib.contextmanager
def no_home_if_refused(location: StudyLocation) -> Iterator[None]:
    """Remove a home that this block creates, if a mistake in the request ends the block and the home is empty."""
    root = location.paths.root
    existed = root.exists()
    try:
        yield
    except ConfigError:
        if not existed:
            with contextlib.suppress(OSError):  # data that was prepared is kept
                root.rmdir()
        raise


def is_read_only(location: StudyLocation) -> bool:
    """Whether the home exists and this process may read it only."""
    paths = location.paths
    return any(
        os.access(path, os.F_OK) and not os.access(path, os.W_OK)
        for path in (paths.root, paths.optuna_db, paths.mlflow_db)
    )


def database_to_read(location: StudyLocation, path: Path) -> Path:
    """Return a database of the home, or a copy of it where the home is read-only.

    SQLite has to write beside a database whose last writer was killed, even to read it. There is one copy of each
    database. It ends with this process, or when the database has changed and is copied again.
    """
    if not is_read_only(location) or not path.exists():
        return path
    files = [file for suffix in ("", "-wal", "-journal") if (file := Path(f"{path}{suffix}")).exists()]
    version = tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files)
    known, folder = _copies.get(path, (None, None))
    if folder is not None and known == version:
        return Path(folder.name, path.name)
    if folder is not None:
        folder.cleanup()
    folder = tempfile.TemporaryDirectory(prefix="overnight-", ignore_cleanup_errors=True)
    _copies[path] = version, folder
    copy = Path(folder.name, path.name)
    try:
        _back_up(path, copy)
    except sqlite3.Error:
        for file in files:
            shutil.copyfile(file, copy.with_name(file.name))
    return copy


def _back_up(path: Path, copy: Path) -> None:
    """Copy a database that another process may be writing, as it was after one of its transactions."""
    source = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=_LOCK_TIMEOUT_S, isolation_level=None)
    with contextlib.closing(source), contextlib.closing(sqlite3.connect(copy)) as target:
        source.execute("BEGIN")
        source.execute("SELECT count(*) FROM sqlite_master")  # `backup` itself would wait for this lock without limit
        source.backup(target)


def _unusable(how: str, root: Path, why: str | None) -> ConfigError:
    return ConfigError([f"home: must be a folder that can be {how}, got {str(root)!r}: {why}; take another home=..."])
