"""A PostgreSQL: connections that survive its restart, databases made, and a lock that one at a time may hold."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import sqlalchemy
from optuna.exceptions import StorageInternalError
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

CONNECT_WITHIN_S = 10
_LOCK = 0x6F7665726E696768  # "overnigh", of pg_advisory_lock: whoever makes or changes tables holds it
_MAINTENANCE = "postgres"  # the database that every server has
# What a connection gives up after, in milliseconds: a supervisor that was put to sleep must hold no lock for the rest.
_PATIENCE = {"lock_timeout": 60_000, "idle_in_transaction_session_timeout": 60_000}
# Nor one whose machine lost its power: the server would wait two hours for a word of it.
_SERVER = {
    "tcp_keepalives_idle": 10,
    "tcp_keepalives_interval": 5,
    "tcp_keepalives_count": 4,
    "tcp_user_timeout": 30_000,
}
_READ_ONLY = "25006"  # SQLSTATE of a server that writes nothing now and may later, as a standby


def engine_options(url: str) -> dict[str, Any]:
    """Options of SQLAlchemy's engine. A connection that broke while it lay in the pool is replaced, one to a machine
    that is gone is noticed in half a minute, and there are few, since a database has a hundred in all."""
    return {
        "pool_pre_ping": True,
        "pool_size": 2,
        "max_overflow": 6,
        "pool_recycle": 1800,
        "connect_args": _connect_arguments(make_url(url)),
    }


def _connect_arguments(url: URL) -> dict[str, Any]:
    """libpq's, less what the address says itself."""
    mine = {
        "connect_timeout": CONNECT_WITHIN_S,
        "application_name": "overnight",
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 4,
        "tcp_user_timeout": 30_000,
        "options": " ".join(f"-c {name}={value}" for name, value in {**_PATIENCE, **_SERVER}.items()),
    }
    return {name: value for name, value in mine.items() if name not in url.query}


def is_unreachable(error: BaseException | None) -> bool:
    """Whether an error, or what Optuna made of it, says that a database can't be reached or written for now."""
    if isinstance(error, StorageInternalError):
        error = error.__cause__
    if isinstance(error, InterfaceError | OperationalError):
        return True
    return isinstance(error, DBAPIError) and (
        error.connection_invalidated or getattr(error.orig, "sqlstate", None) == _READ_ONLY
    )


@contextlib.contextmanager
def schema_lock(url: str) -> Iterator[None]:
    """Be the only one that makes or changes tables in a database; waits for whoever else is at it, on any machine."""
    with _connection(make_url(url)) as connection:
        connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:lock)"), {"lock": _LOCK})
        try:
            yield
        finally:
            with contextlib.suppress(DBAPIError):  # the server lets go of it when the connection ends
                connection.execute(sqlalchemy.text("SELECT pg_advisory_unlock(:lock)"), {"lock": _LOCK})


def has_tables(url: str, *tables: str) -> bool:
    """Whether a database has all of these tables."""
    with _connection(make_url(url)) as connection:
        return all(
            connection.execute(sqlalchemy.text("SELECT to_regclass(:name)"), {"name": name}).scalar() is not None
            for name in tables
        )


def same_database(one: str, other: str | None) -> bool:
    """Whether two addresses name one database, as far as they tell."""
    mine, theirs = (make_url(url) if url is not None else None for url in (one, other))
    if mine is None or theirs is None:
        return False
    keys = ("host", "port")
    return all(
        [
            mine.database == theirs.database,
            (mine.host, mine.port or 5432) == (theirs.host, theirs.port or 5432),
            [mine.query.get(k) for k in keys] == [theirs.query.get(k) for k in keys],
        ]
    )


def create_database(url: str) -> bool:
    """Create the database that an address names, where its server lacks it and lets us; whether it was made.

    Raises SQLAlchemy's errors: what the server says of that database, where it says nothing better.
    """
    wanted = make_url(url)
    try:
        with _connection(wanted):
            return False
    except DBAPIError as error:  # which says why in the server's own language, and with no code
        try:
            return _create_missing(wanted)
        except DBAPIError as second:
            raise (second if _said_by_a_statement(second) else error) from None


def _create_missing(wanted: URL) -> bool:
    server = wanted.set(database=_MAINTENANCE)
    with schema_lock(server.render_as_string(hide_password=False)), _connection(server) as connection:
        asked = sqlalchemy.text("SELECT 1 FROM pg_database WHERE datname = :name")
        if connection.execute(asked, {"name": wanted.database}).scalar() is not None:
            return False  # somebody was first
        name = connection.dialect.identifier_preparer.quote_identifier(str(wanted.database))
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
        return True


def _said_by_a_statement(error: DBAPIError) -> bool:
    return getattr(error.orig, "sqlstate", None) is not None


@contextlib.contextmanager
def _connection(url: URL) -> Iterator[sqlalchemy.Connection]:
    """One connection, apart from any pool, where every statement stands for itself."""
    arguments = _connect_arguments(url)
    if "options" not in url.query:
        arguments["options"] = ""  # who waits for the lock waits as long as it takes
    engine = sqlalchemy.create_engine(
        url, poolclass=sqlalchemy.NullPool, isolation_level="AUTOCOMMIT", connect_args=arguments
    )
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()
