"""The database of the study storage: Optuna's tables, in a SQLite file or a PostgreSQL."""

from __future__ import annotations

import contextlib
import functools
import gc
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any, TypeVar

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from overnight.config import credentials
from overnight.config.paths import StudyLocation, sqlite_url
from overnight.config.problems import ConfigError
from overnight.study.storage import leases, optuna_tables, postgres
from overnight.study.storage.access import database_to_read
from overnight.study.storage.outage import Unreachable, raising_unreachable, unreachable_message
from overnight.system.files import create_atomically

T = TypeVar("T")
_LAST_CREATED_TABLES = ("version_info", "alembic_version", "overnight_members")


class DiskFull(RuntimeError):
    """The disk of the study storage is full. Nothing is lost; the same command resumes the study."""


def _give_up() -> None:
    raise DiskFull("the disk of the study storage is full")


class OptunaDatabase(RDBStorage):
    """Optuna's relational storage. It reads trials four times as fast, and can wait where the disk is full.

    Attributes:
        wait_for_space: called when a write finds the disk full, before that write is repeated. It may wait, or raise
            DiskFull to give up.
    """

    def __init__(self, url: str, *, wait_for_space: Callable[[], None] = _give_up, **options: Any) -> None:
        self.wait_for_space = wait_for_space
        # Optuna formats the address as a template.
        super().__init__(url.replace("{", "{{").replace("}", "}}"), **options)

    def retry_while_full(self, write: Callable[[], T]) -> T:
        """Run a write, which is one transaction, until the disk has space for it."""
        while True:
            try:
                return write()
            except (OperationalError, StorageInternalError) as error:
                cause = error.__cause__ if isinstance(error, StorageInternalError) else error
                if "disk is full" not in str(cause):
                    raise
            self.wait_for_space()

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self.retry_while_full(lambda: RDBStorage.set_study_user_attr(self, study_id, key, value))

    def trials_without_reports(self, study_id: int) -> list[FrozenTrial]:
        """Return a study's trials without their intermediate values, which take half of the time of reading."""
        return self._read(study_id, reports=False)

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        kept = None if states is None else [s for s in TrialState if s in states]
        return self._read(study_id, states=kept, included_ids=included_trial_ids, after_id=trial_id_greater_than)

    def _read(self, study_id: int, **selection: Any) -> list[FrozenTrial]:
        try:
            with self.engine.connect() as connection:
                return optuna_tables.read_trials(connection, study_id, **selection)
        except SQLAlchemyError as error:
            raise StorageInternalError("the study storage can't be read") from error


# Open -----------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(location: StudyLocation) -> Iterator[OptunaDatabase]:
    """Open the database for the duration of a block.

    Raises:
        ConfigError: the address or the database is wrong.
        Unreachable: a shared database is unreachable, or becomes so within the block.
    """
    storage = open_storage(location)
    try:
        with raising_unreachable() if location.shared else contextlib.nullcontext():
            yield storage
    finally:
        dispose(storage)


def open_storage(location: StudyLocation) -> OptunaDatabase:
    """Open the database, and create it first where it is a SQLite file. In a read-only home, open a copy of it.

    Raises:
        ConfigError: the address or the database is wrong.
        Unreachable: a shared database is unreachable.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if location.storage_url is not None:
        return _open_url(location, location.storage_url)
    path = database_to_read(location, location.paths.optuna_db)
    if not path.exists():
        create_atomically(path, _empty_database())
    storage = OptunaDatabase(sqlite_url(path), engine_kwargs={"connect_args": {"timeout": 60}})

    @sqlalchemy.event.listens_for(storage.engine, "connect")
    def _set_durability(connection: Any, _: Any) -> None:
        # With a write-ahead log others can read during a write, and a report does not wait for the disk. A kill loses
        # nothing. A power failure may lose the last second, which the trials' checkpoints restore. Only a file of an
        # earlier version is changed here.
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    storage.engine.dispose()  # the connection that was opened without these settings
    return storage


def _open_url(location: StudyLocation, url: str) -> OptunaDatabase:
    try:
        if location.shared:
            return _open_shared(url)
        if url.startswith("sqlite"):
            return OptunaDatabase(url)
        raise ValueError("only SQLite and PostgreSQL are supported")
    except Exception as error:  # those of SQLAlchemy and of the drivers have no common base class
        cause = error.__cause__ or error  # Optuna's own message is the same for all errors
        if location.shared and postgres.is_unreachable(error) and not _is_permanent(cause):
            raise Unreachable(unreachable_message(error)) from error
        raise ConfigError([_open_error(location, error)]) from error


def _open_shared(url: str) -> OptunaDatabase:
    """Open a PostgreSQL database. One process at a time creates missing tables."""
    if not postgres.has_tables(url, *_LAST_CREATED_TABLES):
        with postgres.schema_lock(url):
            make_tables(url)
    storage = OptunaDatabase(
        url, engine_kwargs=postgres.engine_options(url), skip_table_creation=True, skip_compatibility_check=True
    )
    try:
        storage._version_manager.check_table_schema_compatibility()
    except BaseException:
        dispose(storage)
        raise
    return storage


def _is_permanent(error: BaseException) -> bool:
    """Whether the server refuses a connection for a reason that waiting does not change."""
    reasons = ("does not exist", "authentication failed", "no password", "permission denied", "not permitted")
    return any(reason in str(error) for reason in reasons)


def _open_error(location: StudyLocation, error: Exception) -> str:
    key = credentials.STORAGE_URL if location.storage == "postgres" else "storage.url"
    if "table schema" in str(error):  # in Optuna's message about tables of another Optuna version
        return f"{key}: holds the tables of another version of Optuna; `overnight migrate` updates older ones"
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    remedy = "; `overnight migrate` creates a missing database" if location.shared and "exist" in reason else ""
    return f"{key}: must be a database that can be opened: {credentials.redact(reason)}{remedy}"


def dispose(storage: BaseStorage) -> None:
    """Close the connections of a storage."""
    database = getattr(storage, "backend", storage)
    assert isinstance(database, RDBStorage)
    database.scoped_session.remove()
    database.engine.dispose()


# Create ---------------------------------------------------------------------------------------------------------------


def make_tables(url: str) -> None:
    """Create the tables in a PostgreSQL database, or update them. The caller holds `postgres.schema_lock`."""
    storage = OptunaDatabase(url, engine_kwargs=postgres.engine_options(url), skip_compatibility_check=True)
    try:
        if storage.get_current_version() != storage.get_head_version():
            storage.upgrade()
        with storage.engine.begin() as connection:
            leases.create_tables(connection)
    finally:
        dispose(storage)


def get_ready(location: StudyLocation) -> None:
    """Prepare the content of a new SQLite file, where one is needed. It takes half a second."""
    if location.storage_url is None and not location.paths.optuna_db.exists():
        _empty_database()


@functools.cache
def _empty_database() -> bytes:
    """Return a SQLite file with Optuna's tables.

    It has a write-ahead log from the start. SQLite refuses to begin one while another process uses the file, at once
    and without waiting for it.
    """
    with tempfile.TemporaryDirectory(prefix="overnight-") as folder:
        path = Path(folder) / "optuna.db"
        dispose(RDBStorage(sqlite_url(path)))
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
        return path.read_bytes()


# Resources ------------------------------------------------------------------------------------------------------------


def free_mib(folder: Path) -> float:
    """Return the free space, in MiB, on the disk of a folder that need not exist yet."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free / 2**20


@contextlib.contextmanager
def without_collecting() -> Iterator[None]:
    """Pause Python's garbage collector while thousands of objects are created that all stay alive.

    Its repeated passes over them take a quarter of the time of reading a thousand trials.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
