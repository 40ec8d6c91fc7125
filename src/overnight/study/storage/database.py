"""Where the ledger lies and who holds it: Optuna's storage, opened whole, and one lock a study."""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import optuna
import psutil
import sqlalchemy
from filelock import FileLock, Timeout
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from overnight.config import credentials
from overnight.config.paths import StudyLocation
from overnight.config.problems import ConfigError
from overnight.study.storage import leases, optuna_tables, postgres

# What a whole ledger has, beside all that is made before them.
_LAST_MADE = ("version_info", "alembic_version", "overnight_members")


# Seconds by which two looks at when a process began may differ; no other of a machine's start has its number so soon.
_APART_S = 2.0


class Held(RuntimeError):
    """Another process works on the study; the message says which."""


class NoRoom(RuntimeError):
    """The ledger's disk is full, and nobody waits for room. Nothing is lost: the same line goes on once there is."""


class Unreachable(RuntimeError):
    """The ledger's database can't be reached at the moment; nothing is lost, and it is tried again."""


def _patient(name: str) -> Callable[..., Any]:
    write = getattr(RDBStorage, name)

    @functools.wraps(write)
    def patient(self: OptunaDatabase, *args: Any, **kwargs: Any) -> Any:
        while True:
            try:
                return write(self, *args, **kwargs)
            except StorageInternalError as error:
                if "disk is full" not in str(error.__cause__):
                    raise
            self.on_full()

    return patient


class OptunaDatabase(RDBStorage):
    """Optuna's storage, which reads trials in a quarter of the time, and waits for room on a full disk instead of
    failing where a holder writes to it: its trials through HolderStorage, its studies' attributes here.

    Each write is one transaction, rolled back where there is no room, and so can be said again as it was.
    """

    def on_full(self) -> None:
        """Called before a write is tried again; may take its time, or raise NoRoom to give up."""
        raise NoRoom("the ledger's disk is full")

    set_study_user_attr = _patient("set_study_user_attr")

    def trials_without_reports(self, study_id: int) -> list[FrozenTrial]:
        """A study's trials less their intermediate values, which are half of the time that reading takes: whoever looks
        on has the packed history."""
        return self._read(study_id, reports=False)

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        kept = None if states is None else [s for s in TrialState if s in states]
        return self._read(study_id, states=kept, named=included_trial_ids, after=trial_id_greater_than)

    def _read(self, study_id: int, **which: Any) -> list[FrozenTrial]:
        try:
            with self.engine.connect() as database:
                return optuna_tables.read_trials(database, study_id, **which)
        except SQLAlchemyError as error:
            raise StorageInternalError("the ledger can't be read") from error


def free_mib(folder: Path) -> float:
    """MiB that are free where a folder lies, or will lie."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free / 2**20


def holder_of(location: StudyLocation, name: str) -> dict[str, Any] | None:
    """Who works on the study, on this machine or, where many share the ledger, on any: {"pid", "host", "since",
    "others" (how many do besides)}; None where nobody living does."""
    if location.shared:
        return _first_member(location, name)
    try:
        holder: dict[str, Any] = json.loads(holder_file(location, name).read_text())
        now = _began(holder["pid"])
        same_boot = now["boot"] is not None and now["boot"] == holder.get("boot")
        known = ["created", *(["after_boot_s"] if same_boot else [])]
        alive = any(abs(now[key] - holder[key]) < _APART_S for key in known)
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return None
    return holder if alive else None


def _began(pid: int) -> dict[str, Any]:
    """When a process began. Linux knows how long after the machine did, which stays as it is when the clock is set."""
    created, boot = psutil.Process(pid).create_time(), Path("/proc/sys/kernel/random/boot_id")
    return {
        "created": created,
        "after_boot_s": created - psutil.boot_time(),
        "boot": boot.read_text().strip() if boot.exists() else None,
    }


def _first_member(location: StudyLocation, name: str) -> dict[str, Any] | None:
    with opened(location) as storage, storage.engine.connect() as connection:
        members = leases.members(connection, name)
    return {**vars(members[0]), "others": len(members) - 1} if members else None


def held_by(name: str, holder: Mapping[str, Any]) -> str:
    """Who holds a study, and what to do about it."""
    since = time.strftime("%H:%M", time.localtime(holder.get("since", time.time())))
    return (
        f"{name}: process {holder.get('pid', '?')} on {holder.get('host', 'this machine')} has been at "
        f"it since {since}; `overnight stop {name}` ends it, `overnight status` looks on"
    )


def holder_file(location: StudyLocation, name: str) -> Path:
    return location.paths.study(name).lock.with_suffix(".holder.json")


def hold(location: StudyLocation, name: str) -> Callable[[], None]:
    """Be the one process of this machine that works on a study; what ends that. Raises Held."""
    path = location.paths.study(name).lock
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)  # the system lets go of it when its holder dies, however it dies
    try:
        lock.acquire(timeout=0)
    except Timeout:
        # Whoever came a moment before may not have said yet who it is.
        deadline = time.monotonic() + 2
        while holder_of(location, name) is None and time.monotonic() < deadline:
            time.sleep(0.05)
        raise Held(held_by(name, holder_of(location, name) or {})) from None
    holder = holder_file(location, name)
    me = {
        "pid": os.getpid(),
        **_began(os.getpid()),
        "host": socket.gethostname(),
        "since": time.time(),
    }
    fresh = holder.with_suffix(".writing")
    fresh.write_text(json.dumps(me))
    os.replace(fresh, holder)

    def let_go() -> None:
        holder.unlink(missing_ok=True)
        lock.release()

    return let_go


@contextlib.contextmanager
def opened(location: StudyLocation) -> Iterator[OptunaDatabase]:
    """The ledger's storage for as long as a block takes. Raises ConfigError, and Unreachable where a shared one's
    database is away, or goes away meanwhile."""
    storage = open_storage(location)
    try:
        with reached() if location.shared else contextlib.nullcontext():
            yield storage
    finally:
        dispose(storage)


@contextlib.contextmanager
def reached() -> Iterator[None]:
    """Have a shared ledger's database that goes away within a block be Unreachable, whoever asked it."""
    try:
        yield
    except (DBAPIError, StorageInternalError) as error:
        if not postgres.is_away(error):
            raise
        raise Unreachable(away(error)) from error


def open_storage(location: StudyLocation) -> OptunaDatabase:
    """The ledger's storage; a SQLite file is created under another name first, so that no kill leaves half a one."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if location.storage_url is not None:
        try:
            if location.shared:
                return _open_shared(location.storage_url)
            if location.storage_url.startswith("sqlite"):
                return OptunaDatabase(location.storage_url)
            raise ValueError("only SQLite and PostgreSQL are known to keep a ledger whole")
        except Exception as error:  # SQLAlchemy's and the drivers' share no base class
            said = error.__cause__ or error  # below what Optuna says of all errors alike
            if location.shared and postgres.is_away(error) and not _is_settled(said):
                raise Unreachable(away(error)) from error
            raise ConfigError([_unopened(location, error)]) from error
    path = location.paths.optuna_db
    if not path.exists():
        create_whole(path, _blank())
    storage = OptunaDatabase(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}})

    @sqlalchemy.event.listens_for(storage.engine, "connect")
    def _durable_at_a_kill(connection: Any, _: Any) -> None:
        # A write-ahead log lets others read while one writes, and does not wait for the disk at every report: a kill
        # loses nothing, and what a power cut may take of the last second, the trials' states bring back.
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    storage.engine.dispose()  # the connection that the storage opened before it could be told
    return storage


def _open_shared(url: str) -> OptunaDatabase:
    """A PostgreSQL's ledger; its tables are made by one alone, however many come first at once."""
    if not postgres.holds(url, *_LAST_MADE):
        with postgres.alone(url):
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


def make_tables(url: str) -> None:
    """Make the tables of a ledger in a PostgreSQL, or bring them up to date; whoever calls is alone at it."""
    storage = OptunaDatabase(url, engine_kwargs=postgres.engine_options(url), skip_compatibility_check=True)
    try:
        if storage.get_current_version() != storage.get_head_version():
            storage.upgrade()
        _make_our_tables(storage)
    finally:
        dispose(storage)


def _make_our_tables(storage: OptunaDatabase) -> None:
    """Make what the ledger holds beside Optuna's tables, unless it is there."""
    with storage.engine.begin() as connection:
        leases.create(connection)


def in_a_line(error: BaseException) -> str:
    """What is at the bottom of an error, less passwords."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip()
    return credentials.redacted(text.splitlines()[0]) if text else type(error).__name__


def away(error: BaseException) -> str:
    return f"the ledger's database can't be reached or written: {in_a_line(error)}"


def _is_settled(error: BaseException | None) -> bool:
    """Whether an error of connecting is the server's own word, which waiting changes nothing about."""
    said = ("does not exist", "authentication failed", "no password", "permission denied", "not permitted")
    return any(words in str(error) for words in said)


def _unopened(location: StudyLocation, error: Exception) -> str:
    named = credentials.STORAGE_URL if location.storage == "postgres" else "storage.url"
    if "table schema" in str(error):  # Optuna's word on a ledger of another version of its own
        return f"{named}: holds the tables of another version of Optuna; `overnight migrate` brings old ones up to date"
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    remedy = "; `overnight migrate` creates one that is not there" if location.shared and "exist" in reason else ""
    return f"{named}: must be a database that can be opened: {credentials.redacted(reason)}{remedy}"


def get_ready(location: StudyLocation) -> None:
    """Make what a ledger begins as, where there is none yet: half a second that somebody who waits has to spare."""
    if location.storage_url is None and not location.paths.optuna_db.exists():
        _blank()


@functools.cache
def _blank() -> bytes:
    """An empty ledger's file."""
    with tempfile.TemporaryDirectory(prefix="overnight-") as folder:
        path = Path(folder) / "optuna.db"
        dispose(RDBStorage(f"sqlite:///{path}"))
        return path.read_bytes()


def create_whole(path: Path, content: bytes) -> None:
    """Write a file under another name, then put it in place unless somebody else was first."""
    # Two threads of a process may be at it: MLflow's, and the one that tells the answer at a deadline.
    fresh = path.with_name(f"{path.name}.creating-{os.getpid()}-{threading.get_ident()}")
    try:
        with open(fresh, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


@contextlib.contextmanager
def without_collecting() -> Iterator[None]:
    """Have Python's garbage collector rest where thousands of objects come in that are all kept for now: it would go
    through them again and again, a quarter of the time that reading a thousand trials takes."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def wait_while_full(storage: BaseStorage, wait: Callable[[], None]) -> None:
    """What to do before a write is tried again that found no room on the disk; see LedgerStorage."""
    backend = _backend(storage)
    assert isinstance(backend, OptunaDatabase)
    backend.on_full = wait  # type: ignore[method-assign]


def _backend(storage: BaseStorage) -> BaseStorage:
    """The storage below what keeps trials in memory, Optuna's cache or a holder's."""
    for name in ("_backend", "backend"):
        if hasattr(storage, name):
            return cast(BaseStorage, getattr(storage, name))
    return storage


def dispose(storage: BaseStorage) -> None:
    backend = _backend(storage)
    if isinstance(backend, RDBStorage):
        backend.scoped_session.remove()
        backend.engine.dispose()
