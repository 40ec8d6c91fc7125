"""Connections to PostgreSQL that survive its restart, a lock for changes of its tables, and new databases."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import sqlalchemy
from optuna.exceptions import StorageInternalError
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

CONNECT_TIMEOUT_S = 10
_SCHEMA_LOCK = 0x6F7665726E696768  # "overnigh", a key of pg_advisory_lock
_MAINTENANCE_DATABASE = "postgres"  # every server has it
# In milliseconds. A supervisor that is suspended must not hold a lock that its peers wait for.
_TIMEOUTS = {"lock_timeout": 60_000, "idle_in_transaction_session_timeout": 60_000}
# Nor must one whose machine lost its power. By default the server notices that after two hours.
_SERVER_KEEPALIVES = {
    "tcp_keepalives_idle": 10,
    "tcp_keepalives_interval": 5,
    "tcp_keepalives_count": 4,
    "tcp_user_timeout": 30_000,
}
_READ_ONLY = "25006"  # SQLSTATE of a server that writes nothing for now, such as a standby


def engine_options(url: str) -> dict[str, Any]:
    """Return options of SQLAlchemy's engine.

    A broken connection in the pool is replaced. A connection to a dead machine is noticed in half a minute. There are
    few connections, because a server has a hundred in all.
    """
    return {
        "pool_pre_ping": True,
        "pool_size": 2,
        "max_overflow": 6,
        "pool_recycle": 1800,
        "connect_args": _connect_arguments(make_url(url)),
    }


def _connect_arguments(url: URL) -> dict[str, Any]:
    """Return the arguments of libpq that the address does not contain."""
    arguments = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "application_name": "overnight",
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 4,
        "tcp_user_timeout": 30_000,
        "options": " ".join(f"-c {name}={value}" for name, value in {**_TIMEOUTS, **_SERVER_KEEPALIVES}.items()),
    }
    return {name: value for name, value in arguments.items() if name not in url.query}


def is_unreachable(error: BaseException | None) -> bool:
    """Whether an error, or its cause if Optuna wrapped it, means that a database can't be used for now."""
    if isinstance(error, StorageInternalError):
        error = error.__cause__
    if isinstance(error, InterfaceError | OperationalError):
        return True
    return isinstance(error, DBAPIError) and (
        error.connection_invalidated or getattr(error.orig, "sqlstate", None) == _READ_ONLY
    )


@contextlib.contextmanager
def schema_lock(url: str) -> Iterator[None]:
    """Wait for the lock for changes of a database's tables, one for all machines, and hold it during a block."""
    with _connection(make_url(url)) as connection:
        connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:lock)"), {"lock": _SCHEMA_LOCK})
        try:
            yield
        finally:
            with contextlib.suppress(DBAPIError):  # the lock ends with its connection
                connection.execute(sqlalchemy.text("SELECT pg_advisory_unlock(:lock)"), {"lock": _SCHEMA_LOCK})


def has_tables(url: str, *tables: str) -> bool:
    """Whether a database has all of some tables."""
    with _connection(make_url(url)) as connection:
        return all(
            connection.execute(sqlalchemy.text("SELECT to_regclass(:name)"), {"name": name}).scalar() is not None
            for name in tables
        )


def same_database(one: str, other: str | None) -> bool:
    """Whether two addresses name the same database, as far as the addresses show."""

    def identity(url: URL) -> tuple[object, ...]:
        return url.database, url.host, url.port or 5432, url.query.get("host"), url.query.get("port")

    return other is not None and identity(make_url(one)) == identity(make_url(other))


def create_database(url: str) -> bool:
    """Create the database that an address names, unless it exists; return whether it was created.

    Raises:
        DBAPIError: of the attempt to connect, or of the attempt to create where the server explains that one.
    """
    wanted = make_url(url)
    try:
        with _connection(wanted):
            return False
    except DBAPIError as error:  # it has no code, and its text is in the server's language
        try:
            return _create_missing(wanted)
        except DBAPIError as second:
            raise (second if _is_of_a_statement(second) else error) from None


def _create_missing(wanted: URL) -> bool:
    server = wanted.set(database=_MAINTENANCE_DATABASE)
    with schema_lock(server.render_as_string(hide_password=False)), _connection(server) as connection:
        query = sqlalchemy.text("SELECT 1 FROM pg_database WHERE datname = :name")
        if connection.execute(query, {"name": wanted.database}).scalar() is not None:
            return False  # another process was first
        name = connection.dialect.identifier_preparer.quote_identifier(str(wanted.database))
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
        return True


def _is_of_a_statement(error: DBAPIError) -> bool:
    return getattr(error.orig, "sqlstate", None) is not None


@contextlib.contextmanager
def _connection(url: URL) -> Iterator[sqlalchemy.Connection]:
    """Open one connection without a pool, where each statement is a transaction."""
    arguments = _connect_arguments(url)
    if "options" not in url.query:
        arguments["options"] = ""  # without the timeout of a lock
    engine = sqlalchemy.create_engine(
        url, poolclass=sqlalchemy.NullPool, isolation_level="AUTOCOMMIT", connect_args=arguments
    )
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()
