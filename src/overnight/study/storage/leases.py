"""Who may write which trial, where many supervisors share a ledger: leases and seats, kept beside Optuna's tables.

A trial belongs to whoever holds its lease. A lease is renewed with every write and ends by the database's clock, so
that no two machines' clocks need agree. Each time it changes hands it counts one up, so that a holder who comes back
late can tell; see "fencing tokens" in Kleppmann, Designing Data-Intensive Applications, ch. 8.

While the database is down nobody can renew, and after that nobody is to blame. So a lease that has ended may be taken
by those alone who have been renewing their own seats without a break for as long as a lease lasts: all that time its
holder could have, too. That asks the server neither when it was started, which is before it has recovered, nor for
rights that a user seldom has.
"""

from __future__ import annotations

import os
import socket
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy
from sqlalchemy import BigInteger, Column, Connection, DateTime, Integer, MetaData, String, Table, func, text

TABLES = MetaData()
# owner is null once everything that a holder had to write is written, in MLflow too.
_LEASES = Table(
    "overnight_leases",
    TABLES,
    Column("study_id", Integer, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("owner", String(80)),
    Column("fencing_token", BigInteger, nullable=False),
    Column("expires_at", DateTime(timezone=True), nullable=False),
)
_MEMBERS = Table(
    "overnight_members",
    TABLES,
    Column("study_id", Integer, primary_key=True),
    Column("owner", String(80), primary_key=True),
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("since", DateTime(timezone=True), nullable=False),
    Column("unbroken_since", DateTime(timezone=True), nullable=False),  # renewed, with gaps of half a lease at most
    Column("expires_at", DateTime(timezone=True), nullable=False),
)
_STUDIES = sqlalchemy.table("studies", sqlalchemy.column("study_id"), sqlalchemy.column("study_name"))  # Optuna's
_SPACE = 0x6F766E74  # of our advisory locks, so that nobody else's are ours
_LEASE = "make_interval(secs => :lease_s)"
# Of a lease: it has ended, and :owner was there all the time to see that.
_ENDED = (
    "expires_at < clock_timestamp() AND EXISTS (SELECT 1 FROM overnight_members AS member WHERE "
    f"member.owner = :owner AND member.study_id = :study_id AND member.unbroken_since + {_LEASE} < clock_timestamp())"
)


@dataclass(frozen=True)
class Member:
    """A supervisor that is at a study. since: in seconds since 1970, by the database's clock."""

    owner: str
    host: str
    pid: int
    since: float


def create_tables(connection: Connection) -> None:
    """Make the tables where they are lacking."""
    TABLES.create_all(connection)


def lock(connection: Connection, what: str) -> None:
    """Be the only one, among all that share the database, until the transaction ends."""
    connection.execute(text("SELECT pg_advisory_xact_lock(:space, :key)"), _key(what))


def try_lock_beyond(connection: Connection, what: str) -> bool:
    """The same until `unlock`, or until the connection ends; whether nobody else has it."""
    return bool(connection.execute(text("SELECT pg_try_advisory_lock(:space, :key)"), _key(what)).scalar())


def unlock(connection: Connection, what: str) -> None:
    connection.execute(text("SELECT pg_advisory_unlock(:space, :key)"), _key(what))


def _key(what: str) -> dict[str, int]:
    return {"space": _SPACE, "key": int.from_bytes(zlib.crc32(what.encode()).to_bytes(4, "big"), "big", signed=True)}


# Trials ---------------------------------------------------------------------------------------------------------------


def take(connection: Connection, study_id: int, number: int, owner: str, lease_s: float) -> int | None:
    """Take a trial's lease where nobody has it or its holder's has ended; how often it changed hands, or None."""
    statement = text(
        "INSERT INTO overnight_leases AS held (study_id, number, owner, fencing_token, expires_at) "
        f"VALUES (:study_id, :number, :owner, 1, clock_timestamp() + {_LEASE}) "
        "ON CONFLICT (study_id, number) DO UPDATE "
        "SET owner = excluded.owner, fencing_token = held.fencing_token + 1, expires_at = excluded.expires_at "
        f"WHERE held.owner IS NULL OR (held.{_ENDED}) RETURNING fencing_token"
    )
    asked = {"study_id": study_id, "number": number, "owner": owner, "lease_s": lease_s}
    fencing_token = connection.execute(statement, asked).scalar()
    return int(fencing_token) if fencing_token is not None else None


def out_of_reach(connection: Connection, study_id: int, owner: str, lease_s: float) -> set[int]:
    """The numbers of a study's trials that an owner can't take."""
    return _numbers(connection, f"NOT ({_ENDED})", study_id, owner, lease_s)


def abandoned(connection: Connection, study_id: int, owner: str, lease_s: float) -> set[int]:
    """The numbers of a study's trials whose holders went before everything was written, and that an owner can take."""
    return _numbers(connection, _ENDED, study_id, owner, lease_s)


def _numbers(connection: Connection, which: str, study_id: int, owner: str, lease_s: float) -> set[int]:
    somebodys = "study_id = :study_id AND overnight_leases.owner IS NOT NULL"
    statement = text(f"SELECT number FROM overnight_leases WHERE {somebodys} AND {which}")
    asked = {"study_id": study_id, "owner": owner, "lease_s": lease_s}
    return set(connection.execute(statement, asked).scalars())


def held(connection: Connection, owner: str) -> dict[tuple[int, int], int]:
    """(study, number) -> how often it changed hands, of the leases that are an owner's, and stay so until the
    transaction ends."""
    statement = sqlalchemy.select(_LEASES.c.study_id, _LEASES.c.number, _LEASES.c.fencing_token)
    rows = connection.execute(statement.where(_LEASES.c.owner == owner).with_for_update())
    return {(row.study_id, row.number): row.fencing_token for row in rows}


def renew(connection: Connection, owner: str, lease_s: float) -> None:
    """Have everything that is an owner's last for another lease from now."""
    asked = {"owner": owner, "lease_s": lease_s}
    later = f"expires_at = clock_timestamp() + {_LEASE}"
    unbroken = f"CASE WHEN expires_at - {_LEASE} / 2 < clock_timestamp() THEN clock_timestamp() ELSE unbroken_since END"
    connection.execute(text(f"UPDATE overnight_leases SET {later} WHERE owner = :owner"), asked)
    connection.execute(
        text(f"UPDATE overnight_members SET {later}, unbroken_since = {unbroken} WHERE owner = :owner"), asked
    )


def release(connection: Connection, owner: str, trials: Iterable[tuple[int, int]]) -> None:
    for study_id, number in trials:
        mine = (_LEASES.c.study_id == study_id) & (_LEASES.c.number == number) & (_LEASES.c.owner == owner)
        connection.execute(_LEASES.update().where(mine).values(owner=None))


def forget(connection: Connection, study_id: int) -> None:
    """Remove what is kept of a study."""
    for table in (_LEASES, _MEMBERS):
        connection.execute(table.delete().where(table.c.study_id == study_id))


# Supervisors ----------------------------------------------------------------------------------------------------------


def join(connection: Connection, study_id: int, owner: str, lease_s: float) -> None:
    """Say that this process is at a study."""
    statement = text(
        "INSERT INTO overnight_members (study_id, owner, host, pid, since, unbroken_since, expires_at) VALUES "
        "(:study_id, :owner, :host, :pid, clock_timestamp(), clock_timestamp(), "
        f"clock_timestamp() + {_LEASE}) ON CONFLICT DO NOTHING"
    )
    me: dict[str, Any] = {"host": socket.gethostname(), "pid": os.getpid(), "lease_s": lease_s}
    connection.execute(statement, {"study_id": study_id, "owner": owner, **me})


def leave(connection: Connection, study_id: int, owner: str) -> None:
    """Say that a supervisor is at a study no more."""
    connection.execute(_MEMBERS.delete().where((_MEMBERS.c.study_id == study_id) & (_MEMBERS.c.owner == owner)))


def others(connection: Connection, study_id: int, owner: str) -> tuple[dict[str, float], set[str]]:
    """Who else is at a study -> until when, unless renewed, in seconds since 1970; and who else has trials of it."""
    alive = (
        (_MEMBERS.c.study_id == study_id)
        & (_MEMBERS.c.owner != owner)
        & (_MEMBERS.c.expires_at > func.clock_timestamp())
    )
    there = connection.execute(sqlalchemy.select(_MEMBERS.c.owner, _MEMBERS.c.expires_at).where(alive))
    held_by = (_LEASES.c.study_id == study_id) & _LEASES.c.owner.is_not(None) & (_LEASES.c.owner != owner)
    holding = connection.execute(sqlalchemy.select(_LEASES.c.owner).where(held_by).distinct())
    return {row.owner: row.expires_at.timestamp() for row in there}, set(holding.scalars())


def members(connection: Connection, study: int | str) -> list[Member]:
    """Who is at a study, by its id, or by its name whatever it was extended to; the one who came first first."""
    if isinstance(study, int):
        which = _MEMBERS.c.study_id == study
    else:
        names = _STUDIES.c.study_name
        ids = sqlalchemy.select(_STUDIES.c.study_id).where(
            (names == study) | names.startswith(f"{study}~", autoescape=True)
        )
        which = _MEMBERS.c.study_id.in_(ids)
    alive = which & (_MEMBERS.c.expires_at > func.clock_timestamp())
    rows = connection.execute(sqlalchemy.select(_MEMBERS).where(alive).order_by(_MEMBERS.c.since))
    return [Member(row.owner, row.host, row.pid, row.since.timestamp()) for row in rows]
